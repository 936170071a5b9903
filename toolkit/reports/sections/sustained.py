"""A load that does not end: latency, temperature, clock and power over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from toolkit.bench.record import Record, Sustained, Window
from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Text
from toolkit.reports.data import Report

TITLE = "Under a load that does not end"
WANTS = ("a sustained run", "toolkit bench BUNDLE --sustain 30m -o record.json")
_MOST_LINES = 4  # of zones, clocks or meters


def blocks(report: Report) -> list[Block]:
    """Curves for each sustained record. What the device does not tell is named."""
    made: list[Block] = []
    for record, label in zip(report.records, report.labels(), strict=True):
        if record.sustained is not None and record.sustained.windows:
            made += _of(record, label, record.sustained)
    return made


def _of(record: Record, label: str, found: Sustained) -> list[Block]:
    minutes = found.seconds >= 180
    scale, unit = (60.0, "minutes") if minutes else (1.0, "seconds")
    at = [window.at_s / scale for window in found.windows]
    strips = [
        charts.Strip(
            "latency, ms",
            [
                charts.Curve("p50", at, [window.p50_ms for window in found.windows]),
                charts.Curve("p99", at, [window.p99_ms for window in found.windows]),
            ],
            line=found.first_minute_ms,
        )
    ]
    absent = []
    for title, read in (("temperature, °C", _temperatures), ("clock, MHz", _clocks), ("power, W", _watts)):
        lines = _lines(found.windows, at, read)
        if lines:
            strips.append(charts.Strip(title, lines))
        else:
            absent.append(title.partition(",")[0])
    throttled = found.throttled_after_s
    said = (
        f"{label}: {text.milliseconds(found.first_minute_ms)} in the first minute, "
        f"{text.milliseconds(found.steady_ms)} in steady state ({found.slowdown:.2f}x), "
        f"over {text.seconds(found.seconds)}. "
    )
    said += (
        f"From {text.seconds(throttled)} on it stayed 5 % above the first minute."
        if throttled is not None
        else "It never stayed 5 % above the first minute."
    )
    kind = "" if record.kind == "measured" else f" These are {record.kind} ({record.clock})."
    missing = f" Not available on this device: {', '.join(absent)}." if absent else ""
    rows = _rows(found.windows)
    head = ("at", "queries", "p50, ms", "p99, ms", "temperature, °C", "clock, MHz", "power, W")
    return [
        Text(f"{said}{kind}{missing}"),
        Figure(
            f"{label}: curves over time",
            "Windows of the run. Dashed grey: the first minute. Dotted red: from here on it is held back.",
            partial(
                charts.strips, f"{label} over time", strips, unit,
                at=None if throttled is None else throttled / scale,
            ),
            Table(head, rows),
        ),
    ]  # fmt: skip


def _rows(windows: Sequence[Window]) -> list[tuple[object, ...]]:
    """About twenty windows."""
    step = max(1, len(windows) // 20)
    return [
        (
            text.seconds(window.at_s), window.count, text.number(window.p50_ms), text.number(window.p99_ms),
            *(
                ", ".join(f"{name} {text.number(value)}".strip() for name, value in read(window).items()) or text.NONE
                for read in (_temperatures, _clocks, _watts)
            ),
        )
        for window in windows[::step]
    ]  # fmt: skip


def _lines(
    windows: Sequence[Window], at: Sequence[float], read: Callable[[Window], dict[str, float]]
) -> list[charts.Curve]:
    """A curve for each name that windows tell, those with the highest values first."""
    found: dict[str, dict[float, float]] = {}
    for moment, window in zip(at, windows, strict=True):
        for name, value in read(window).items():
            found.setdefault(name, {})[moment] = value
    names = sorted(found, key=lambda name: -max(found[name].values()))[:_MOST_LINES]
    return [charts.Curve(name, list(found[name]), list(found[name].values())) for name in names]


def _numbers(found: Any) -> dict[str, float]:
    if not isinstance(found, dict):
        return {}
    return {
        str(name): float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def _temperatures(window: Window) -> dict[str, float]:
    return _numbers(window.conditions.get("temperature_c"))


def _clocks(window: Window) -> dict[str, float]:
    clocks = window.conditions.get("clock_mhz")
    named = {f"cores {place}": value for place, value in enumerate(clocks)} if isinstance(clocks, list) else clocks
    return _numbers(named)


def _watts(window: Window) -> dict[str, float]:
    return _numbers(window.watts)
