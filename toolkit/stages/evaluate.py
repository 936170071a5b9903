"""`evaluate`: every evaluation example through an engine, from the raw example to the answers.

Output: `answers.npy`, float32[rows, width], in the order of the evaluation split. Artifacts run one example at a
time, the way they will on the device: a dynamically quantized model answers differently in a batch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from toolkit import engines, tasks
from toolkit.errors import InputError
from toolkit.stages import Context

VERSION = 2
LIBRARIES = engines.DISTRIBUTIONS


class Parameters(BaseModel):
    """Which engine, and how many examples (None: all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    encoding: dict[str, Any]
    limit: int | None = None


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """`source` is a checkpoint for the engine `torch`, an artifact folder for every other engine."""
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it evaluates
    task = tasks.get(context.task)
    examples = task.read_examples(context.data, "eval")[: parameters.limit]
    counted: dict[str, Any] = {}
    if parameters.engine == "torch":
        from toolkit.engines import torch as torch_engine

        model = torch_engine.load_model(source, task)
        answers = torch_engine.answers(model, source, task, examples, parameters.encoding, context)
        encoder = task.encoder(source, parameters.encoding, inputs=torch_engine.input_names(model, task))
        counted = {"operations": torch_engine.count_operations(model, task, encoder, examples)}
    else:
        inputs = [example.input for example in examples]
        answers = artifact_answers(source, parameters.engine, inputs, parameters.encoding, context)
    np.save(output / "answers.npy", answers, allow_pickle=False)
    names = json.loads((context.data / "labels.json").read_text(encoding="utf-8"))
    return {**task.metrics(answers, examples, names), **counted}


def artifact_answers(
    folder: Path, engine_name: str, inputs: Sequence[Any], encoding: Mapping[str, Any], context: Context
) -> NDArray[np.float32]:
    """An artifact's answers to raw examples, one after the other: float32[rows, width]."""
    task = tasks.get(context.task)
    artifact = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    encoder = task.encoder(folder, encoding, inputs=names_of(artifact), lengths=artifact["lengths"])
    engine = engines.get(engine_name).load(folder / artifact["path"], context.threads)
    name = artifact["outputs"][0]["name"]
    found = []
    for index, each in enumerate(inputs):
        arrays = encoder(each)
        found.append(task.rows(engine.run(arrays)[name], arrays))
        context.progress(index + 1, len(inputs), "evaluating")
    engine.close()
    widths = sorted({rows.shape[1:] for rows in found})
    if len(widths) > 1:
        raise InputError(
            f"The output '{name}' gives {widths[0]} numbers for one example and {widths[-1]} for another; it does not "
            f"hold the answers of {task.NAME}."
        )
    return np.concatenate(found).astype(np.float32)


def names_of(artifact: Mapping[str, Any]) -> list[str]:
    """The inputs that an artifact's description tells."""
    return [str(tensor["name"]) for tensor in artifact["inputs"]]
