"""An estimate of the latency on a target that is not this machine: a roofline of every operation.

An operation takes at least the time of its arithmetic at the rate that its kernels reach, and of moving its bytes at
the bandwidth (Williams, Waterman and Patterson, 2009), and a launch besides. What kernels reach comes from the target's
calibration, which measured some there, or from its profile's peaks and the share of them that is usual; both are given
as a range, so the answer is an interval and everything that prints it says *estimate*.

    peaks.py          from the profile's peaks
    calibrated.py     from times that were measured on the device
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from toolkit.costs import Operation
from toolkit.estimate.calibrated import Calibrated
from toolkit.estimate.peaks import Peaked
from toolkit.estimate.seconds import Seconds
from toolkit.gates.speed import Latency
from toolkit.target import EngineSupport, Precision, Target


class Model(Protocol):
    """How long things take on one processor with one engine."""

    @property
    def call(self) -> Seconds:
        """What an inference costs beside its operations."""

    def seconds(self, operation: Operation) -> Seconds:
        """One operation, all its runs in one inference."""


@dataclass(frozen=True)
class Row:
    """What one operation costs, in milliseconds per inference."""

    operation: Operation
    ms: float
    low_ms: float
    high_ms: float

    def as_dict(self) -> dict[str, Any]:
        return {"ms": self.ms, "low_ms": self.low_ms, "high_ms": self.high_ms, **self.operation.as_dict()}


def latency(
    target: Target, engine: EngineSupport, precision: Precision, operations: Sequence[Operation]
) -> Latency | None:
    """Estimated milliseconds for one inference of a build of that precision, whose file has these operations.

    None if the target has neither a calibration of the engine nor a peak rate for the precision on the engine's
    processor, if it is not known what share of the peak models reach on such a processor, or if it is not known what an
    operation does.
    """
    model = _model(target, engine, precision, operations)
    if model is None or any(each.shape is None and each.runs for each in operations):
        return None
    total = sum((model.seconds(each) for each in operations), start=model.call)
    return Latency(total.likely * 1e3, "estimate", total.low * 1e3, total.high * 1e3)


def between(a: Latency, b: Latency, part: float) -> Latency:
    """The estimate that lies a part of the way from one to another; 0 is the first."""

    def mixed(first: float | None, second: float | None) -> float:
        return (first or 0.0) * (1 - part) + (second or 0.0) * part

    return Latency(mixed(a.ms, b.ms), "estimate", mixed(a.low_ms, b.low_ms), mixed(a.high_ms, b.high_ms))


def rows(
    target: Target, engine: EngineSupport, precision: Precision, operations: Sequence[Operation]
) -> list[Row] | None:
    """The operations that run, the most expensive first; those of which it is not known what they do are left out. None
    if the target says too little, as for `latency`."""
    model = _model(target, engine, precision, operations)
    if model is None:
        return None
    made = []
    for each in operations:
        if each.runs and each.shape is not None:
            found = model.seconds(each)
            made.append(Row(each, found.likely * 1e3, found.low * 1e3, found.high * 1e3))
    return sorted(made, key=lambda row: -row.ms)


def is_calibrated(target: Target, engine: EngineSupport) -> bool:
    """Whether estimates for an engine come from times that were measured on the target."""
    return engine.processor == "cpu" and target.calibrated(engine.name) is not None


def _model(
    target: Target, engine: EngineSupport, precision: Precision, operations: Sequence[Operation]
) -> Model | None:
    weights = sum(each.weight_bytes for each in operations)
    measured = target.calibrated(engine.name) if engine.processor == "cpu" else None
    if measured is not None:
        return Calibrated(measured, weights)
    return Peaked.of(target, engine, precision, weights)
