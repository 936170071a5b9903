"""How much memory a process has, as Linux tells it. Standard library only, because it runs on the device."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

_OWN = Path("/proc/self")
_STATUS = {"VmRSS": "rss_bytes", "VmHWM": "peak_rss_bytes"}
_ROLLUP = {"Pss": "pss_bytes", "Private_Dirty": "private_dirty_bytes"}


def now(process: Path = _OWN) -> dict[str, int | None]:
    """Bytes of a process:

    - `rss_bytes`: resident, pages that it shares with others among them;
    - `pss_bytes`: the same with every shared page divided by those who share it;
    - `private_dirty_bytes`: what it wrote itself, which nobody else has and no file can give back;
    - `peak_rss_bytes`: the highest `rss_bytes` so far, or since `reset_peak`.

    None for what the system does not say.
    """
    found: dict[str, int | None] = dict.fromkeys([*_STATUS.values(), *_ROLLUP.values()])
    for file, names in (("status", _STATUS), ("smaps_rollup", _ROLLUP)):
        with contextlib.suppress(OSError):
            for line in (process / file).read_text().splitlines():
                key, _, value = line.partition(":")
                if key in names:
                    found[names[key]] = int(value.split()[0]) * 1024
    return found


def reset_peak(process: Path = _OWN) -> bool:
    """Let the highest resident set begin anew from what it is now; whether the system does that."""
    try:
        (process / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def gpu_used() -> int | None:
    """Bytes of all NVIDIA GPUs' memory that are in use, by anybody; None where there is none."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None

    class Memory(ctypes.Structure):
        _fields_ = [(name, ctypes.c_ulonglong) for name in ("total", "free", "used")]

    count, total = ctypes.c_uint(), 0
    if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return None
    for number in range(count.value):
        handle, found = ctypes.c_void_p(), Memory()
        if library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(handle)) == 0:
            library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(found))
            total += found.used
    return total or None
