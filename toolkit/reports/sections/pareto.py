"""Score over latency of everything that was answered and timed; areas are sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from toolkit.gates import score as score_gate
from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Tag
from toolkit.reports.data import Conversion, Point, Report
from toolkit.reports.drawing import MARK_NAMES
from toolkit.reports.sections.verdict import KINDS, latency_of

TITLE = "Score against latency"
WANTS = ("a score and a latency of at least two models", "toolkit report BUNDLE… record.json…")


@dataclass
class _Plot:
    """Points whose scores can be held against each other: of one task, by one name, on the same examples."""

    score_name: str
    points: list[charts.Bubble] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    groups: dict[str, int] = field(default_factory=dict)
    floors: set[float | None] = field(default_factory=set)
    limits: set[float | None] = field(default_factory=set)
    bundles: dict[str, None] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def add(self, name: str, where: str, point: Point, said: str, kind: str, outcome: str) -> None:
        if not point.latency_ms or point.score is None:
            return
        number = len(self.points) + 1
        title = f"{name}, {where}: {said}, {point.score:.4f}, {text.size(point.size_bytes)}"
        group = self.groups.setdefault(where, len(self.groups))
        self.points.append(
            charts.Bubble(
                number, title, point.latency_ms, point.score, point.size_bytes, group, kind == "measured",
                point.latency_low_ms, point.latency_high_ms,
            )
        )  # fmt: skip
        tag = Tag(kind, KINDS[kind])
        self.rows.append(
            (number, name, where, said, text.score(point.score), text.size(point.size_bytes), tag, outcome)
        )


def blocks(report: Report) -> list[Block]:
    """One plot over all bundles of the same examples and all devices: measured filled, estimated hollow."""
    plots = [plot for plot in _plots(report).values() if len(plot.points) > 1]
    return [_figure(plot, f": {' and '.join(plot.bundles)}" if len(plots) > 1 else "") for plot in plots]


def _figure(plot: _Plot, more: str) -> Figure:
    fronts = [
        front
        for group in set(plot.groups.values())
        if len(front := front_of([(p.x, p.y) if p.solid and p.group == group else None for p in plot.points])) > 1
    ]
    limits = charts.Limits(
        floor=plot.floors.pop() if len(plot.floors) == 1 else None,
        most=plot.limits.pop() if len(plot.limits) == 1 else None,
    )
    marks = "; ".join(f"{MARK_NAMES[place % len(MARK_NAMES)]}: {where}" for where, place in plot.groups.items())
    return Figure(
        f"{plot.score_name.capitalize()} against latency{more}",
        "Up and to the left is better; the larger the area, the larger the file. Filled: measured. Hollow and dashed: "
        "estimated, with its interval. A dashed line joins what nothing measured on its device beats in both. "
        f"{marks[:1].upper()}{marks[1:]}."
        f"{_left_out(plot)}",
        partial(
            charts.bubbles, "Score over latency", plot.points, ("milliseconds, mean", plot.score_name), limits=limits,
            fronts=fronts,
        ),
        Table(("", "model", "where", "latency", plot.score_name, "size", "kind", ""), plot.rows),
        key=[
            (str(number), f"{name}: {said}, {score}, {size}{'' if kind.text == 'measured' else f', {kind}'}")
            for number, name, _, said, score, size, kind, _ in plot.rows
        ],
    )  # fmt: skip


def _left_out(plot: _Plot) -> str:
    if not plot.left_out:
        return ""
    return f" Left out, as their scores are of fewer examples than the others': {', '.join(plot.left_out)}."


def _plots(report: Report) -> dict[tuple[str | None, ...], _Plot]:
    plots: dict[tuple[str | None, ...], _Plot] = {}
    benched: set[tuple[str, str | None]] = set()
    for record, label in zip(report.records, report.labels(), strict=True):
        conversion = report.conversion_of(record)
        name = record.bundle.score_name or "score"
        # Without its bundle nothing tells which examples the score is of.
        data = conversion.data if conversion else None
        plot = plots.setdefault((record.bundle.task, name, data), _Plot(name))
        plot.bundles.setdefault(record.bundle.name)
        _add_limits(plot, report, conversion)
        if record.latency is None:
            continue
        mean = record.latency.mean_ms
        point = Point(
            name=label, score=record.bundle.score, size_bytes=record.bundle.artifact_bytes, latency_ms=mean.value,
            latency_low_ms=mean.low, latency_high_ms=mean.high,
        )  # fmt: skip
        plot.add(label, record.device.title, point, f"{text.interval(mean)} ms", record.kind, "benchmarked")
        benched.add((record.bundle.content_hash, record.device.title))
    for conversion in report.conversions:
        plot = plots.setdefault((conversion.task, conversion.score_name, conversion.data), _Plot(conversion.score_name))
        _add_limits(plot, report, conversion)
        plot.bundles.setdefault(conversion.name)
        counted = conversion.result.score_examples if conversion.result else None
        made_on = conversion.made_on or "the machine of the conversion"
        for point in _judged(conversion):
            measured = point.latency_basis == "measured"
            if measured and point.name == conversion.chosen and (conversion.content_hash, made_on) in benched:
                continue
            where = made_on if measured else f"{conversion.target}, by its profile"
            name = f"{conversion.name}: {point.name}" if len(report.conversions) > 1 else point.name
            if point.score_examples not in (None, counted):
                plot.left_out.append(f"{name} ({point.score_examples})")
                continue
            kind = "measured" if measured else "estimated"
            outcome = point.outcome if point.kept else point.outcome or "undone"
            plot.add(name, where, point, latency_of(point), kind, outcome)
    return plots


def _add_limits(plot: _Plot, report: Report, conversion: Conversion | None) -> None:
    budgets = report.budgets_of(conversion)
    plot.limits.add(budgets.max_latency_ms)
    if budgets.min_score is not None:
        value, relative = score_gate.parse(budgets.min_score)
        before = conversion.float_score if conversion else None
        plot.floors.add(value if not relative else None if before is None else value * before)


def _judged(conversion: Conversion) -> list[Point]:
    """What a conversion judged, each once: the last stage's result is a candidate, too."""
    known = {(point.score, point.size_bytes) for point in conversion.candidates}
    return [
        *conversion.candidates,
        *(
            point
            for point in conversion.chain
            if (point.score, point.size_bytes) not in known and point.stage != "export"
        ),
    ]


def front_of(points: Sequence[tuple[float, float] | None]) -> list[int]:
    """Places of those points (latency, score) that no other is better than in one of both and as good in the other."""
    known = [(place, point) for place, point in enumerate(points) if point is not None]
    return [place for place, (x, y) in known if not any(a <= x and b >= y and (a, b) != (x, y) for _, (a, b) in known)]
