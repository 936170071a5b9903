"""What one inference of an exported file costs, operation by operation. One file per format, with the same name:

    operations(path, sizes) -> list[Operation]      in the file's order

`estimate` turns these counts into time, with what a target's profile says of its hardware.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from toolkit.costs.work import Work
from toolkit.errors import InputError


@dataclass(frozen=True)
class Operation:
    """One node of an ONNX file or operator of a LiteRT file, in one inference at the sizes that were asked for.

    `name` is the node's, or the tensor's that it computes; `kind` its operator type, `domain` "" for the format's own
    operators. `module` is the dotted path of the PyTorch module that it came from, "" if that is not known or the model
    itself; it is as the exporter wrote it, which may wrap the model (`bisect.aliases` finds whose names mean the same).
    `work` is the class of kernels that it belongs to, `dtype` the format of its arithmetic (fp32, fp16, int8, …).
    `weight_bytes` are constants that are read, `activation_bytes` other tensors that are read or written. `shape` is
    the first output's, of its last run.

    `runs` says how often it runs: 0 if nothing is left to do, for it is computed when the file is loaded, is part of
    a neighbour (the Q/DQ around an integer kernel), or lies in a branch that is not taken. `shape` is None where sizes
    are not known; then all counts are 0.
    """

    name: str
    kind: str
    domain: str
    module: str
    work: Work
    multiply_adds: int
    activation_bytes: int
    weight_bytes: int
    dtype: str
    shape: tuple[int, ...] | None
    runs: int = 1

    @property
    def bytes(self) -> int:
        """All bytes that it reads and writes."""
        return self.activation_bytes + self.weight_bytes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def of_engine(path: Path, sizes: Mapping[str, int], engine: str) -> list[Operation]:
    """The operations that an engine runs of a file; ONNX Runtime rewrites a graph when it loads it. Raises
    InputError."""
    if engine == "onnxruntime":
        from toolkit.costs import onnx

        return onnx.operations(path, sizes, rewritten=True)
    found = operations(path, sizes)
    if engine == "tensorrt":  # pairs say how their neighbours compute, and become part of them
        return [each for each in found if each.kind not in ("QuantizeLinear", "DequantizeLinear")]
    return found


class FormatCosts(Protocol):
    """What every format's file offers."""

    def operations(self, path: Path, sizes: Mapping[str, int]) -> list[Operation]:
        """The operations of a file. `sizes` are those of its inputs' dynamic axes by name, such as
        {"batch": 1, "length": 128}; more than the file has may be given. Raises InputError."""


# Adding a format: one file in this folder and one line here.
_MODULES = {".onnx": "toolkit.costs.onnx", ".tflite": "toolkit.costs.litert"}


def counts(path: Path) -> bool:
    """Whether costs are counted of files like this one."""
    return path.suffix in _MODULES


def operations(path: Path, sizes: Mapping[str, int]) -> list[Operation]:
    """The operations of a file, by its suffix. Raises InputError for another, or a file that cannot be read."""
    if path.suffix not in _MODULES:
        raise InputError(f"{path}: costs are counted of {' and '.join(_MODULES)} files.")
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    module = cast(FormatCosts, importlib.import_module(_MODULES[path.suffix]))
    return module.operations(path, sizes)
