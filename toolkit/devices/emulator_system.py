"""A whole Arm machine emulated by QEMU: its own Linux, its own memory, and a clock that counts instructions.

`emulator://cortex-a72?mode=system` runs the benchmark's steps in a guest whose every instruction takes one virtual
nanosecond. Its times repeat and say nothing of a real CPU's caches and pipelines; its memory is as real as a board's:
what needs more than the guest has is ended by the guest's kernel.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import toolkit
from toolkit.bench import runner
from toolkit.child import bound
from toolkit.devices import Outcome, Progress, Settings, emulator, emulator_setup, guest_runner, runs
from toolkit.devices import emulator_system_setup as system_setup
from toolkit.errors import InputError, MissingDependencyError

CLOCK = "virtual: 1 instruction = 1 ns"
MEMORY_BYTES = 1024 << 20  # unless it is limited
LEAST_MEMORY_BYTES = 64 << 20
EXAMPLES = 3  # that are run, of those that are given
QUERIES = 2 * EXAMPLES  # at least; times repeat
MOST_SECONDS = 0.2  # virtual, of one step's rounds
BOOT_SECONDS = 90.0  # of this machine; now and then a start hangs
STARTS = 2  # that are tried
STEP_SECONDS = 1800.0  # of this machine
# It never waits for an interrupt, for the virtual clock would leap ahead to the next one while a disk is read. What may
# differ from start to start, where things lie in memory, does not.
_KERNEL_ARGUMENTS = "console=ttyAMA0 quiet panic=-1 cma=0 nohlt nokaslr norandmaps"
_SECTOR = 512
_PERIOD_SECONDS = 0.1


class System:
    """A machine that is started for every run."""

    kind: Literal["measured", "emulated", "estimated"] = "emulated"
    clock = CLOCK
    here = True
    steps = frozenset({"start", "times", "operators"})

    def __init__(self, address: str, cpu: str, settings: Settings) -> None:
        self.address = address
        self._cpu, self._settings = cpu, settings
        self._folder = system_setup.system_folder(settings.cache)
        self._megabytes = (settings.memory_bytes or MEMORY_BYTES) >> 20
        self._work = tempfile.TemporaryDirectory(prefix="toolkit-system-")
        self._disks: dict[str, Path] = {"root": self._folder / "root.ext4"}

    def describe(self) -> dict[str, Any]:
        """The machine: its CPU, its memory, its kernel."""
        guest = emulator.Emulator(self._cpu, emulator_setup.guest_folder(self._settings.cache))
        return {
            **guest.describe(),
            "device": self.address,
            "title": f"{emulator.CPUS[self._cpu].title}, a whole machine emulated",
            "clock": CLOCK,
            "cores": 1,
            "ram_gb": round((self._megabytes << 20) / 1e9, 3),
            "kernel": system_setup.read(self._folder)["kernel"],
        }

    def push(self, source: Path, name: str) -> str:
        """Make a disk of a folder; where the guest has it."""
        return f"/mnt/{self._disk_of(source.resolve(), f'disk-{len(self._disks)}')}"

    def _disk_of(self, source: Path, name: str) -> str:
        image = Path(self._work.name) / f"{name}.ext4"
        system_setup.make_image(source, image, emulator_setup.tools(["mke2fs"])["mke2fs"])
        self._disks[name] = image
        return name

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Start the machine, have it run what is worth its time, and turn it off."""
        if "code" not in self._disks:
            self._disk_of(Path(toolkit.__file__).parent, "code")
        places = chosen(steps)
        taken = [as_run(steps[number]) for number in places]
        with tempfile.TemporaryDirectory(prefix="run-", dir=self._work.name) as name:
            folder = Path(name)
            request = json.dumps({"steps": taken}).encode()
            (folder / "request").write_bytes(request + bytes(-len(request) % _SECTOR))
            for attempt in range(1, STARTS + 1):
                found = self._started(folder / str(attempt), folder / "request", taken, progress)
                if found is not None:
                    break
            else:
                error = f"{self.address}: the machine did not start within {BOOT_SECONDS:g} s, {STARTS} times."
                found = Outcome([None] * len(taken), {"kind": "timeout", "error": error, "exit_code": 3})
        results: list[dict[str, Any] | None] = [None] * len(steps)
        for number, step, result in zip(places, taken, found.results, strict=True):
            results[number] = result and {**result, "as_run": _told(step)}
        return Outcome(results, found.failed, found.conditions, found.others)

    def _started(self, folder: Path, request: Path, steps: list[dict[str, Any]], progress: Progress) -> Outcome | None:
        """One start of the machine and what it gave; None if it did not get as far as the benchmark."""
        folder.mkdir()
        out, console = _Out(folder / "out"), folder / "console"
        with self._machine({**self._disks, "request": request}, folder / "out", console) as process:
            failed = self._followed(process, out, progress)
            if failed is None and process.poll() is None:
                return None
        said = console.read_text(encoding="utf-8", errors="replace") if console.exists() else ""
        if failed is None and out.read(runner.ENDED) is None:
            failed = self._died(process, out, said)
        outcome = runs.outcome(out.read, steps, failed)
        if outcome.failed and outcome.failed["kind"] == "memory":
            outcome.failed = self._out_of_memory(_step_of(out))
        return outcome

    def _followed(self, process: subprocess.Popen[bytes], out: _Out, progress: Progress) -> dict[str, Any] | None:
        """Wait until the machine is off; how it failed, if a step takes too long. Returns early, with the machine on,
        if it does not start."""
        limit = self._settings.timeout_seconds or STEP_SECONDS
        began, current = time.monotonic(), None
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PERIOD_SECONDS)
                return None
            started = out.read(guest_runner.STARTED) is not None
            if not started and time.monotonic() - began > BOOT_SECONDS:
                return None
            runs.tell(out.read, progress)
            if (step := _step_of(out)) != current:
                began, current = time.monotonic(), step
            if started and time.monotonic() - began > limit:
                error = f"{self.address}: '{current}' did not end within {limit:g} s of this machine and was ended."
                return {"kind": "timeout", "error": error, "exit_code": 3}

    def _died(self, process: subprocess.Popen[bytes], out: _Out, console: str) -> dict[str, Any]:
        """Why a machine went off before the benchmark ended."""
        step = _step_of(out)
        if re.search("Out of memory|deadlocked on memory", console):
            return self._out_of_memory(step)
        lines = (process.stderr.read() if process.stderr else b"").decode(errors="replace").strip().splitlines()
        lines = lines or [line for line in console.splitlines() if line.strip() and "reboot:" not in line]
        lines = lines or ["it says nothing"]
        error = f"{self.address}: the machine went off before the benchmark ended: {lines[-1].strip()}"
        return {"kind": "crash", "error": error, "exit_code": 3}

    def _out_of_memory(self, what: str | None) -> dict[str, Any]:
        needs = f"'{what}' needs" if what else "starting the benchmark needs"
        error = f"{self.address}: {needs} more memory than the {self._megabytes} MiB of the machine, and was ended."
        return {"kind": "memory", "error": error, "exit_code": 1}

    @contextlib.contextmanager
    def _machine(self, disks: dict[str, Path], out: Path, console: Path) -> Iterator[subprocess.Popen[bytes]]:
        command = [
            emulator_setup.SYSTEM_QEMU, "-M", "virt", "-cpu", self._cpu, "-smp", "1", "-m", f"{self._megabytes}M",
            "-accel", "tcg", "-icount", "shift=0,sleep=off", "-nodefaults", "-no-user-config", "-display", "none",
            "-no-reboot", "-kernel", str(self._folder / "kernel"), "-initrd", str(self._folder / "initrd"),
            "-append", _KERNEL_ARGUMENTS,
            "-serial", f"file:{console}", "-device", "virtio-serial-pci",
            "-chardev", f"file,id=out,path={_quoted(out)}", "-device", "virtserialport,chardev=out,name=out",
        ]  # fmt: skip
        for number, (name, image) in enumerate(disks.items()):
            command += ["-drive", f"file={_quoted(image)},if=none,id=d{number},format=raw,readonly=on"]
            command += ["-device", f"virtio-blk-pci,drive=d{number},serial={name}"]
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            preexec_fn=bound(), start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def pull(self, name: str) -> bytes:
        """Nothing is left there."""
        raise InputError(f"{self.address} keeps no files.")

    def close(self) -> None:
        """Remove the disks."""
        self._work.cleanup()


class _Out:
    """The files that came out of the machine so far."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._files: dict[str, bytes] = {}

    def read(self, name: str) -> bytes | None:
        """A file's content; None if it did not come out yet."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                told = json.loads(line)
                self._files[told["name"]] = told["content"].encode()
        return self._files.get(name)


def _step_of(out: _Out) -> str | None:
    """What the machine does, as it said last."""
    said = out.read(runner.PROGRESS)
    return str(json.loads(said)["what"]) if said else None


def as_run(step: dict[str, Any]) -> dict[str, Any]:
    """A step as it is affordable: few examples, one round. Raises InputError for several threads."""
    if step.get("threads") not in (None, 1):
        raise InputError(f"--threads {step['threads']}: the emulated machine has one core.")
    made = {**step, "threads": 1, "examples": step["examples"][:EXAMPLES], "timeout_seconds": None}
    if step["what"] == "times":
        made |= {"rounds": 1, "seconds": min(step["seconds"], MOST_SECONDS), "queries": QUERIES}
    if step["what"] == "operators":
        made["runs"] = 1
    return made


def _told(step: dict[str, Any]) -> dict[str, Any]:
    """What of a step was changed."""
    names = ("threads", "examples", "rounds", "seconds", "queries", "runs")
    return {name: step[name] for name in names if name in step}


def chosen(steps: list[dict[str, Any]]) -> list[int]:
    """The places of the steps that are worth their time, in the order in which they are taken. Times repeat, so nothing
    is done twice; no disk is slower than memory here, so that there is no cold start, and a start comes last, when all
    of its files are in memory."""
    found = [
        number
        for number, step in enumerate(steps)
        if not step.get("cold") and not step.get("noise") and (step["what"] != "start" or step not in steps[:number])
    ]
    return sorted(found, key=lambda number: steps[number]["what"] == "start")


def _quoted(path: Path) -> str:
    """A path as a value of an option of QEMU's."""
    return str(path).replace(",", ",,")


def connect(address: str, cpu: str, settings: Settings) -> System:
    """The machine with this CPU. Raises InputError for what it cannot be, MissingDependencyError if it is not there."""
    if settings.cores:
        raise InputError(f"{address} has one core; leave --cores out.")
    if settings.memory_bytes is not None and settings.memory_bytes < LEAST_MEMORY_BYTES:
        raise InputError(f"{address}: no Linux starts in {settings.memory_bytes / 1e6:g} MB; give 64 MiB or more.")
    emulator_setup.tools([emulator_setup.QEMU, *system_setup.TOOLS])
    if not system_setup.is_ready(settings.cache):
        raise MissingDependencyError(f"{address} is not set up; run: toolkit devices setup emulator --system")
    return System(address, cpu, settings)
