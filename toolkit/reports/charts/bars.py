"""Horizontal bars of parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.reports import text
from toolkit.reports.charts.axis import LETTER, is_narrow, letters
from toolkit.reports.drawing import Picture, picture, role, series

_ROW = 24


@dataclass(frozen=True)
class Bar:
    """A horizontal bar of parts, each (place of its colour, length), and a note at its end."""

    label: str
    parts: Sequence[tuple[int, float]]
    note: str
    marked: bool = False  # has a pattern as well as a colour
    title: str = ""


def bars(name: str, rows: Sequence[Bar], width: int, *, legend: Sequence[str] = (), most: float | None = None) -> str:
    """Horizontal bars from zero with their labels above them on a phone, else on their left. `legend` names the parts;
    `most` is drawn as a line."""
    narrow = is_narrow(width)
    row = _ROW + (15 if narrow else 0)
    lines = math.ceil(sum(len(each) * LETTER + 34 for each in legend) / (width - 10)) if legend else 0
    height = row * len(rows) + 10 + 18 * lines
    longest = max((len(each.label) for each in rows), default=0) * LETTER
    left = 6 if narrow else min(300, 16 + longest)
    noted = min(0.42 * width, max((len(each.note) for each in rows), default=0) * LETTER + 14)
    largest = max([sum(length for _, length in each.parts) for each in rows] + [most or 0.0]) or 1.0
    with picture(width, height) as drawn:
        axes = drawn.axes(left, 18 * lines + 2, width - left - noted, row * len(rows))
        axes.set_xlim(0, largest * 1.01)
        axes.set_ylim(len(rows), 0)
        axes.axis("off")
        shift = 0.68 if narrow else 0.5
        for place, each in enumerate(rows):
            _bar(drawn, axes, each, place + shift, 13 / row)
            if narrow:
                axes.annotate(
                    text.shortened(each.label, letters(width - 12)), (0, place + 0.2), ha="left", va="center",
                    color=role("ink"), annotation_clip=False,
                )  # fmt: skip
            else:
                axes.annotate(
                    text.shortened(each.label, letters(left - 10)), (0, place + shift), xytext=(-8, 0),
                    textcoords="offset points", ha="right", va="center", color=role("ink"), annotation_clip=False,
                )  # fmt: skip
        if most is not None:
            axes.axvline(most, color=role("worse"), linewidth=1.3, linestyle=(0, (6, 3)))
        _patches(drawn, legend)
        return drawn.svg(name)


# Of lines alone: matplotlib writes every dot of a pattern as a curve, 250 kB a plot.
_HATCHES = ("", "//", "\\\\", "x", "--", "|")


def _bar(drawn: Picture, axes: Any, bar: Bar, y: float, thickness: float) -> None:
    start = 0.0
    for color, length in bar.parts:
        (made,) = axes.barh(
            [y], [length], left=[start], height=thickness, color=series(color), linewidth=0.8,
            edgecolor=role("surface"), hatch=_HATCHES[color % len(_HATCHES)] or ("////" if bar.marked else ""),
        )  # fmt: skip
        if bar.title:
            drawn.titled(made, bar.title)
        start += length
    axes.annotate(
        bar.note, (start, y), xytext=(6, 0), textcoords="offset points", ha="left", va="center", color=role("muted"),
        fontsize=10, annotation_clip=False,
    )  # fmt: skip


def _patches(drawn: Picture, legend: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    x, y = 8.0, 10.0
    for place, each in enumerate(legend):
        needed = len(each) * LETTER + 34
        if x + needed > drawn.width and x > 8:
            x, y = 8.0, y + 18
        drawn.figure.add_artist(
            Rectangle(
                (x / drawn.width, 1 - (y + 5) / drawn.height), 12 / drawn.width, 10 / drawn.height,
                facecolor=series(place), edgecolor=role("surface"), hatch=_HATCHES[place % len(_HATCHES)],
                linewidth=0.8, transform=drawn.figure.transFigure,
            )
        )  # fmt: skip
        drawn.figure.text(
            (x + 17) / drawn.width, 1 - y / drawn.height, each, va="center", color=role("ink"), fontsize=10.5
        )
        x += needed
