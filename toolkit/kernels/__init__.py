"""Kernels to time on a device: small models of one operation repeated, written for each engine. One file per engine:

    SUFFIX                              of the files that it writes
    KINDS                               class of work → operator types that are timed
    INTEGER_KINDS                       the same in int8
    write(kernel, path, seed) -> Arrays a model that is the kernel, `repeats` times in a row; inputs to run it on

`calibrate.py` times them, and makes a target's calibration of that. Their costs are counted as those of any other file.
"""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from toolkit import engines
from toolkit.costs.work import Work
from toolkit.engines import Arrays
from toolkit.errors import InputError


@dataclass(frozen=True)
class Kernel:
    """An operation, repeated with weights of its own each time. `kind` is the operator type in the engine's words.

    `size` is (rows, inputs, outputs) of gemm, every second one going back from outputs to inputs; (heads, length,
    width) of attention; (channels, side) of convolutions, which keep both; (rows, width) of all others.
    """

    work: Work
    kind: str
    dtype: str
    size: tuple[int, ...]
    repeats: int

    @property
    def name(self) -> str:
        return f"{self.work}-{self.kind}-{self.dtype}-{'x'.join(map(str, self.size))}-{self.repeats}"


class KernelModule(Protocol):
    """What every file of this folder offers."""

    SUFFIX: str
    KINDS: dict[Work, tuple[str, ...]]
    INTEGER_KINDS: dict[Work, tuple[str, ...]]

    def write(self, kernel: Kernel, path: Path, seed: int) -> Arrays: ...


# Adding an engine: one file in this folder and one line here.
_MODULES = {"onnxruntime": "toolkit.kernels.onnxruntime", "litert": "toolkit.kernels.litert"}


def names() -> list[str]:
    """The engines that kernels can be written for."""
    return list(_MODULES)


def get(engine: str) -> KernelModule:
    """The kernels of an engine. Raises InputError for one that has none."""
    if engine not in _MODULES:
        raise InputError(f"Nothing can be calibrated for engine '{engine}'; known: {', '.join(_MODULES)}.")
    return cast(KernelModule, importlib.import_module(_MODULES[engine]))


# Sizes as encoders at 16 to 128 tokens, mobile convolutional nets and small networks on rows have them, and repeats.
_BETWEEN = (((16, 384), 8), ((128, 384), 8), ((128, 1536), 4))
_SIZES: dict[Work, tuple[tuple[tuple[int, ...], int], ...]] = {
    "gemm": (
        ((1, 64, 64), 16), ((1, 384, 384), 8), ((16, 128, 128), 8), ((128, 128, 512), 8), ((16, 384, 384), 8),
        ((16, 384, 1536), 4), ((64, 384, 384), 6), ((64, 384, 1536), 4), ((128, 384, 384), 4), ((128, 384, 1536), 2),
    ),
    "attention": (((2, 64, 64), 8), ((12, 16, 32), 8), ((12, 64, 32), 6), ((12, 128, 32), 4)),
    "convolution": (((16, 24), 8), ((48, 12), 8), ((16, 112), 2), ((64, 28), 4)),
    "pointwise": (((48, 12), 8), ((32, 56), 4), ((96, 28), 4), ((384, 14), 4), ((576, 7), 4)),
    "depthwise": (((48, 12), 8), ((32, 112), 2), ((144, 56), 2), ((192, 28), 4), ((576, 14), 4)),
    "elementwise": _BETWEEN, "activation": _BETWEEN, "copy": _BETWEEN, "view": _BETWEEN,
    "normalization": (*_BETWEEN, ((1536, 128), 4)),
}  # fmt: skip


def check(engine: str) -> None:
    """Raises MissingDependencyError if what writes or runs an engine's kernels is not installed."""
    engines.get(engine).version()
    first = launches(engine)[1]
    with tempfile.TemporaryDirectory() as folder:
        get(engine).write(first, Path(folder) / first.name, 0)


def of_engine(engine: str) -> list[Kernel]:
    """All kernels to time on an engine."""
    module = get(engine)
    found = [*launches(engine), *_reads(engine)]
    for dtype, kinds in (("fp32", module.KINDS), ("int8", module.INTEGER_KINDS)):
        found += [
            Kernel(work, kind, dtype, size, repeats)
            for work, names in kinds.items()
            for kind in names
            for size, repeats in _SIZES[work]
        ]
    return found


def launches(engine: str) -> tuple[Kernel, Kernel]:
    """Many operators, and few, that have no work to speak of: what an operator costs besides is the difference."""
    kind = get(engine).KINDS["elementwise"][0]
    return Kernel("elementwise", kind, "fp32", (1, 8), 64), Kernel("elementwise", kind, "fp32", (1, 8), 4)


def _reads(engine: str) -> list[Kernel]:
    """Products of one row, which do little but read their weights: 0.5, 4 and 48 MB of them."""
    kind = get(engine).KINDS["gemm"][0]
    return [Kernel("gemm", kind, "fp32", (1, side, side), count) for side, count in ((256, 2), (512, 4), (1024, 12))]
