"""Profilers: the time of every operator of an artifact, as its runtime tells it. One file per engine, the same names.

    SOURCE                                          what tells the times, in a few words
    profile(path, threads, inputs, runs) -> [...]   the operators in the order in which they run

They run on the device and need what an app needs. An operator is known by the runtime's own name; which module of the
model it came from is found on the host (`toolkit.bench.modules`). A profiler slows the run down: its times are for
shares, the latency is measured without it.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from toolkit.engines import Arrays
from toolkit.errors import InputError


@dataclass(frozen=True)
class Operator:
    """An operator of a graph: its name there, its kind, the mean time of one run of it, and how often it runs in one
    inference."""

    name: str
    kind: str
    seconds: float
    calls: float = 1.0
    where: str | None = None  # the provider, delegate or kernel that ran it

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class ProfilerModule(Protocol):
    """What every file of this folder offers."""

    SOURCE: str

    def profile(self, path: Path, threads: int, inputs: Sequence[Arrays], runs: int) -> list[Operator]: ...


# Adding a profiler: one file in this folder and one line here.
_MODULES = ("litert", "onnxruntime", "openvino")


def get(engine: str) -> ProfilerModule:
    """The profiler of an engine. Raises InputError if it has none."""
    if engine not in _MODULES:
        raise InputError(f"{engine} does not tell the times of operators here; those that do: {', '.join(_MODULES)}.")
    return cast(ProfilerModule, importlib.import_module(f"toolkit.profilers.{engine}"))
