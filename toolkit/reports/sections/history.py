"""The same measurement over commits, with its intervals."""

from __future__ import annotations

from functools import partial

from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Folded, Table, Tag, Text
from toolkit.reports.data import Change, Report, Series

TITLE = "Over time"
WANTS = ("records of more than one day, or a folder of them under git", "toolkit report --history FOLDER")


def blocks(report: Report) -> list[Block]:
    """A curve per series; a change is marked only where intervals say so."""
    made: list[Block] = []
    for series in report.history:
        made += _of(series)
    if report.left_out:
        rows = [(said,) for said in report.left_out]
        made.append(Folded(f"{len(rows)} records that were left out", [Table(("why",), rows)]))
    return made


def _of(series: Series) -> list[Block]:
    changes = {change.place: change for change in series.changes}
    rows = []
    for place, run in enumerate(series.runs):
        said: Tag | str = ""
        if place in changes:
            change = changes[place]
            sign = "▲" if change.ratio > 1 else "▼"
            said = Tag(f"{sign} {_said(change)}", "bad" if change.ratio > 1 else "good")
        rows.append(
            (
                run.when, run.commit or "-", run.subject or "-",
                f"{text.number(run.value, 4)} ({text.number(run.low, 4)} to {text.number(run.high, 4)})",
                text.NONE if run.floor_percent is None else f"{run.floor_percent:g} %", run.toolkit, said,
            )
        )  # fmt: skip
    named = [run.commit[:7] if run.commit else run.when[:10] for run in series.runs]
    step = -(-len(named) // 6)
    ticks = [(float(place), named[place]) for place in range(0, len(named), step)]
    marked = [(place, _said(change)) for place, change in changes.items()]
    curve = charts.Curve(
        series.name, [float(place) for place in range(len(series.runs))], [run.value for run in series.runs],
        [run.low for run in series.runs], [run.high for run in series.runs], marked,
    )  # fmt: skip
    kind = "" if series.kind == "measured" else f" These are {series.kind}."
    counted = len(series.changes)
    found = (
        "No change that its intervals tell." if not counted else f"{counted} change{'s' if counted > 1 else ''} marked."
    )
    return [
        Text(f"{series.name} on {series.device}: {len(series.runs)} runs. {found}{kind}"),
        Figure(
            f"{series.name} on {series.device}: {series.what}",
            f"{series.how}. Bars: 95 % intervals. Dotted red: from here on intervals, widened by the noise of the "
            "runs, no longer meet those before.",
            partial(charts.curves, f"{series.name}: {series.what} over time", [curve], ("run", series.unit),
                    ticks=ticks, from_zero=False),
            Table(
                ("when", "commit", "what", f"{series.what}, {series.unit}", "noise floor", "toolkit", "change"), rows
            ),
        ),
    ]  # fmt: skip


def _said(change: Change) -> str:
    """By how much, and whether another run says the same."""
    return f"{100 * (change.ratio - 1):+.1f} %" + ("" if change.confirmed else ", to be confirmed")
