"""Plots as SVG text: no script, no font, nothing loaded; readable in light and in dark."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 16, 48
_STYLE = (
    "<style>text{font:12px system-ui,sans-serif;fill:currentColor}"
    ".axis{stroke:currentColor;stroke-opacity:.35;fill:none}.grid{stroke:currentColor;stroke-opacity:.12}"
    ".main{fill:#2563eb}.other{fill:none;stroke:#64748b;stroke-width:1.5}.line{stroke:#2563eb;fill:none;"
    "stroke-dasharray:4 3}.floor{stroke:#b42318;stroke-dasharray:6 4}</style>"
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

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(y_title)} over {html.escape(x_title)}">{_STYLE}'
    ]
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
    parts.append(f'<text x="{right}" y="{_HEIGHT - 10}" text-anchor="end">{html.escape(x_title)}</text>')
    parts.append(f'<text x="{_LEFT + 8}" y="{_TOP + 10}">{html.escape(y_title)}</text>')
    if floor is not None:
        parts.append(f'<path class="floor" d="M{_LEFT} {y_of(floor)}H{right}"/>')
    line = " L".join(f"{x_of(dot.x)} {y_of(dot.y)}" for dot in dots if dot.main)
    if line:
        parts.append(f'<path class="line" d="M{line}"/>')
    for dot in dots:
        x, y = x_of(dot.x), y_of(dot.y)
        side, shift = ("end", -8) if x > (_LEFT + right) / 2 else ("start", 8)
        parts.append(f'<circle class="{"main" if dot.main else "other"}" cx="{x}" cy="{y}" r="4.5"/>')
        parts.append(f'<text x="{x + shift}" y="{y - 7}" text-anchor="{side}">{html.escape(dot.name)}</text>')
    return "".join(parts) + "</svg>"


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten between two numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [k * 10.0**power for power in powers for k in (1, 2, 5) if low <= k * 10.0**power <= high]
