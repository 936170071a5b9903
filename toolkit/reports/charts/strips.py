"""Plots below each other over one time axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.reports import text
from toolkit.reports.charts.axis import is_narrow, letters
from toolkit.reports.charts.lines import Curve
from toolkit.reports.drawing import DASHES, Picture, grid, picture, role, series


@dataclass(frozen=True)
class Strip:
    """One of several plots below each other over the same time axis."""

    title: str
    curves: Sequence[Curve]
    line: float | None = None


def strips(name: str, given: Sequence[Strip], x_title: str, width: int, at: float | None = None) -> str:
    """Plots below each other over one time axis; `at` is a moment to mark in all of them."""
    each, gap = (92 if is_narrow(width) else 110), 26
    rows = [len(strip.curves) if len(strip.curves) > 1 else 0 for strip in given]
    height = sum(each + gap + 15 * math.ceil(count / 2) for count in rows) + 36
    with picture(width, height) as drawn:
        top = 0.0
        for strip, count in zip(given, rows, strict=True):
            axes = drawn.axes(52, top + gap, width - 66, each - 8)
            grid(axes)
            for place, curve in enumerate(strip.curves):
                axes.plot(curve.x, curve.y, color=series(place), linewidth=1.5, linestyle=DASHES[place % len(DASHES)])
            if strip.line is not None:
                axes.axhline(strip.line, color=role("muted"), linewidth=1, linestyle=(0, (4, 3)))
            if at is not None:
                axes.axvline(at, color=role("worse"), linewidth=1.3, linestyle=(0, (2, 2)))
            axes.set_title(strip.title, loc="left", fontsize=10.5, color=role("ink"), pad=5)
            axes.locator_params(axis="y", nbins=4)
            top += gap + each
            last = strip is given[-1]
            if last:
                axes.set_xlabel(x_title)
                top += 22
            else:
                axes.tick_params(labelbottom=False)
            for place, curve in enumerate(strip.curves if count else ()):
                _named_line(drawn, curve.name, place, top + 6)
            top += 15 * math.ceil(count / 2)
        return drawn.svg(name)


def _named_line(drawn: Picture, name: str, place: int, top: float) -> None:
    """One of two names in a row of a legend."""
    from matplotlib.lines import Line2D

    left = 52 + (place % 2) * (drawn.width - 60) / 2
    y = 1 - (top + 15 * (place // 2)) / drawn.height
    drawn.figure.add_artist(
        Line2D(
            [left / drawn.width, (left + 22) / drawn.width], [y, y], color=series(place), linewidth=1.5,
            linestyle=DASHES[place % len(DASHES)],
        )
    )  # fmt: skip
    drawn.figure.text(
        (left + 27) / drawn.width, y, text.shortened(name, letters((drawn.width - 60) / 2 - 32)), va="center",
        color=role("ink"), fontsize=10,
    )  # fmt: skip
