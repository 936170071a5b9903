"""The state that a machine is in while something is measured on it: what makes times differ from day to day.

Everything is read from Linux's own files below `root`, or asked of the vendor's tool where only that knows. What cannot
be read is None, never 0. Standard library only, because it runs on the device.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path("/")
_CPU = "sys/devices/system/cpu"
HEAVY_SHARE = 0.1  # of one core
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
# What a Raspberry Pi's firmware reports, by bit: now, and since it was started.
_PI_FLAGS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}


def now(root: Path = _ROOT) -> dict[str, Any]:
    """Load averages, governors, clocks in MHz, temperatures in °C, what throttles, the power mode."""
    return {
        "load_average": _load_average(root),
        "governors": sorted({text for path in _policies(root) if (text := _text(path / "scaling_governor"))}) or None,
        "clock_mhz": clocks(root),
        "clock_limit_mhz": _limits(root),
        "temperature_c": temperatures(root),
        "throttled": throttled(root),
        "power_mode": _power_mode(root),
        "pressure_cpu_percent": _pressure(root),
    }


def clocks(root: Path = _ROOT) -> list[int] | None:
    """The present clock of each group of cores in MHz."""
    found = [_number(path / "scaling_cur_freq") for path in _policies(root)]
    return [round(value / 1000) for value in found if value is not None] or None


def temperatures(root: Path = _ROOT) -> dict[str, float] | None:
    """Temperatures in °C by the zones' own names; the hottest of those with the same name."""
    found: dict[str, float] = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        name, value = _text(zone / "type"), _number(zone / "temp")
        if name and value is not None:
            found[name] = max(found.get(name, -273.0), value / 1000)
    return found or None


def throttled(root: Path = _ROOT) -> dict[str, Any] | None:
    """What holds the machine back: counts of Intel's cores, the flags of a Raspberry Pi's firmware, and how far the
    cooling devices that slow a processor down are in use."""
    found: dict[str, Any] = {}
    counts = [_number(path) for path in sorted((root / _CPU).glob("cpu[0-9]*/thermal_throttle/*_throttle_count"))]
    if any(count is not None for count in counts):
        found["thermal_events"] = int(sum(count or 0 for count in counts))
    flags = _text(root / "sys/devices/platform/soc/soc:firmware/get_throttled")
    if flags is not None and re.fullmatch(r"(0x)?[0-9a-fA-F]+", flags):
        bits = int(flags, 16)
        found["now"] = [name for bit, name in _PI_FLAGS.items() if bits >> bit & 1]
        found["since_boot"] = [name for bit, name in _PI_FLAGS.items() if bits >> (bit + 16) & 1]
    for device in sorted((root / "sys/class/thermal").glob("cooling_device*")):
        name, state, most = _text(device / "type"), _number(device / "cur_state"), _number(device / "max_state")
        if name and state is not None and most and re.search("cpu|gpu|processor|soc", name, re.IGNORECASE):
            found.setdefault("cooling", {})[name] = max(state / most, found.get("cooling", {}).get(name, 0.0))
    return found or None


class Others:
    """Watches what else takes processor time: from its making to `read`."""

    def __init__(self, root: Path = _ROOT) -> None:
        self._root = root
        self._since = time.monotonic()
        self._before = {process: ticks for process, (ticks, _) in self._ticks()}
        self._steal = self._stolen()

    def read(self, own: set[int]) -> dict[str, Any]:
        """Processes other than `own` that took at least a tenth of a core, and the share that the hypervisor took."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        heavy: list[tuple[float, str]] = []
        for process, (ticks, name) in self._ticks():
            share = (ticks - self._before.get(process, 0)) / _TICKS / seconds
            if process not in own and share >= HEAVY_SHARE:
                heavy.append((round(share, 2), name))
        stolen = self._stolen()
        return {
            "heavy_processes": [{"name": name, "cores": cores} for cores, name in sorted(heavy, reverse=True)[:5]],
            "stolen_cores": None
            if stolen is None or self._steal is None
            else round((stolen - self._steal) / _TICKS / seconds, 3),
        }

    def _ticks(self) -> Iterator[tuple[int, tuple[int, str]]]:
        """Process id → (processor time in ticks, name) of every process."""
        for path in (self._root / "proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                text = path.read_text(errors="replace")
                name, rest = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()
                yield int(path.parent.name), (int(rest[11]) + int(rest[12]), name)

    def _stolen(self) -> int | None:
        line = (_text(self._root / "proc/stat") or "").partition("\n")[0].split()
        return int(line[8]) if len(line) > 8 and line[0] == "cpu" else None


def _policies(root: Path) -> list[Path]:
    return sorted((root / _CPU / "cpufreq").glob("policy*"))


def _limits(root: Path) -> list[int] | None:
    """The highest clock that each group of cores may have at present, in MHz; throttling lowers it."""
    found = [_number(path / "scaling_max_freq") for path in _policies(root)]
    return [round(value / 1000) for value in found if value is not None] or None


def _load_average(root: Path) -> list[float] | None:
    numbers = (_text(root / "proc/loadavg") or "").split()[:3]
    return [float(number) for number in numbers] or None


def _pressure(root: Path) -> float | None:
    """The share of the last ten seconds in which some process waited for a processor."""
    found = re.search(r"^some avg10=([\d.]+)", _text(root / "proc/pressure/cpu") or "", re.MULTILINE)
    return float(found[1]) if found else None


def _power_mode(root: Path) -> str | None:
    """The mode of a Jetson, as `nvpmodel -q` names it; of other machines the ACPI platform profile."""
    tool = root / "usr/sbin/nvpmodel"
    if tool.exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run([str(tool), "-q"], capture_output=True, text=True, timeout=10, check=True).stdout
            found = re.search(r"NV Power Mode: *(\S+)", said)
            return found[1] if found else None
    return _text(root / "sys/firmware/acpi/platform_profile")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def _number(path: Path) -> float | None:
    text = _text(path)
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
