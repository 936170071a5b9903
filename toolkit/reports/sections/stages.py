"""What each stage bought: score, size and latency from the float checkpoint to the bundle."""

from __future__ import annotations

from functools import partial

from toolkit.gates import score as score_gate
from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Folded, Heading, Table, Tag, Text
from toolkit.reports.data import Conversion, Point, Report
from toolkit.reports.sections.verdict import latency_of

TITLE = "What did each stage buy?"
WANTS = ("a bundle, whose manifest and receipts say it", "toolkit report BUNDLE record.json")


def blocks(report: Report) -> list[Block]:
    """A waterfall for each bundle, and what was run."""
    made: list[Block] = []
    for conversion in report.conversions:
        if len(report.conversions) > 1:
            made.append(Heading(conversion.name))
        made += _of(conversion, report)
    return made


def _of(conversion: Conversion, report: Report) -> list[Block]:
    made: list[Block] = []
    chain = conversion.chain
    if len(chain) > 1:
        made.append(_waterfall(conversion, report))
    if conversion.behaviour:
        made.append(Text(f"Beside the float checkpoint: {conversion.behaviour}."))
    if conversion.validation:
        made.append(Text(f"Validation: {conversion.validation}."))
    folded: list[Block] = []
    if conversion.candidates:
        rows = [_row(point, conversion) for point in conversion.candidates]
        folded.append(Table(("candidate", "size", "score", "latency", "outcome"), rows))
    if conversion.tried:
        rows = [_row(point, conversion) for point in conversion.tried]
        folded.append(Table(("shape that was looked at", "size", "score", "latency", "outcome"), rows))
    if conversion.stages:
        stages = [
            (s.title, "from the cache" if s.cached else text.seconds(s.seconds), text.size(s.peak_rss_bytes), s.reason)
            for s in conversion.stages
        ]
        folded.append(Table(("step", "time", "peak memory", "why"), stages))
    if folded:
        made.append(Folded("Candidates, shapes, and every step that was run", folded))
    return made


def _row(point: Point, conversion: Conversion) -> tuple[object, ...]:
    outcome = Tag(point.outcome, "good") if point.name == conversion.chosen else point.outcome
    return (point.name, text.size(point.size_bytes), _score(point), latency_of(point), outcome)


def _score(point: Point) -> str:
    counted = f" (n={point.score_examples})" if point.score is not None and point.score_examples else ""
    return "-" if point.score is None else f"{point.score:.4f}{counted}"


def _waterfall(conversion: Conversion, report: Report) -> Figure:
    budgets = report.budgets_of(conversion)
    floor = None
    if budgets.min_score is not None and conversion.float_score is not None:
        floor = score_gate.floor(budgets.min_score, conversion.float_score)
    steps, rows = [], []
    before: Point | None = None
    for point in conversion.chain:
        size = "" if point.size_bytes is None else text.size(point.size_bytes)
        notes = (
            "" if point.score is None else f"{point.score:.4f}",
            _note(size, before.size_bytes if before else None, point.size_bytes),
            _latency_note(point, before),
        )
        values = (
            point.score,
            None if point.size_bytes is None else point.size_bytes / 1e6,
            point.latency_ms,
        )
        name = point.name if point.kept else f"{point.name} (undone)"
        steps.append(charts.Step(name, values, tuple(note or "not known" for note in notes), point.kept))
        rows.append((name, _score(point), notes[1] or text.NONE, notes[2] or text.NONE, point.outcome))
        before = point if point.kept else before
    basis = {point.latency_basis for point in conversion.chain if point.latency_basis}
    kind = "estimate, " if basis == {"estimate"} else ""
    panels = (
        charts.Panel(conversion.score_name, False, as_points=True, limit=floor),
        charts.Panel("size, MB", True, limit=budgets.max_size_mb),
        charts.Panel(f"latency, {kind}ms", True, limit=budgets.max_latency_ms),
    )
    said = f"{conversion.score_how}. Latency: {conversion.latency_how}. Dashed: the least score and the budgets."
    undone = " Hollow: undone." if any(not point.kept for point in conversion.chain) else ""
    return Figure(
        f"{conversion.name}, stage by stage",
        f"Score: {said}{undone}",
        partial(charts.waterfall, f"{conversion.name}: score, size and latency after each stage", steps, panels),
        Table(("stage", conversion.score_name, "size", "latency", "outcome"), rows),
    )


def _note(value: str, before: float | None, after: float | None) -> str:
    changed = text.change(before, after)
    return f"{value} ({changed})" if changed else value


def _latency_note(point: Point, before: Point | None) -> str:
    """A latency, and its change against what was timed in turn with it."""
    if point.latency_ms is None:
        return ""
    if point.latency_basis == "estimate":
        return latency_of(point).removeprefix("estimate ")
    base = point.before_ms if point.before_ms is not None else before.latency_ms if before else None
    return _note(text.milliseconds(point.latency_ms), base, point.latency_ms)
