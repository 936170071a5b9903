"""What several kinds of plots share: how wide text is, and readable numbers on a logarithmic axis."""

from __future__ import annotations

import math
from typing import Any

from toolkit.reports.blocks import NARROW

LETTER = 6.3  # about the width of one at 10 px


def is_narrow(width: float) -> bool:
    """Whether a plot is for a phone."""
    return width <= NARROW


def letters(pixels: float) -> int:
    """How many of them have room."""
    return max(4, int(pixels / LETTER))


def log_ticks(axes: Any) -> None:
    """Numbers that can be read, few enough not to meet."""
    from matplotlib import ticker

    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    parts = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 1.2 else (1.0, 2.0, 5.0) if decades < 2.2 else (1.0,)
    if decades < 0.5:
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
    else:
        axes.xaxis.set_major_locator(ticker.LogLocator(subs=parts, numticks=12))
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(ticker.NullLocator())
