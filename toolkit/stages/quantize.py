"""`quantize`: a float artifact → the same artifact in fewer bits.

`dynamic-int8`: weights to int8 ahead of time (per output channel where the engine has kernels for it),
activations to int8 at run time; no calibration data. `fp16`: weights and arithmetic in half precision.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from toolkit import export as formats
from toolkit.stages import Context
from toolkit.storage import write_json

VERSION = 2
LIBRARIES = ("onnx", "onnxruntime", "ai-edge-quantizer")


class Parameters(BaseModel):
    """The method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["dynamic-int8", "fp16"]


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write the quantized model file beside copies of the artifact's other files."""
    artifact = json.loads((source / "artifact.json").read_text(encoding="utf-8"))
    module = formats.get(artifact["format"])
    quantized = module.quantize(source, output, artifact, parameters.method)
    for path in source.iterdir():
        if path.name not in (artifact["path"], "artifact.json"):
            shutil.copy(path, output / path.name)
    write_json(output / "artifact.json", quantized)
    return {
        "method": parameters.method,
        "size_before_bytes": artifact["size_bytes"],
        "size_after_bytes": quantized["size_bytes"],
    }
