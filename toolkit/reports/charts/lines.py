"""Lines over a common axis, and distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.reports import text
from toolkit.reports.charts.axis import is_narrow, letters, log_ticks
from toolkit.reports.charts.scatter import Limits, limit_lines
from toolkit.reports.drawing import DASHES, MARKS, Picture, grid, picture, role, series


@dataclass(frozen=True)
class Curve:
    """A line with its marks; `low` and `high` are the ends of intervals, `changes` places to point at, with what
    to say there."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    changes: Sequence[tuple[int, str]] = ()
    dashed: bool = False


def curves(
    name: str,
    given: Sequence[Curve],
    titles: tuple[str, str],
    width: int,
    *,
    marks: bool = True,
    from_zero: bool = True,
    ticks: Sequence[tuple[float, str]] = (),
    most: float | None = None,
) -> str:
    """Lines over a common horizontal axis, with their names below."""
    legend = len(given) > 1
    rows = len(given) if legend else 0
    height = (220 if is_narrow(width) else 270) + 17 * rows
    with picture(width, height) as drawn:
        axes = drawn.axes(52, 22, width - 66, height - 66 - 17 * rows)
        grid(axes)
        for place, curve in enumerate(given):
            _curve(axes, curve, place, marks)
        if most is not None:
            axes.axhline(most, color=role("worse"), linewidth=1.3, linestyle=(0, (6, 3)))
        if from_zero:
            axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.04)
        axes.set_xlabel(titles[0])
        axes.set_title(titles[1], loc="left", fontsize=10.5, color=role("ink"), pad=6)
        if ticks:
            axes.set_xticks([at for at, _ in ticks], [label for _, label in ticks])
        if legend:
            _legend(drawn, [curve.name for curve in given], marks, height - 17 * rows - 2)
        return drawn.svg(name)


def _curve(axes: Any, curve: Curve, place: int, marks: bool) -> None:
    color = series(place)
    if len(curve.low):
        axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.18, linewidth=0)
        axes.vlines(curve.x, curve.low, curve.high, color=color, linewidth=1.4)
    axes.plot(
        curve.x, curve.y, color=color, linewidth=1.7, linestyle=DASHES[place % len(DASHES)],
        marker=MARKS[place % len(MARKS)] if marks else None, markersize=5,
    )  # fmt: skip
    for at, said in curve.changes:
        axes.annotate(
            said, ((curve.x[at] + curve.x[at - 1]) / 2, 1), xycoords=("data", "axes fraction"), xytext=(3, -3),
            textcoords="offset points", ha="left", va="top", color=role("worse"), fontsize=10, annotation_clip=False,
        )  # fmt: skip
        axes.axvline((curve.x[at] + curve.x[at - 1]) / 2, color=role("worse"), linewidth=1.2, linestyle=(0, (2, 2)))


def _legend(drawn: Picture, names: Sequence[str], marks: bool, top: float) -> None:
    """A line below the plot for each series: dash, mark and name, as they are drawn."""
    from matplotlib.lines import Line2D

    for place, each in enumerate(names):
        y = 1 - (top + 17 * place + 8) / drawn.height
        drawn.figure.add_artist(
            Line2D(
                [14 / drawn.width, 42 / drawn.width], [y, y], color=series(place), linewidth=1.7,
                linestyle=DASHES[place % len(DASHES)], marker=MARKS[place % len(MARKS)] if marks else None,
                markersize=5, markevery=[0] if marks else None,
            )
        )  # fmt: skip
        drawn.figure.text(
            50 / drawn.width, y, text.shortened(each, letters(drawn.width - 56)), va="center", color=role("ink"),
            fontsize=10.5,
        )  # fmt: skip


def distributions(name: str, given: Sequence[tuple[str, Sequence[float]]], width: int, most: float | None) -> str:
    """The share of queries that took no longer than a time: a curve for each of the given percentiles 0 to 100."""
    rows = len(given) if len(given) > 1 else 0
    height = (230 if is_narrow(width) else 290) + 17 * rows
    with picture(width, height) as drawn:
        axes = drawn.axes(46, 22, width - 60, height - 66 - 17 * rows)
        grid(axes)
        axes.set_xscale("log")
        for place, (_, quantiles) in enumerate(given):
            color = series(place)
            axes.plot(quantiles, range(101), color=color, linewidth=1.7, linestyle=DASHES[place % len(DASHES)])
            for percentile in (50, 90, 99):
                axes.plot([quantiles[percentile]], [percentile], MARKS[place % len(MARKS)], color=color, markersize=5)
        limit_lines(axes, Limits(most=most))
        axes.set_yticks([0, 25, 50, 75, 90, 99], ["0", "25", "50", "75", "90", "99"])
        log_ticks(axes)
        axes.set_xlabel("milliseconds")
        axes.set_title("% of the queries", loc="left", fontsize=10.5, color=role("ink"), pad=6)
        if rows:
            _legend(drawn, [label for label, _ in given], True, height - 17 * rows - 2)
        return drawn.svg(name)
