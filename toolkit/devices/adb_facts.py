"""What a device behind adb says of itself, by the means of its shell: what it is, and the state that it is in.

What it does not tell is "not available". Nothing is brought there for it.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.bench import conditions
from toolkit.devices import local
from toolkit.devices.adb_client import Adb

NOT_AVAILABLE = "not available"
# Sections that begin with a line of their own. What the programs of the device are made for stands in bytes 18 and 19
# of their files, as the device's own `self` shows them, and as the kernel does.
_ASK = """
echo @properties; getprop 2>/dev/null
echo @system; uname -sr
echo @machine; uname -m
echo @linker; ls /system/bin/linker64 /system/bin/linker 2>/dev/null
echo @allowed; while read -r name value; do [ "$name" = Cpus_allowed_list: ] && echo "$value"; done </proc/self/status
echo @memory; read -r line </proc/meminfo; echo "$line"
echo @self; od -An -tx1 -j18 -N2 /proc/self/exe 2>/dev/null
echo @kernel; od -An -tx1 -j18 -N2 /proc/thread-self/exe 2>/dev/null
echo @program; readlink /proc/thread-self/exe 2>/dev/null
echo @cpu; cat /proc/cpuinfo 2>/dev/null
exit 0
"""
_STATE_FILES = (
    "/proc/loadavg", "/proc/pressure/cpu",
    *(f"/sys/devices/system/cpu/cpufreq/policy*/scaling_{name}" for name in ("governor", "cur_freq", "max_freq")),
    *(f"/sys/class/thermal/thermal_zone*/{name}" for name in ("type", "temp")),
    *(f"/sys/class/thermal/cooling_device*/{name}" for name in ("type", "cur_state", "max_state")),
)  # fmt: skip
# The first line of each file, by the shell alone: a device may have a hundred of them.
_ASK_STATE = (
    f"for file in {' '.join(_STATE_FILES)}; "
    'do line=; { read -r line <"$file"; } 2>/dev/null && echo "$file $line"; done; '
    'for service in battery thermalservice; do echo "@$service"; dumpsys $service 2>/dev/null; done; exit 0'
)
_ABIS = {"arm64-v8a": "aarch64", "armeabi-v7a": "armv7l", "x86_64": "x86_64", "x86": "i686"}
_ARM = {
    0xD03: "Cortex-A53", 0xD04: "Cortex-A35", 0xD05: "Cortex-A55", 0xD07: "Cortex-A57", 0xD08: "Cortex-A72",
    0xD09: "Cortex-A73", 0xD0A: "Cortex-A75", 0xD0B: "Cortex-A76", 0xD0D: "Cortex-A77", 0xD41: "Cortex-A78",
    0xD44: "Cortex-X1", 0xD46: "Cortex-A510", 0xD47: "Cortex-A710", 0xD48: "Cortex-X2", 0xD4D: "Cortex-A715",
    0xD4E: "Cortex-X3", 0xD80: "Cortex-A520", 0xD81: "Cortex-A720", 0xD82: "Cortex-X4",
}  # fmt: skip
_BATTERY = {1: "unknown", 2: "charging", 3: "discharging", 4: "not charging", 5: "full"}
_THERMAL = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")


@dataclass(frozen=True)
class Facts:
    """What does not change while a benchmark runs. `android`: its programs are linked with Android's C library."""

    title: str
    model: str
    soc: str
    cpu: str
    architecture: str
    abi: str
    isa: list[str]
    cores: list[int]
    ram_gb: float | str
    system: str
    android: bool
    emulated_by: str | None


def ask(adb: Adb) -> Facts:
    """Ask a device what it is. Raises LostError."""
    said = adb.shell(_ASK).stdout.decode(errors="replace").replace("\r", "")
    return read(said)


def read(said: str) -> Facts:
    """Facts from what the device answered."""
    parts = _sections(said)
    told = re.findall(r"^\[([\w.]+)\]: \[(.*)\]$", parts.get("properties", ""), re.MULTILINE)
    known = {name: value.strip() for name, value in told if value.strip().lower() not in ("", "unknown")}

    def named(*names: str) -> str:
        return " ".join(dict.fromkeys(known[name] for name in names if name in known))

    model = named("ro.product.manufacturer", "ro.product.model") or NOT_AVAILABLE
    soc = named("ro.soc.manufacturer", "ro.soc.model") if "ro.soc.model" in known else named("ro.board.platform")
    machine = parts.get("machine", "").strip()
    architecture = _ABIS.get(known.get("ro.product.cpu.abi", ""), machine) or NOT_AVAILABLE
    cpu = _cpu(parts.get("cpu", "")) or NOT_AVAILABLE
    release, sdk = known.get("ro.build.version.release"), known.get("ro.build.version.sdk")
    kernel = parts.get("system", "").strip()
    memory = re.search(r"(\d+) kB", parts.get("memory", ""))
    what = next((each for each in (model, cpu, machine) if each not in (NOT_AVAILABLE, "")), "a device behind adb")
    return Facts(
        title=f"{what} ({soc})" if soc else what,
        model=model,
        soc=soc or NOT_AVAILABLE,
        cpu=cpu,
        architecture=architecture,
        abi=known.get("ro.product.cpu.abi", NOT_AVAILABLE),
        isa=local.instruction_sets(parts.get("cpu", "")),
        cores=_numbers(parts.get("allowed", "")),
        ram_gb=round(int(memory[1]) * 1024 / 1e9, 1) if memory else NOT_AVAILABLE,
        system=f"Android {release} (API {sdk}), {kernel}" if release else kernel,
        android=bool(parts.get("linker", "").strip()),
        emulated_by=_emulated_by(parts, known),
    )


def _emulated_by(parts: Mapping[str, str], properties: Mapping[str, str]) -> str | None:
    """The name of what emulates the processor, None if it is real or nothing tells.

    QEMU's user mode and its like are programs of the real processor. What runs is shown to itself as the program that
    is emulated; the same file under `thread-self` is what the kernel runs.
    """
    own, real = parts.get("self", "").split(), parts.get("kernel", "").split()
    program = PurePosixPath(parts.get("program", "").strip()).name
    if (own and real and own != real) or program.startswith("qemu-"):
        return program or "another program"
    if "1" in (properties.get("ro.boot.qemu"), properties.get("ro.kernel.qemu")):
        return "the Android emulator"
    return None


def state(adb: Adb) -> dict[str, Any]:
    """The state that a device is in, as `toolkit.bench.conditions` tells that of a machine, with Android's own words on
    its battery and its heat. Raises LostError."""
    return read_state(adb.shell(_ASK_STATE).stdout.decode(errors="replace").replace("\r", ""))


def read_state(said: str) -> dict[str, Any]:
    """The state from what the device answered."""
    files, *_ = said.partition("\n@battery") if not said.startswith("@") else ("",)
    parts = _sections(said)
    with tempfile.TemporaryDirectory(prefix="toolkit-state-") as folder:
        for line in files.splitlines():
            path, _, text = line.partition(" ")
            if text and path.startswith(("/proc/", "/sys/")) and ".." not in path:
                file = Path(folder) / path.lstrip("/")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
        found = conditions.now(Path(folder))
    found["battery"] = battery(parts.get("battery", ""))
    found["thermal"] = thermal(parts.get("thermalservice", ""))
    if found["thermal"] is not None and found["thermal"]["status"] not in (None, "none"):
        held = f"thermal status {found['thermal']['status']}"
        found["throttled"] = {**(found["throttled"] or {}), "now": [held]}
    return found


def battery(said: str) -> dict[str, Any] | None:
    """Of `dumpsys battery`; None where there is none."""
    told = {
        key.strip(): value.strip() for key, colon, value in (line.partition(":") for line in said.splitlines()) if colon
    }
    if "level" not in told:
        return None

    def number(name: str) -> int | None:
        text = told.get(name, "")
        return int(text) if re.fullmatch(r"-?\d+", text) else None

    level, scale, warmth = number("level"), number("scale") or 100, number("temperature")
    return {
        "level_percent": round(100 * level / scale) if level is not None else None,
        "status": _BATTERY.get(number("status") or 1, "unknown"),
        "powered_by": [name for name in ("AC", "USB", "Wireless", "Dock") if told.get(f"{name} powered") == "true"],
        "temperature_c": warmth / 10 if warmth is not None else None,
        "voltage_mv": number("voltage"),
    }


def thermal(said: str) -> dict[str, Any] | None:
    """Of `dumpsys thermalservice`: Android's status, and temperatures by their sensors, the present ones where they are
    told; None where there is none."""
    status = re.search(r"^Thermal Status: (\d+)", said, re.MULTILINE)
    warmth = re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=-?\d+, mName=([^,}]+)", said)
    if status is None and not warmth:
        return None
    number = int(status[1]) if status else None
    return {
        "status": _THERMAL[number] if number is not None and number < len(_THERMAL) else None,
        "temperature_c": {name: float(value) for value, name in warmth},  # the HAL's come after those it kept
    }


def _cpu(cpuinfo: str) -> str | None:
    """Its cores by their kind."""
    named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    makers = re.findall(r"^CPU implementer\s*:\s*(\w+)", cpuinfo, re.MULTILINE)
    kinds = re.findall(r"^CPU part\s*:\s*(\w+)", cpuinfo, re.MULTILINE)
    if not kinds:
        return named[1].strip() if named else None
    names = [
        _ARM.get(int(kind, 16), f"Arm {kind}") if maker == "0x41" else f"{maker}/{kind}"
        for maker, kind in zip(makers, kinds, strict=False)
    ]
    return " + ".join(f"{count}x {name}" if count > 1 else name for name, count in Counter(names).items())


def _numbers(text: str) -> list[int]:
    """`0-3,6` as numbers."""
    found: list[int] = []
    for first, last in re.findall(r"(\d+)(?:-(\d+))?", text):
        found += range(int(first), int(last or first) + 1)
    return found


def _sections(said: str) -> dict[str, str]:
    """What stands behind each line `@name`."""
    parts = re.split(r"^@(\w+)\n", said, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
