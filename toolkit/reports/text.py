"""How numbers are written in reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.bench.record import Value

NONE = "not available"


def number(value: float | None, digits: int = 3) -> str:
    """A number with as many significant digits, and no exponent where it can be read without one."""
    if value is None:
        return NONE
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    places = digits - 1 - (0 if not value else _magnitude(value))
    return f"{value:,.{max(0, places)}f}"


def _magnitude(value: float) -> int:
    return int(f"{abs(value):e}".partition("e")[2])


def milliseconds(value: float | None) -> str:
    """`2.85 ms`."""
    return NONE if value is None else f"{number(value)} ms"


def interval(value: Value | None) -> str:
    """`2.85 (2.80 to 2.91)`."""
    if value is None:
        return NONE
    return f"{number(value.value)} ({number(value.low)} to {number(value.high)})"


def size(value: float | None) -> str:
    """Bytes as MB or kB of a thousand."""
    if value is None:
        return NONE
    if abs(value) >= 1e5:
        return f"{number(value / 1e6)} MB"
    return f"{number(value / 1e3)} kB" if abs(value) >= 1e3 else f"{value:.0f} B"


def score(value: float | None) -> str:
    """Four digits."""
    return NONE if value is None else f"{value:.4f}"


def change(before: float | None, after: float | None) -> str:
    """`-58 %` from one number to another."""
    if before is None or after is None or not before:
        return ""
    return f"{100 * (after / before - 1):+.0f} %"


def seconds(value: float | None) -> str:
    """A time span as people say it."""
    if value is None:
        return NONE
    if value < 120:
        return f"{number(value)} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def moment(created: str) -> str:
    """`2026-11-23 08:25 UTC` of a record's time."""
    return f"{created[:10]} {created[11:16]} UTC" if created[10:11] == "T" and created.endswith("+00:00") else created


def plain(value: Any) -> str:
    """A value of a JSON document as one line of text."""
    if value is None or value == "not available":
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return number(value, 4)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(each)}" for name, each in value.items()) or "none"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(each) for each in value) or "none"
    return str(value)


def words(key: str) -> str:
    """A key of a record as a reader calls it: `load_average` → `load average`."""
    return key.replace("_", " ")


def shortened(text: str, most: int) -> str:
    """Text that is no longer than `most`, with what was left out as an ellipsis in its middle."""
    if len(text) <= most:
        return text
    head = (most - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"
