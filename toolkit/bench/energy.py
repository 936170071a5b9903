"""Energy that a machine takes, from whatever it measures itself with. Standard library only: it runs on the device.

Some meters count joules (Intel's and AMD's RAPL, NVIDIA's NVML); others tell watts or volts and amperes at a moment
(the INA3221 of Jetsons, a battery), and are read ten times a second. What a meter covers differs, and is told with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/")
_PERIOD_SECONDS = 0.1
_NVML = "libnvidia-ml.so.1"


@dataclass(frozen=True)
class Meter:
    """Something that tells energy. `read` gives joules since some moment."""

    name: str
    covers: str
    read: Callable[[], float]
    close: Callable[[], None] = lambda: None


def find(root: Path = _ROOT) -> list[Meter]:
    """The meters of this machine that can be read."""
    return [*_rapl(root), *_ina3221(root), *_nvml(), *_batteries(root)]


def _rapl(root: Path) -> list[Meter]:
    """One per package of processors. The counter wraps around; it is asked often enough to see that."""
    found = []
    for zone in sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]")):
        try:
            most = int((zone / "max_energy_range_uj").read_text())
            name = (zone / "name").read_text().strip()
            (zone / "energy_uj").read_text()  # since 2020 for root alone
        except (OSError, ValueError):
            continue
        found.append(Meter(f"RAPL {name}", "the processor package", _Unwrapped(zone / "energy_uj", most)))
    return found


class _Unwrapped:
    """A counter of microjoules that starts again at `most`, as joules that only grow."""

    def __init__(self, path: Path, most: int) -> None:
        self._path, self._most = path, most
        self._last, self._rounds = int(path.read_text()), 0

    def __call__(self) -> float:
        value = int(self._path.read_text())
        if value < self._last:
            self._rounds += 1
        self._last = value
        return (self._rounds * (self._most + 1) + value) / 1e6


class _Integrated:
    """Watts at a moment, added up by a thread of its own."""

    def __init__(self, watts: Callable[[], float]) -> None:
        self._watts = watts
        self._joules = 0.0
        self._guard = threading.Lock()
        self._ended = threading.Event()
        self._at, self._last = time.monotonic(), watts()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ended.wait(_PERIOD_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                self._add()

    def _add(self) -> None:
        with self._guard:
            now, watts = time.monotonic(), self._watts()
            self._joules += (now - self._at) * (watts + self._last) / 2
            self._at, self._last = now, watts

    def __call__(self) -> float:
        self._add()
        return self._joules

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


def _integrated(name: str, covers: str, watts: Callable[[], float]) -> list[Meter]:
    try:
        meter = _Integrated(watts)
    except (OSError, ValueError):
        return []
    return [Meter(name, covers, meter, meter.close)]


def _ina3221(root: Path) -> list[Meter]:
    """The rails of a Jetson's power monitor. The first rail is what the board takes in; the others are parts of it."""
    found = []
    for hwmon in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        with contextlib.suppress(OSError):
            if (hwmon / "name").read_text().strip() != "ina3221":
                continue
            for label in sorted(hwmon.glob("in*_label")):
                number = label.name.removeprefix("in").removesuffix("_label")
                name = label.read_text().strip()
                volts, amperes = hwmon / f"in{number}_input", hwmon / f"curr{number}_input"
                if not amperes.exists() or name.startswith("sum of"):
                    continue
                found += _integrated(f"INA3221 {name}", f"the rail {name}", _product(volts, amperes, 1e-6))
    return found


def _batteries(root: Path) -> list[Meter]:
    """Batteries that are being emptied: all of the machine, display and radio among it."""
    found = []
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        with contextlib.suppress(OSError, ValueError):
            if (supply / "type").read_text().strip() != "Battery":
                continue
            if (supply / "status").read_text().strip() != "Discharging":
                continue
            name = f"battery {supply.name}"
            watts: Callable[[], float]
            if (supply / "power_now").exists():
                watts = _product(supply / "power_now", None, 1e-6)
            else:
                watts = _product(supply / "voltage_now", supply / "current_now", 1e-12)
            found += _integrated(name, "the whole device", watts)
    return found


def _product(first: Path, second: Path | None, scale: float) -> Callable[[], float]:
    def watts() -> float:
        value = abs(float(first.read_text()))  # some drivers give a current that flows out as a negative one
        return scale * value * (abs(float(second.read_text())) if second else 1.0)

    return watts


def _nvml() -> list[Meter]:
    """NVIDIA GPUs since Volta, by the driver's library; joules since the driver was loaded."""
    try:
        library = ctypes.CDLL(_NVML)
    except OSError:
        return []
    if library.nvmlInit_v2() != 0:
        return []
    count = ctypes.c_uint()
    library.nvmlDeviceGetCount_v2(ctypes.byref(count))
    found = []
    for number in range(count.value):
        handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
        if library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)) != 0:
            continue
        if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)) != 0:
            continue

        def read(handle: ctypes.c_void_p = handle) -> float:
            value = ctypes.c_ulonglong()
            if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(value)) != 0:
                raise OSError("NVML gives no energy")
            return value.value / 1e3

        found.append(Meter(f"NVML GPU {number}", "the GPU and its memory", read))
    return found
