"""`export`: a checkpoint → a float artifact for one engine's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from toolkit import export as formats
from toolkit.stages import Context
from toolkit.storage import write_json

VERSION = 3
LIBRARIES = (
    "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "litert-torch", "litert-converter", "ai-edge-litert",
)  # fmt: skip


class Parameters(BaseModel):
    """The format and what it depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["onnx", "litert"]
    lengths: list[int] | None = None  # input lengths of a fixed-shape format
    opset: int | None = None  # highest ONNX opset that the engine takes
    ort_fusions: bool = False  # contrib operators that only ONNX Runtime has


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write the model file, `artifact.json` and the tokenizer files to `output`."""
    artifact = formats.get(parameters.format).export(source, output, parameters, context)
    write_json(output / "artifact.json", artifact)
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        if (source / name).exists():
            shutil.copy(source / name, output / name)
    return {key: artifact[key] for key in ("precision", "size_bytes", "operators")}
