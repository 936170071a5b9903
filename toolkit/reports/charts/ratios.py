"""Ratios with their intervals beside the line of equals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.reports import text
from toolkit.reports.charts.axis import LETTER, is_narrow, letters
from toolkit.reports.drawing import grid, picture, role


@dataclass(frozen=True)
class Interval:
    """A ratio with its interval; `side` is -1 if all of it lies below 1, 1 if above, else 0."""

    label: str
    value: float
    low: float
    high: float
    side: int
    note: str


def ratios(name: str, rows: Sequence[Interval], width: int) -> str:
    """Ratios with their intervals beside the line of equals, on a logarithmic axis; below 1 is better."""
    from matplotlib import ticker

    narrow = is_narrow(width)
    row = 40 if narrow else 26
    height = row * len(rows) + 46
    left = 8 if narrow else min(330.0, 16 + LETTER * max(len(each.label) for each in rows))
    noted = min(0.4 * width, 16 + LETTER * max(len(each.note) for each in rows))
    with picture(width, height) as drawn:
        axes = drawn.axes(left, 4, width - left - noted, row * len(rows))
        grid(axes, "x")
        axes.set_xscale("log")
        axes.set_ylim(len(rows), 0)
        ends = [end for each in rows for end in (each.low, each.high, 1.0)]
        axes.set_xlim(min(ends) / 1.1, max(ends) * 1.1)
        axes.axvline(1.0, color=role("ink"), linewidth=1.2)
        axes.tick_params(left=False, labelleft=False)
        axes.spines["left"].set_visible(False)
        for place, each in enumerate(rows):
            y = place + (0.72 if narrow else 0.5)
            color = role(("muted", "worse", "better")[each.side])
            axes.plot([each.low, each.high], [y, y], color=color, linewidth=2.4, solid_capstyle="butt")
            axes.plot([each.value], [y], ("o", "s", "D")[each.side], color=color, markersize=6)
            axes.annotate(
                each.note, (1, y), xycoords=("axes fraction", "data"), xytext=(8, 0), textcoords="offset points",
                ha="left", va="center", color=role("muted"), fontsize=10, annotation_clip=False,
            )  # fmt: skip
            axes.annotate(
                text.shortened(each.label, letters(width - 12 if narrow else left - 10)),
                (0, place + 0.25 if narrow else y), xycoords=("axes fraction", "data"),
                xytext=(0 if narrow else -8, 0), textcoords="offset points", ha="left" if narrow else "right",
                va="center", color=role("ink"), annotation_clip=False,
            )  # fmt: skip
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.xaxis.set_minor_locator(ticker.NullLocator())
        axes.set_xlabel("time of A / time of B")
        return drawn.svg(name)
