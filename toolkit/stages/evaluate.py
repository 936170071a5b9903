"""`evaluate`: every evaluation example through an engine, from the raw text to the logits.

Output: `logits.npy`, float32[n, classes], in the order of the evaluation split. Artifacts run one example at a
time, the way they will on the device: a dynamically quantized model answers differently in a batch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from toolkit import engines, tasks
from toolkit.stages import Context

VERSION = 1
LIBRARIES = ("torch", "transformers", "onnxruntime", "ai-edge-litert", "tokenizers")


class Parameters(BaseModel):
    """Which engine, and how many examples (None: all)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: str
    max_length: int
    limit: int | None = None


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """`source` is a checkpoint for the engine `torch`, an artifact folder for every other engine."""
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it evaluates
    task = tasks.get(context.task)
    examples = task.read_examples(context.data, "eval")[: parameters.limit]
    labels = np.asarray([example.label for example in examples])
    counted: dict[str, Any] = {}
    if parameters.engine == "torch":
        from toolkit.engines import torch as torch_engine

        model = torch_engine.load_model(source, task.MODEL_CLASS)
        logits = torch_engine.logits(model, source, task, examples, parameters.max_length, context)
        tokens = json.loads((context.data / "report.json").read_text(encoding="utf-8"))["tokens"]
        length = min(round(tokens["mean"]), parameters.max_length)
        operations = torch_engine.count_operations(model, task, length)
        counted = {"operations": operations, "operations_tokens": length}
    else:
        logits = artifact_logits(source, parameters.engine, [e.text for e in examples], parameters.max_length, context)
    np.save(output / "logits.npy", logits, allow_pickle=False)
    names = json.loads((context.data / "labels.json").read_text(encoding="utf-8"))
    return {**task.metrics(logits, labels, names), **counted}


def artifact_logits(
    folder: Path, engine_name: str, texts: Sequence[str], max_length: int, context: Context
) -> NDArray[np.float32]:
    """An artifact's answers to texts, one after the other: float32[n, classes]."""
    artifact = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    encoder = tasks.get(context.task).encoder(
        folder,
        inputs=[tensor["name"] for tensor in artifact["inputs"]],
        max_length=max_length,
        lengths=artifact["lengths"],
    )
    engine = engines.get(engine_name).load(folder / artifact["path"], context.threads)
    name = artifact["outputs"][0]["name"]
    rows = []
    for index, text in enumerate(texts):
        rows.append(engine.run(encoder(text))[name][0])
        context.progress(index + 1, len(texts), "evaluating")
    engine.close()
    return np.asarray(rows, dtype=np.float32)
