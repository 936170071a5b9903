"""This machine as a device: what it is, as a fingerprint and as a target, and the benchmarks that run on it."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from toolkit.devices import Outcome, Progress, Settings
    from toolkit.target import Target

SCHEME = NAME = "local"

# Extensions that inference kernels choose by, as Linux spells them.
_KNOWN_ISA = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "amx_bf16", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2",
    "sme",
)  # fmt: skip


@functools.cache
def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(errors="replace") if path.exists() else ""


def _field(name: str) -> str | None:
    match = re.search(rf"^{name}\s*:\s*(.+)$", _cpuinfo(), re.MULTILINE)
    return match.group(1).strip() if match else None


def isa() -> list[str]:
    """Vector extensions of this CPU, in the spelling that target profiles use."""
    if platform.machine() in ("arm64", "aarch64") and not (_field("flags") or _field("Features")):
        return ["asimd"]
    return instruction_sets(_cpuinfo())


def instruction_sets(cpuinfo: str) -> list[str]:
    """The vector extensions that Linux tells of in /proc/cpuinfo."""
    match = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = set(match.group(1).split()) if match else set()
    return [name for name in _KNOWN_ISA if name in flags]


def architecture() -> str:
    """`x86_64` or `aarch64`."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory_gb() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None
    return round(pages / 1e9, 1)


def _nvidia_gpu() -> dict[str, str] | None:
    """Name and compute capability of the first NVIDIA GPU, or None."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    name, _, capability = answer.splitlines()[0].partition(",") if answer.strip() else ("", "", "")
    return {"model": name.strip(), "compute_capability": capability.strip()} if name else None


def describe() -> dict[str, Any]:
    """The fingerprint that a measurement carries. What cannot be read is "not available", never 0."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    thermal = Path("/sys/class/thermal/thermal_zone0/temp")
    unknown = "not available"
    return {
        "device": NAME,
        "cpu_model": _field("model name") or _field("Model") or platform.processor() or unknown,
        "architecture": architecture(),
        "isa": isa(),
        "cores": cores(),
        "ram_gb": _memory_gb() or unknown,
        "gpu": _nvidia_gpu() or unknown,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "governor": governor.read_text().strip() if governor.exists() else unknown,
        "temperature_c": int(thermal.read_text()) / 1000 if thermal.exists() else unknown,
        "load_average_1m": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else unknown,
    }


def _rules_of(engine: str, package: str) -> str | None:
    """The rule table of the engine that is installed; None if it is not, or if there is no table of its version."""
    from toolkit import rules

    try:
        table = rules.fitting(engine, importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return None
    return table.name if table else None


def as_target() -> Target:
    """The target `host`: this machine, described on the fly. Peaks are not known, so nothing is estimated."""
    from toolkit import target

    gpu = _nvidia_gpu()
    memory = _memory_gb()
    return target.Target(
        name=target.HOST,
        title=f"this machine ({_field('model name') or platform.machine()}, {cores()} cores)",
        kind="x86" if architecture() == "x86_64" else "board",
        cpu=target.Cpu.model_validate(
            {
                "model": _field("model name") or platform.machine(),
                "architecture": architecture(),
                "isa": isa(),
                "cores": cores(),
            }
        ),
        gpu=target.Gpu.model_validate(gpu) if gpu else None,
        memory=target.Memory(ram_gb=memory),
        engines=[
            target.EngineSupport.model_validate(
                {
                    "name": name,
                    "precisions": ["fp32", "int8"],
                    "rules": _rules_of(name, package),
                    "delegate": _rules_of(delegate, package) if delegate else None,
                }
            )
            for name, package, delegate in (
                ("litert", "ai-edge-litert", "xnnpack"),
                ("onnxruntime", "onnxruntime", None),
            )
        ],
        sources=[
            target.Source(
                covers=["cpu", "memory", *(["gpu"] if gpu else [])], source="read from this machine", confidence="read"
            )
        ],
    )


# One step of these ladders is a different set of kernels: a measurement made on another step says little.
_LADDERS = {
    "x86_64": ("avx2", "avx512f"),
    "aarch64": ("asimd", "asimddp", "i8mm", "sve2"),
}


def kernel_class(instruction_sets: list[str], arch: str) -> str:
    """The highest step of the architecture's ladder that a CPU has, e.g. `avx512f`."""
    best = "baseline"
    for step in _LADDERS.get(arch, ()):
        if step in instruction_sets:
            best = step
    return best


def stands_for(target: Target) -> bool:
    """True if a CPU measurement made on this machine is a measurement for `target`: same architecture, same
    class of kernels, and every extension that the profile lists."""
    if target.name == "host":
        return True
    if target.cpu is None or target.cpu.architecture != architecture():
        return False
    here = isa()
    same_class = kernel_class(here, architecture()) == kernel_class(target.cpu.isa, architecture())
    return same_class and set(target.cpu.isa) <= set(here)


class Local:
    """This machine: steps run in processes of it, with the limits of `settings`."""

    address = NAME
    kind: Literal["measured"] = "measured"
    clock = "time.perf_counter of the process"
    here = True
    steps = frozenset({"start", "times", "compare", "sustain", "operators"})

    def __init__(self, settings: Settings) -> None:
        from toolkit.devices import runs

        self._here = runs.Here(settings.limits)

    def describe(self) -> dict[str, Any]:
        """The fingerprint of this machine."""
        return describe()

    def push(self, source: Path, name: str) -> str:
        """Nothing has to be brought: the folder's own path."""
        return str(source.resolve())

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Run steps by a runner that dies with this process."""
        return self._here.run(steps, progress)

    def pull(self, name: str) -> bytes:
        """A file of the last run."""
        return self._here.pull(name)

    def close(self) -> None:
        """Remove what the runs wrote."""
        self._here.close()


def check_cores(settings: Settings) -> None:
    """Raise InputError for cores that this process may not use."""
    from toolkit.errors import InputError

    if settings.cores and not hasattr(os, "sched_setaffinity"):
        raise InputError("--cores: this system does not keep processes to cores.")
    usable = os.sched_getaffinity(0) if settings.cores else set()
    unknown = sorted(set(settings.cores) - usable)
    if unknown:
        raise InputError(f"--cores: there is no core {unknown[0]} to use here; there are {sorted(usable)}.")


def connect(address: str, settings: Settings) -> Local:
    """This machine. Raises InputError for cores that this process may not use."""
    check_cores(settings)
    return Local(settings)
