"""An NVIDIA GPU of this machine: `gpu://[NUMBER][?with=WAY]`.

Steps run in processes of this machine, as on `local`, with the bundle's file, or its checkpoint, on the GPU
(`toolkit.devices.gpu_engines`). Inputs go there and answers come back within the time that is measured: a call that
only hands work over is no inference. The answers are compared with those of the bundle's own engine on the CPU.
"""

from __future__ import annotations

import csv
import subprocess
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl

from toolkit.bench.encoding import compared_with_bundle
from toolkit.devices import Outcome, Progress, Settings, gpu_engines, local, runs
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest

SCHEME = "gpu"
_TIMEOUT_SECONDS = 20
_ASKED = {
    "gpu": "name", "driver": "driver_version", "compute_capability": "compute_cap", "memory_mb": "memory.total",
    "power_limit_w": "power.limit", "clock_mhz": "clocks.sm", "most_clock_mhz": "clocks.max.sm",
    "persistence": "persistence_mode", "ecc": "ecc.mode.current",
}  # fmt: skip


def ask(number: int) -> dict[str, str]:
    """What the driver tells of a GPU. Raises MissingDependencyError if there is none of this number."""
    command = [
        "nvidia-smi",
        f"--id={number}",
        f"--query-gpu={','.join(_ASKED.values())}",
        "--format=csv,noheader,nounits",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except FileNotFoundError as error:
        raise MissingDependencyError(
            f"gpu://{number}: no NVIDIA driver is here (nvidia-smi is not on the PATH)."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError(
            f"gpu://{number}: the driver does not answer (nvidia-smi, {_TIMEOUT_SECONDS} s)."
        ) from error
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]
        raise MissingDependencyError(f"gpu://{number}: there is no such GPU: {said[-1]}")
    (values,) = csv.reader(done.stdout.strip().splitlines()[:1], skipinitialspace=True)
    return dict(zip(_ASKED, values, strict=True))


def state() -> str:
    """Whether there is a GPU, for a list of devices."""
    try:
        return f"ready: {ask(0)['gpu']}"
    except MissingDependencyError as error:
        return str(error).partition(": ")[2].rstrip(".")


class Gpu:
    """A GPU that was reached."""

    kind: Literal["measured"] = "measured"
    clock = "time.perf_counter of the process, answers back in this machine's memory"
    here = True
    steps = frozenset({"start", "times", "compare", "sustain", "answers"})

    def __init__(self, address: str, number: int, way: str | None, settings: Settings, facts: dict[str, str]) -> None:
        self.address = address
        self._number, self._way, self._facts = number, way, facts
        self._settings = settings
        self._here = runs.Here(settings.limits)
        self._bundles: dict[str, Manifest] = {}  # by their folders
        self._engines: dict[str, dict[str, Any]] = {}  # of those, once they can run

    def describe(self) -> dict[str, Any]:
        """This machine and its GPU."""
        return {**local.describe(), **self._facts, "device": SCHEME, "title": self._facts["gpu"]}

    def push(self, source: Path, name: str) -> str:
        """Nothing has to be brought: the folder's own path."""
        place = str(source.resolve())
        self._bundles[place] = manifests.read(source)
        return place

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Run steps by a runner that dies with this process; TensorRT's engines are built before. Raises InputError for
        a bundle that does not run in this way, MissingDependencyError for what is not installed."""
        for place, manifest in self._bundles.items():
            if place not in self._engines:
                self._engines[place] = gpu_engines.prepare(
                    manifest, self._number, self._way, self._settings, lambda line: progress(0, 1, line)
                )
        told = [{**step, "gpu": self._engines} for step in steps]
        outcome = self._here.run(told, progress)
        said = list(dict.fromkeys(each["warning"] for each in self._engines.values() if "warning" in each))
        for number, (step, result) in enumerate(zip(steps, outcome.results, strict=True)):
            if result is not None and step["what"] == "answers":
                outcome.results[number] = compared_with_bundle(Path(step["bundle"]), step, result)
            elif result is not None:
                result["warnings"] = said
        return outcome

    def pull(self, name: str) -> bytes:
        """A file of the last run."""
        return self._here.pull(name)

    def close(self) -> None:
        """Remove what the runs wrote."""
        self._here.close()


def parse(address: str) -> tuple[int, str | None]:
    """The number of the GPU and the way that an address names. Raises InputError."""
    plain, _, query = address.removeprefix(f"{SCHEME}://").partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    way = options.pop("with", None)
    if options or not (plain == "" or plain.isdecimal()):
        raise InputError(f"'{address}' is no GPU: gpu://NUMBER, or gpu://NUMBER?with=WAY.")
    if way is not None and way not in gpu_engines.WAYS:
        raise InputError(f"'{address}': there is no way '{way}'; there are {', '.join(gpu_engines.WAYS)}.")
    return int(plain or 0), way


def connect(address: str, settings: Settings) -> Gpu:
    """The GPU at an address. Raises InputError for an address that is none, MissingDependencyError without a GPU."""
    number, way = parse(address)
    local.check_cores(settings)
    return Gpu(address, number, way, settings, ask(number))
