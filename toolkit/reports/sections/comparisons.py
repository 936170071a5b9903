"""Which of two builds is faster: ratios of their times with intervals."""

from __future__ import annotations

from functools import partial

from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Tag, Text
from toolkit.reports.data import Report
from toolkit.reports.sections.verdict import KINDS

TITLE = "Builds against each other"
WANTS = ("a comparison", "toolkit compare A B -o comparison.json")
_SIDES = {"faster": -1, "slower": 1, "undecided": 0}
_TAGS = {
    "faster": Tag("✓ faster", "good"),
    "slower": Tag("✗ slower", "bad"),
    "undecided": Tag("? undecided", "unknown"),
}


def blocks(report: Report) -> list[Block]:
    """One row per pair. Ratios whose interval holds 1 are undecided."""
    found = [*report.all_pairs(), *(pair for each in report.conversions for pair in each.pairs)]
    if not found:
        return []
    rows = [
        (
            each.a, each.b, f"{text.number(each.ratio)} ({text.number(each.low)} to {text.number(each.high)})",
            _TAGS[each.verdict], each.where, Tag(each.kind, KINDS[each.kind]), each.source,
        )
        for each in found
    ]  # fmt: skip
    drawn = [
        charts.Interval(
            f"{each.a} / {each.b}" + ("" if each.kind == "measured" else f" ({each.kind})"),
            each.ratio, each.low, each.high, _SIDES[each.verdict], f"{each.ratio:.2f}x, {each.verdict}",
        )
        for each in found
        if 0 < each.low <= each.high
    ]  # fmt: skip
    noise = [
        f"{each.bundles[0].name} against itself: within {each.noise.floor_percent:g} %"
        for each in report.comparisons
        if each.noise is not None and each.bundles
    ]
    failures = [each.failure.error for each in report.comparisons if each.failure is not None]
    made: list[Block] = [Text(said, kind="warning") for said in failures]
    table = Table(("A", "B", "time of A / B", "A is", "where", "kind", "from"), rows)
    if drawn:
        said = "Timed in turn on the same examples, with 95 % intervals; left of 1 A is faster. Round: undecided."
        return [
            *made,
            Figure(
                "Time of one build over that of another",
                " ".join([said, *(f"{each}." for each in noise)]),
                partial(charts.ratios, "Ratios of times", drawn),
                table,
            ),
        ]
    return [*made, table]
