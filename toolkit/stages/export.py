"""`export`: a checkpoint → a float artifact for one engine's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from toolkit import export as formats
from toolkit import tasks
from toolkit.stages import Context
from toolkit.storage import write_json
from toolkit.tasks import lengths as input_lengths

VERSION = 3
LIBRARIES = (
    "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "litert-torch", "litert-converter", "ai-edge-litert",
)  # fmt: skip


class Parameters(BaseModel):
    """The format and what it depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["onnx", "litert"]
    lengths: list[int] | None = None  # input lengths of a fixed-shape format; None: chosen from the data
    most_lengths: int = input_lengths.MOST_BUCKETS  # how many may be chosen
    max_length: int | None = None  # the longest of those
    opset: int | None = None  # highest ONNX opset that the engine takes
    ort_fusions: bool = False  # contrib operators that only ONNX Runtime has


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write the model file, `artifact.json` and the tokenizer files to `output`."""
    if parameters.format == "litert" and parameters.lengths is None:
        parameters = parameters.model_copy(update={"lengths": _lengths(source, parameters, context)})
    artifact = formats.get(parameters.format).export(source, output, parameters, context)
    write_json(output / "artifact.json", artifact)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        if (source / name).exists():
            shutil.copy(source / name, output / name)
    return {key: artifact[key] for key in ("precision", "size_bytes", "operators")}


def _lengths(source: Path, parameters: Parameters, context: Context) -> list[int]:
    """The input lengths that waste least padding on the prepared examples, by the checkpoint's own tokenizer."""
    assert context.data is not None  # noqa: S101 - the runner gives the data where it gives no lengths
    assert parameters.max_length is not None  # noqa: S101
    task = tasks.get(context.task)
    encoder = task.encoder(source, inputs=(), max_length=parameters.max_length)
    counts = [
        len(encoder.ids(example.text))
        for split in ("train", "validation", "eval")
        for example in task.read_examples(context.data, split)
    ]
    return input_lengths.choose_buckets(counts, parameters.max_length, parameters.most_lengths)
