"""Shapes that the compression chain may make of a checkpoint, and what each costs on the target."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.gates.speed import Latency
from toolkit.recipe import Narrow

WHOLE = Narrow()


@dataclass(frozen=True)
class Shape:
    """What the chain may make of a checkpoint."""

    layers: int  # 0: they are not counted
    narrow: Narrow
    coverage: float  # of the training tokens by the vocabulary; 1: it is not trimmed

    def __str__(self) -> str:
        layers = f"{self.layers} layer" + ("s" if self.layers > 1 else "") if self.layers else ""
        tokens = f"vocabulary {self.coverage:.1%}" if self.coverage < 1 else ""
        return ", ".join(part for part in (layers, str(self.narrow), tokens) if part) or "as it was"


@dataclass
class Point:
    """A shape that was looked at: what it costs, what it answers if it was trained, and what became of it."""

    shape: Shape
    size_bytes: int
    latency: Latency | None
    memory_bytes: int | None = None  # that count against a budget
    times: list[list[float]] = field(default_factory=list)  # seconds by round and example
    score: float | None = None
    outcome: str = ""

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": str(self.shape),
            "layers": self.shape.layers,
            "ffn_pruned": self.shape.narrow.ffn,
            "heads_pruned": self.shape.narrow.heads,
            "channels_pruned": self.shape.narrow.channels,
            "coverage": self.shape.coverage,
            "size_bytes": self.size_bytes,
            "latency_ms": self.latency.ms if self.latency else None,
            "latency_kind": self.latency.kind if self.latency else None,
            "memory_bytes": self.memory_bytes,
            "score": self.score,
            "outcome": self.outcome,
        }


def along(first: Point, second: Point, shape: Shape) -> Point:
    """What a shape costs that differs from two others in its layers only: every layer costs the same."""
    share = (shape.layers - first.shape.layers) / (second.shape.layers - first.shape.layers)

    def of(a: float, b: float) -> float:
        return a + (b - a) * share

    latency = None
    if first.latency is not None and second.latency is not None:
        low, high = (
            None if a is None or b is None else of(a, b)
            for a, b in ((first.latency.low_ms, second.latency.low_ms), (first.latency.high_ms, second.latency.high_ms))
        )
        latency = Latency(of(first.latency.ms, second.latency.ms), first.latency.kind, low, high)
    memory = None
    if first.memory_bytes is not None and second.memory_bytes is not None:
        memory = round(of(first.memory_bytes, second.memory_bytes))
    rounds = zip(first.times, second.times, strict=True)
    times = [[of(a, b) for a, b in zip(*pair, strict=True)] for pair in rounds]
    return Point(shape, round(of(first.size_bytes, second.size_bytes)), latency, memory, times)
