"""Plots as SVG text, readable on a light and on a dark page. No plotting library."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

_ROW, _LABEL, _BAR, _NOTE, _TOP = 20, 330, 300, 150, 46  # pixels
_STYLE = """
    text { font: 12px sans-serif; fill: #222 }
    .title { font-weight: bold; font-size: 14px }
    .page { fill: #fff }
    .bar { fill: #2f6fb3 }
    .marked { fill: #c0562b }
    .axis { stroke: #888 }
    @media (prefers-color-scheme: dark) {
      text { fill: #ddd } .page { fill: #16181c } .bar { fill: #6aa6e8 } .marked { fill: #ec8a5e }
    }"""


def bars(title: str, rows: Sequence[tuple[str, float, str]], *, legend: str, marked: Sequence[str] = ()) -> str:
    """Horizontal bars from zero: a row is (label, length of the bar, note beside it). Negative values count as zero.

    `marked` labels have another colour; `legend` says what the bars and the colours mean.
    """
    height = _TOP + _ROW * len(rows) + 16
    width = _LABEL + _BAR + _NOTE
    largest = max((value for _, value, _ in rows), default=0.0) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"  <style>{_STYLE}\n  </style>",
        f'  <rect class="page" width="{width}" height="{height}"/>',
        f'  <text class="title" x="8" y="18">{escape(title)}</text>',
        f'  <text x="8" y="36">{escape(legend)}</text>',
        f'  <line class="axis" x1="{_LABEL}" y1="{_TOP - 2}" x2="{_LABEL}" y2="{_TOP + _ROW * len(rows)}"/>',
    ]
    for number, (label, value, note) in enumerate(rows):
        top = _TOP + _ROW * number
        size = max(value, 0.0) / largest * _BAR
        kind = "marked" if label in marked else "bar"
        parts += [
            f'  <text x="{_LABEL - 6}" y="{top + 13}" text-anchor="end">{escape(label)}</text>',
            f'  <rect class="{kind}" x="{_LABEL}" y="{top + 3}" width="{size:.1f}" height="{_ROW - 6}"/>',
            f'  <text x="{_LABEL + size + 6:.1f}" y="{top + 13}">{escape(note)}</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
