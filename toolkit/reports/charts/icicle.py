"""Parts within parts, as wide as their share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from toolkit.reports import text
from toolkit.reports.charts.axis import LETTER, letters
from toolkit.reports.drawing import SERIES, Picture, picture, role, series


@dataclass
class Node:
    """A part of a model and the time that it takes; `parts` lie inside it."""

    name: str
    path: str
    value: float = 0.0
    parts: dict[str, Node] = field(default_factory=dict)


def icicle(name: str, root: Node, width: int, *, depth: int = 9) -> str:
    """The time of every part of a model, each below the part that holds it and as wide as its share."""
    levels = min(depth, _levels(root))
    row = 25
    with picture(width, levels * row + 2) as drawn:
        axes = drawn.axes(1, 1, width - 2, levels * row)
        axes.set_xlim(0, root.value)
        axes.set_ylim(levels, 0)
        axes.axis("off")
        _parts(drawn, axes, root, 0.0, 0, levels, root.value, {})
        return drawn.svg(name, halo=False)


def _levels(node: Node) -> int:
    return 1 + max((_levels(each) for each in node.parts.values()), default=0)


def _parts(
    drawn: Picture, axes: Any, node: Node, left: float, level: int, levels: int, whole: float, known: dict[str, int]
) -> None:
    """A part and what lies in it. Parts of the same name have the same colour, so that layers look alike."""
    share = node.value / whole
    color = known.setdefault("" if node.name.isdigit() else node.name, len(known)) if level else len(SERIES) - 1
    pixels = share * (drawn.width - 2)
    (made,) = axes.barh(
        [level + 0.5], [node.value], left=[left], height=0.94, facecolor=series(color), alpha=0.3 if level % 2 else 0.2,
        edgecolor=role("surface"), linewidth=0.8,
    )  # fmt: skip
    drawn.titled(made, f"{node.path or node.name}: {text.milliseconds(node.value)}, {100 * share:.1f} %")
    if pixels > 12 + LETTER * min(len(node.name), 7):
        axes.annotate(
            text.shortened(node.name, letters(pixels - 8)), (left + node.value / 2, level + 0.5), ha="center",
            va="center", color=role("ink"), fontsize=10,
        )  # fmt: skip
    if level + 1 >= levels:
        return
    for part in node.parts.values():
        if part.value / whole * drawn.width >= 1:  # narrower ones cannot be seen
            _parts(drawn, axes, part, left, level + 1, levels, whole, known)
        left += part.value
