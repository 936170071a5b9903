"""What each of several steps changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.reports import text
from toolkit.reports.charts.axis import LETTER, is_narrow, letters
from toolkit.reports.drawing import Picture, picture, role


@dataclass(frozen=True)
class Step:
    """A row of a waterfall: a value per panel, None where it is not known. `kept` is False for what was undone."""

    name: str
    values: Sequence[float | None]
    notes: Sequence[str]
    kept: bool = True


@dataclass(frozen=True)
class Panel:
    """A quantity of a waterfall. Bars begin at zero; of a quantity `as_points` the value is a point on an axis that
    does not."""

    title: str
    lower_is_better: bool
    as_points: bool = False
    limit: float | None = None


def waterfall(name: str, steps: Sequence[Step], panels: Sequence[Panel], width: int) -> str:
    """What each step changed, a panel for each quantity: side by side, on a phone one below the other."""
    if is_narrow(width):
        row, head = 38, 26
        height = len(panels) * (row * len(steps) + head)
        with picture(width, height) as drawn:
            for place, panel in enumerate(panels):
                axes = drawn.axes(8, place * (row * len(steps) + head) + head, width - 104, row * len(steps) - 6)
                _panel(drawn, axes, steps, place, panel, labels_above=True)
            return drawn.svg(name)
    row, head, left = 38, 24, min(210.0, 14 + LETTER * max(len(step.name) for step in steps))
    height = row * len(steps) + head + 8
    each = (width - left) / len(panels)
    with picture(width, height) as drawn:
        for place, panel in enumerate(panels):
            axes = drawn.axes(left + place * each + 4, head, each - 92, row * len(steps))
            _panel(drawn, axes, steps, place, panel, labels_above=False)
        for place, step in enumerate(steps):
            drawn.figure.text(
                (left - 8) / width, 1 - (head + row * (place + 0.5)) / height, _wrapped(step.name, letters(left - 10)),
                ha="right", va="center", color=role("ink"), fontsize=10.5,
            )  # fmt: skip
        return drawn.svg(name)


def _wrapped(name: str, most: int) -> str:
    """At most two lines."""
    import textwrap

    lines = textwrap.wrap(name, most)
    return "\n".join(lines if len(lines) <= 2 else [lines[0], text.shortened(" ".join(lines[1:]), most)])


def _panel(drawn: Picture, axes: Any, steps: Sequence[Step], place: int, panel: Panel, *, labels_above: bool) -> None:
    """One quantity of a waterfall: a bar per step from what was before it to what it left."""
    axes.set_ylim(len(steps), 0)
    axes.spines["bottom"].set_visible(False)
    axes.spines["left"].set_visible(not panel.as_points)
    axes.tick_params(left=False, labelleft=False, bottom=False, labelbottom=False)
    axes.set_title(panel.title, loc="left", fontsize=10.5, weight="bold", color=role("ink"), pad=7)
    known = [value for step in steps if (value := step.values[place]) is not None]
    limits = [*known, *([panel.limit] if panel.limit is not None else [])]
    low, high = (
        (min(limits, default=0.0), max(limits, default=1.0)) if panel.as_points else (0.0, max(limits, default=1.0))
    )
    margin = 0.06 * ((high - low) or abs(high) or 1.0)
    axes.set_xlim(low - margin if panel.as_points else 0, high + margin)
    if panel.limit is not None:
        axes.axvline(panel.limit, color=role("worse"), linewidth=1.2, linestyle=(0, (6, 3)), zorder=1)
    y_of = 0.66 if labels_above else 0.5
    before: float | None = None
    for number, step in enumerate(steps):
        y, value = number + y_of, step.values[place]
        if labels_above:
            axes.annotate(
                text.shortened(step.name, letters(drawn.width - 16)), (axes.get_xlim()[0], number + 0.2), ha="left",
                va="center", color=role("ink"), annotation_clip=False,
            )  # fmt: skip
        if value is not None:
            _stepped(axes, y, before, value, step.kept, panel, last=number == len(steps) - 1)
        at = axes.get_xlim()[0] if value is None else max(value, before or value) if not panel.as_points else value
        axes.annotate(
            step.notes[place], (at, y), xytext=(7, 0), textcoords="offset points", ha="left", va="center",
            color=role("muted"), fontsize=10, annotation_clip=False,
        )  # fmt: skip
        before = value if value is not None and step.kept else before


def _stepped(axes: Any, y: float, before: float | None, value: float, kept: bool, panel: Panel, *, last: bool) -> None:
    improves = before is not None and (value < before) == panel.lower_is_better
    color = role("muted") if before is None or value == before else role("better") if improves else role("worse")
    if panel.as_points:
        if before is not None:
            axes.plot([before, value], [y, y], color=color, linewidth=2, linestyle="-" if kept else (0, (2, 2)))
        axes.plot(
            [value], [y], "o" if kept else "X", color=color, markersize=7, markerfacecolor=color if kept else "none"
        )
        return
    if before is None:
        axes.barh([y], [value], height=0.34, color=color)
        return
    axes.barh(
        [y], [abs(before - value)], left=[min(before, value)], height=0.34, color=color if kept else "none",
        edgecolor=color, linestyle="-" if kept else (0, (2, 2)), hatch="" if improves or not kept else "////",
    )  # fmt: skip
    if kept:
        axes.barh(
            [y], [min(before, value)], height=0.34, color=role("muted"), alpha=0.35 if last else 0.18, linewidth=0
        )
