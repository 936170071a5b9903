"""How the time of an inference grows with the length and the batch, and shrinks with threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from toolkit.bench.record import SweepPoint
from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Tag
from toolkit.reports.data import Report
from toolkit.reports.sections.verdict import KINDS

TITLE = "Length, batch and threads"
WANTS = ("a sweep", "toolkit bench BUNDLE --sweep length=16,32,64,128 -o record.json")


@dataclass(frozen=True)
class _Axis:
    """What is varied; `of` takes it from a point, `rest` is what must not vary with it."""

    name: str
    title: str
    of: Callable[[SweepPoint], int | None]
    rest: Callable[[SweepPoint], tuple[int | None, ...]]


_AXES = (
    _Axis("length", "Time over input length", lambda p: p.length, lambda p: (p.threads, p.batch)),
    _Axis("batch", "Time over batch", lambda p: p.batch, lambda p: (p.threads, p.length)),
    _Axis("threads", "Time over threads", lambda p: p.threads, lambda p: (p.batch, p.length)),
)


def blocks(report: Report) -> list[Block]:
    """A plot per axis that was varied."""
    made: list[Block] = []
    for axis in _AXES:
        curves, rows = [], []
        for record, label in zip(report.records, report.labels(), strict=True):
            for points in _varied(axis, record.sweep or ()):
                named = label if record.kind == "measured" else f"{label} ({record.kind})"
                curves.append(_curve(axis, named, points))
                rows += [
                    (
                        label, axis.of(p), text.interval(p.inference.p50_ms), text.interval(p.inference.p99_ms),
                        text.number(p.examples_per_s), Tag(record.kind, KINDS[record.kind]),
                    )
                    for p in points
                ]  # fmt: skip
        if curves:
            ticks = sorted({value for curve in curves for value in curve.x})
            few = ticks if len(ticks) <= 8 else ticks[:: -(-len(ticks) // 8)]
            made.append(
                Figure(
                    axis.title,
                    "p50 of the inference alone, on inputs that were encoded beforehand, with 95 % intervals.",
                    partial(
                        charts.curves, axis.title, curves, (axis.name, "milliseconds"),
                        ticks=[(value, f"{value:g}") for value in few],
                    ),
                    Table(("", axis.name, "p50, ms", "p99, ms", "examples per second", "kind"), rows),
                )
            )  # fmt: skip
    return made


def _varied(axis: _Axis, points: Sequence[SweepPoint]) -> list[list[SweepPoint]]:
    """Those points among which the axis alone differs, in its order."""
    groups: dict[tuple[int | None, ...], dict[int, SweepPoint]] = {}
    for point in points:
        value = axis.of(point)
        if value is not None:
            groups.setdefault(axis.rest(point), {})[value] = point
    return [[found[value] for value in sorted(found)] for found in groups.values() if len(found) > 1]


def _curve(axis: _Axis, name: str, points: Sequence[SweepPoint]) -> charts.Curve:
    p50 = [point.inference.p50_ms for point in points]
    return charts.Curve(
        name, [float(axis.of(point) or 0) for point in points], [value.value for value in p50],
        [value.low for value in p50], [value.high for value in p50],
    )  # fmt: skip
