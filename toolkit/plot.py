"""Plots as SVG text, readable on a light and on a dark page. No script, no font, no plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_ROW, _LABEL, _BAR, _NOTE, _HEAD = 20, 330, 300, 150, 46  # of bars, in pixels
_WIDTH, _HEIGHT = 760, 420  # of a scatter plot
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 24, 48
_LETTER = 6.4  # about the width of one
_STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #222 }
    .title { font-weight: bold; font-size: 14px }
    .page { fill: #fff }
    .bar, .main { fill: #2f6fb3 }
    .marked { fill: #c0562b }
    .other { fill: none; stroke: #777; stroke-width: 1.5 }
    .axis { stroke: #888; fill: none }
    .grid { stroke: #8883 }
    .line { stroke: #2f6fb3; fill: none; stroke-dasharray: 4 3 }
    .floor { stroke: #c0562b; stroke-dasharray: 6 4 }
    @media (prefers-color-scheme: dark) {
      text { fill: #ddd } .page { fill: #16181c } .bar, .main { fill: #6aa6e8 } .marked { fill: #ec8a5e }
      .line { stroke: #6aa6e8 } .floor { stroke: #ec8a5e } .other { stroke: #aaa }
    }"""


def _opening(width: int, height: int, name: str) -> str:
    """The start of a picture: its size, its style and the page that it lies on."""
    quoted = escape(name, {chr(34): "&quot;"})
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{quoted}">\n  <style>{_STYLE}\n  </style>\n'
        f'  <rect class="page" width="{width}" height="{height}"/>'
    )


@dataclass(frozen=True)
class Dot:
    """A named point; `main` ones are filled, and a dashed line joins them in their order."""

    name: str
    x: float
    y: float
    main: bool = True


def _steps(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`."""
    size = 10 ** math.floor(math.log10((high - low) / 4))
    step = min((size * k for k in (1, 2, 5, 10)), key=lambda each: abs((high - low) / each - 5))
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def scatter(dots: Sequence[Dot], x_title: str, y_title: str, floor: float | None = None) -> str:
    """A scatter plot as an SVG element; the horizontal axis is logarithmic. `floor` is drawn as a line.

    Raises ValueError if there is no dot, or one whose x is not above 0.
    """
    if not dots or min(dot.x for dot in dots) <= 0:
        raise ValueError("A scatter plot takes at least one dot, and x above 0.")
    xs = [math.log10(dot.x) for dot in dots]
    ys = [dot.y for dot in dots] + ([] if floor is None else [floor])
    x_low, x_high = min(xs) - 0.08, max(xs) + 0.08
    margin = max((max(ys) - min(ys)) * 0.1, 1e-3)
    y_low, y_high = min(ys) - margin, max(ys) + margin

    def x_of(value: float) -> float:
        share = (math.log10(value) - x_low) / (x_high - x_low)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y_of(value: float) -> float:
        return round(_HEIGHT - _BOTTOM - (value - y_low) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM), 1)

    parts = [_opening(_WIDTH, _HEIGHT, f"{y_title} over {x_title}")]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value in _steps(y_low, y_high):
        y = y_of(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {y}H{right}"/><text x="{_LEFT - 8}" y="{y + 4}" ')
        parts.append(f'text-anchor="end">{value:g}</text>')
    for value in _ticks(10**x_low, 10**x_high):
        x = x_of(value)
        parts.append(f'<path class="grid" d="M{x} {_TOP}V{bottom}"/><text x="{x}" y="{bottom + 18}" ')
        parts.append(f'text-anchor="middle">{value:g}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>')
    parts.append(f'<text x="{right}" y="{_HEIGHT - 10}" text-anchor="end">{escape(x_title)}</text>')
    parts.append(f'<text x="{_LEFT + 8}" y="{_TOP + 10}">{escape(y_title)}</text>')
    if floor is not None:
        parts.append(f'<path class="floor" d="M{_LEFT} {y_of(floor)}H{right}"/>')
    line = " L".join(f"{x_of(dot.x)} {y_of(dot.y)}" for dot in dots if dot.main)
    if line:
        parts.append(f'<path class="line" d="M{line}"/>')
    placed = [(x_of(dot.x) - 6, y_of(dot.y) - 6, x_of(dot.x) + 6, y_of(dot.y) + 6) for dot in dots]
    for dot in dots:
        x, y = x_of(dot.x), y_of(dot.y)
        left, base = _free_place(len(dot.name) * _LETTER, x, y, placed)
        parts.append(f'<circle class="{"main" if dot.main else "other"}" cx="{x}" cy="{y}" r="4.5"/>')
        parts.append(f'<text x="{left:.1f}" y="{base:.1f}">{escape(dot.name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _free_place(
    width: float, x: float, y: float, placed: list[tuple[float, float, float, float]]
) -> tuple[float, float]:
    """Where a dot's name begins, and its base line: near the dot, on no other name or dot. Adds it to `placed`."""
    right = x < (_LEFT + _WIDTH - _RIGHT) / 2
    choices = [
        (x + 8 if side else x - 8 - width, y + step)
        for step in (-7, 16, -21, 30, -35, 44, -49, 58, -63, 72, -77, 86)
        for side in (right, not right)
    ]
    for left, base in choices:
        box = (left, base - 11, left + width, base + 3)
        inside = left > _LEFT and left + width < _WIDTH and _TOP < base < _HEIGHT - _BOTTOM
        if inside and not any(
            box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in placed
        ):
            placed.append(box)
            return left, base
    return choices[0]


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two numbers; round numbers where those would be too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    found = [k * 10.0**power for power in powers for k in (1, 2, 5) if low <= k * 10.0**power <= high]
    return found if len(found) > 2 else _steps(low, high)


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, legend: str, marked: Sequence[str] = ()) -> str:
    """Horizontal bars from zero: a row is (label, length of the bar, note beside it). Negative values count as zero.

    `marked` labels have another colour; `legend` says what the bars and the colours mean.
    """
    height = _HEAD + _ROW * len(rows) + 16
    width = _LABEL + _BAR + _NOTE
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    parts = [
        _opening(width, height, title),
        f'  <text class="title" x="8" y="18">{escape(title)}</text>',
        f'  <text x="8" y="36">{escape(legend)}</text>',
        f'  <line class="axis" x1="{_LABEL}" y1="{_HEAD - 2}" x2="{_LABEL}" y2="{_HEAD + _ROW * len(rows)}"/>',
    ]
    for number, (label, value, note) in enumerate(rows):
        top = _HEAD + _ROW * number
        size = max(value, 0.0) / largest * _BAR
        kind = "marked" if label in marked else "bar"
        parts += [
            f'  <text x="{_LABEL - 6}" y="{top + 13}" text-anchor="end">{escape(label)}</text>',
            f'  <rect class="{kind}" x="{_LABEL}" y="{top + 3}" width="{size:.1f}" height="{_ROW - 6}"/>',
            f'  <text x="{_LABEL + size + 6:.1f}" y="{top + 13}">{escape(note)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
