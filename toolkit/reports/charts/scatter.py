"""Points, whose areas are sizes, over a logarithmic axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.reports.charts.axis import is_narrow, log_ticks
from toolkit.reports.drawing import MARKS, Picture, grid, picture, role, series


@dataclass(frozen=True)
class Bubble:
    """A point of a scatter plot; `number` is its name in the table beside it. `solid` ones were measured."""

    number: int
    title: str
    x: float
    y: float
    size: float | None
    group: int
    solid: bool = True
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Limits:
    """A least value of the vertical axis, and a greatest one of the horizontal; each is drawn as a line."""

    floor: float | None = None
    most: float | None = None


def bubbles(
    name: str,
    points: Sequence[Bubble],
    titles: tuple[str, str],
    width: int,
    *,
    limits: Limits = Limits(),
    fronts: Sequence[Sequence[int]] = (),
) -> str:
    """A scatter plot with a logarithmic horizontal axis; areas are sizes. `fronts` are places of `points`; a line joins
    those of each."""
    height = 300 if is_narrow(width) else 400
    largest = max((point.size for point in points if point.size), default=1.0)
    with picture(width, height) as drawn:
        axes = drawn.axes(46, 14, width - 62, height - 62)
        grid(axes)
        axes.set_xscale("log")
        axes.set_xlabel(titles[0])
        axes.set_title(titles[1], loc="left", fontsize=10.5, color=role("ink"), pad=5)
        for front in fronts:
            ends = sorted((points[place].x, points[place].y) for place in front)
            axes.step([x for x, _ in ends], [y for _, y in ends], where="post", color=series(points[front[0]].group),
                      linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)  # fmt: skip
        for point in sorted(points, key=lambda each: -(each.size or 0)):
            _bubble(drawn, axes, point, largest, 900 if is_narrow(width) else 2200)
        limit_lines(axes, limits)
        log_ticks(axes)
        axes.margins(x=0.12, y=0.16)
        return drawn.svg(name)


def _bubble(drawn: Picture, axes: Any, point: Bubble, largest: float, most: float) -> None:
    area = max(70.0, most * (point.size or 0) / largest)
    color = series(point.group)
    if point.low is not None and point.high is not None:
        axes.plot([point.low, point.high], [point.y, point.y], color=color, linewidth=1.4, zorder=2)
    made = axes.scatter(
        [point.x], [point.y], s=area, marker=MARKS[point.group % len(MARKS)], zorder=3, linewidth=1.4,
        facecolor=color if point.solid else "none", edgecolor=color, alpha=None,
        linestyle="-" if point.solid else (0, (2, 2)),
    )  # fmt: skip
    if point.solid:
        made.set_alpha(0.28)
        axes.scatter([point.x], [point.y], s=area, marker=MARKS[point.group % len(MARKS)], zorder=3, linewidth=1.4,
                     facecolor="none", edgecolor=color)  # fmt: skip
    drawn.titled(made, point.title)
    radius = math.sqrt(area) / 2
    inside = radius > 9
    axes.annotate(
        str(point.number), (point.x, point.y), xytext=(0, 0) if inside else (radius * 0.75, radius * 0.75),
        textcoords="offset points", zorder=5, ha="center" if inside else "left", va="center" if inside else "bottom",
        fontsize=10, weight="bold", color=role("ink"),
    )  # fmt: skip


def limit_lines(axes: Any, limits: Limits) -> None:
    """Draw limits with their names."""
    if limits.floor is not None:
        axes.axhline(limits.floor, color=role("worse"), linewidth=1.3, linestyle=(0, (6, 3)), zorder=1)
        axes.annotate(
            "least score", (0.995, limits.floor), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            color=role("worse"), fontsize=10,
        )  # fmt: skip
    if limits.most is not None:
        axes.axvline(limits.most, color=role("worse"), linewidth=1.3, linestyle=(0, (6, 3)), zorder=1)
        axes.annotate(
            "budget ", (limits.most, 0.01), xycoords=("data", "axes fraction"), ha="right", va="bottom",
            color=role("worse"), fontsize=10,
        )  # fmt: skip
