"""Kernels to time on a device: small models of one operation repeated, written for each engine. One file per engine:

    SUFFIX                              of the files that it writes
    DTYPES                              number format → the classes of work that are timed in it
    write(kernel, path, seed) -> Arrays a model that is the kernel, `repeats` times in a row; inputs to run it on

`calibrate.py` times them, and makes a target's calibration of that. Their costs are counted as those of any other file.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from toolkit.costs.work import Work
from toolkit.engines import Arrays
from toolkit.errors import InputError


@dataclass(frozen=True)
class Kernel:
    """An operation of a class, repeated with weights of its own each time.

    `size` is (rows, inputs, outputs) of gemm, every second one going back from outputs to inputs; (heads, length,
    width) of attention; (channels, side) of convolutions, which keep both; (rows, width) of all others.
    """

    work: Work
    dtype: str
    size: tuple[int, ...]
    repeats: int

    @property
    def name(self) -> str:
        return f"{self.work}-{self.dtype}-{'x'.join(map(str, self.size))}-{self.repeats}"


class KernelModule(Protocol):
    """What every file of this folder offers."""

    SUFFIX: str
    DTYPES: dict[str, tuple[Work, ...]]

    def write(self, kernel: Kernel, path: Path, seed: int) -> Arrays: ...


# Adding an engine: one file in this folder and one line here.
_MODULES = {"onnxruntime": "toolkit.kernels.onnxruntime", "litert": "toolkit.kernels.litert"}


def engines() -> list[str]:
    """The engines that kernels can be written for."""
    return list(_MODULES)


def get(engine: str) -> KernelModule:
    """The kernels of an engine. Raises InputError for one that has none."""
    if engine not in _MODULES:
        raise InputError(f"Nothing can be calibrated for engine '{engine}'; known: {', '.join(_MODULES)}.")
    return cast(KernelModule, importlib.import_module(_MODULES[engine]))


# Sizes as encoders at 16 to 128 tokens, mobile convolutional nets and small networks on rows have them.
_SIZES: dict[Work, tuple[tuple[tuple[int, ...], int], ...]] = {
    "gemm": (
        ((1, 64, 64), 16), ((1, 384, 384), 8), ((16, 384, 384), 8), ((16, 384, 1536), 4), ((64, 384, 384), 6),
        ((64, 384, 1536), 4), ((128, 384, 384), 4), ((128, 384, 1536), 2),
    ),
    "attention": (((12, 16, 32), 8), ((12, 64, 32), 6), ((12, 128, 32), 4)),
    "convolution": (((16, 24), 8), ((48, 12), 8), ((16, 112), 2), ((64, 28), 4)),
    "pointwise": (((48, 12), 8), ((32, 56), 4), ((96, 28), 4), ((384, 14), 4), ((576, 7), 4)),
    "depthwise": (((48, 12), 8), ((32, 112), 2), ((144, 56), 2), ((192, 28), 4), ((576, 14), 4)),
    "elementwise": (((16, 384), 16), ((128, 384), 16), ((128, 1536), 8)),
    "activation": (((16, 384), 8), ((16, 1536), 8), ((128, 1536), 4)),
    "normalization": (((16, 384), 8), ((128, 384), 8), ((1536, 128), 4)),
    "copy": (((16, 384), 8), ((128, 384), 8), ((128, 1536), 4)),
}  # fmt: skip

# What an operator costs besides its work: the difference between many and few that have none to speak of.
LAUNCHES = (Kernel("elementwise", "fp32", (1, 8), 64), Kernel("elementwise", "fp32", (1, 8), 4))
# Products of one row do little but read their weights: 0.5, 4 and 48 MB of them.
READS = (
    Kernel("gemm", "fp32", (1, 256, 256), 2), Kernel("gemm", "fp32", (1, 512, 512), 4),
    Kernel("gemm", "fp32", (1, 1024, 1024), 12),
)  # fmt: skip


def of_engine(engine: str) -> list[Kernel]:
    """All kernels to time on an engine."""
    found = [*LAUNCHES, *READS]
    for dtype, works in get(engine).DTYPES.items():
        found += [Kernel(work, dtype, size, repeats) for work in works for size, repeats in _SIZES[work]]
    return list(dict.fromkeys(found))
