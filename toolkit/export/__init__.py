"""Export formats: checkpoint → artifact. One file each, with the same two functions.

    export(checkpoint, output, parameters, context) -> dict     the float artifact and its description
    quantize(source, output, artifact, method) -> dict          the same in fewer bits

The description is `artifact.json`: format, path, precision, tensor names/dtypes/shapes, input lengths, the
minimum runtime versions, operators.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from toolkit.errors import InputError


class FormatModule(Protocol):
    """What every file of this folder offers."""

    def export(self, checkpoint: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]: ...

    def quantize(self, source: Path, output: Path, artifact: dict[str, Any], method: str) -> dict[str, Any]: ...


# Adding a format: one file in this folder and one line here.
_MODULES = {"onnx": "toolkit.export.onnx", "litert": "toolkit.export.litert"}
FORMAT_OF_ENGINE = {"onnxruntime": "onnx", "tensorrt": "onnx", "litert": "litert"}


def get(name: str) -> FormatModule:
    """The format module called `name`. Raises InputError for an unknown name."""
    if name not in _MODULES:
        raise InputError(f"Unknown format '{name}'; known: {', '.join(_MODULES)}.")
    return cast(FormatModule, importlib.import_module(_MODULES[name]))
