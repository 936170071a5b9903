"""A device behind adb: `adb://SERIAL`, an Android, or another Linux with an adbd. It needs no Python.

What runs there is the program of `toolkit.devices.native_runner` with the library of the bundle's engine, or a user's
own `benchmark_model`. Examples are encoded on this machine, so that what is timed is the inference. All that is brought
lies in one folder below /data/local/tmp

    NAME/           the artifact, with its data: only what is not there already is sent
    inputs-HASH/    encoded examples
    program/        the program and the engine's library
    answers/        what it gave

which is removed in the end; `keep` leaves all but the answers in /data/local/tmp/toolkit-bench.

A device whose processor is emulated gives answers and no times: its own shell tells (`toolkit.devices.adb_facts`), or
who gives its address as `adb://SERIAL?kind=emulated`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from toolkit.bench.encoding import compared, encoded
from toolkit.bench.runner import DEFAULT_TIMEOUT_SECONDS, StepError
from toolkit.devices import (
    Outcome,
    Progress,
    Settings,
    adb_client,
    adb_facts,
    adb_program,
    benchmark_model,
    brought,
    native_runner,
)
from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError, ToolkitError
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest
from toolkit.storage import sha256_json

SCHEME = "adb"
FOLDER = PurePosixPath("/data/local/tmp")
EXAMPLES = 3  # whose answers are compared, of an emulated device
HUNG_SECONDS = 30.0  # that the program may take longer than its step
_KEPT = "toolkit-bench"
_EMULATED = "kind=emulated"
_HERE = re.compile(r"(localhost|127\.[\d.]+|\[::1\]):\d+|emulator-\d+")
_KILLED, _TIMED_OUT = 128 + 9, 128 + 14
_NO_PROGRAM = (126, 127)

# Scripts for the device's own shell; what they work on comes as arguments.
_MAKE_FOLDER = (
    'cd -- "$1" || exit 1; if [ -n "$2" ]; then mkdir -p "$2" && echo "$2"; else mktemp -d toolkit-bench-XXXXXX; fi'
)
_HASHES = (
    'old=; [ -d "$1" ] && old=yes; mkdir -p -- "$1" && cd -- "$1" || exit 1; shift; [ $# = 0 ] || mkdir -p -- "$@"; '
    '[ -z "$old" ] || find . -type f -exec sha256sum -- "{}" +; exit 0'
)
_RUN = 'cd -- "$1" || exit 1; shift; echo "process $$" >&2; exec "$@"'
# The moment before the program is started, in seconds since 1970, where `date` knows parts of them.
_START = (
    'cd -- "$1" || exit 1; shift; echo "process $$" >&2; at=$(date +%s.%N); '
    'case "$at" in *[!0-9.]*) exec "$@";; *) exec "$@" --spawned "$at";; esac'
)
_END = 'kill -9 "$1" 2>/dev/null; exit 0'


@dataclass(frozen=True)
class _Work:
    """A step, its bundle, its examples as the artifact takes them, and a name for those."""

    step: dict[str, Any]
    manifest: Manifest
    inputs: list[Arrays]
    key: str

    @property
    def what(self) -> str:
        return str(self.step["what"])


class AdbDevice:
    """A device behind adb that was reached."""

    def __init__(self, address: str, adb: adb_client.Adb, settings: Settings, told_emulated: bool) -> None:
        self.address = address
        self.here = bool(_HERE.fullmatch(adb.serial))
        self.kind: Literal["measured", "emulated"] = "measured"
        self.clock = "CLOCK_MONOTONIC of the program"
        self.steps = frozenset({"start", "times", "answers"})
        self._adb, self._settings = adb, settings
        self._program = adb_program.kind_of(settings)
        self._facts = adb_facts.ask(adb)
        self._emulated_by = self._facts.emulated_by or ("who gave its address says so" if told_emulated else None)
        self._state: dict[str, Any] = {}
        self._base: PurePosixPath | None = None
        self._bundles: dict[str, Path] = {}  # by their places on the device
        self._encoded: dict[str, tuple[Manifest, list[Arrays]]] = {}
        self._process: str | None = None  # of the program, while it runs
        self._closing = threading.Event()

    def reach(self) -> None:
        """Look at the device and make the folder there. Raises InputError and MissingDependencyError."""
        self._check_limits()
        if self._program == adb_program.BENCHMARK_MODEL:
            self.clock, self.steps = "that of benchmark_model", frozenset({"times"})
        if self._emulated_by:
            if self._program == adb_program.BENCHMARK_MODEL:
                raise InputError(
                    f"{self._adb.name} is emulated ({self._emulated_by}), so its times mean nothing, and "
                    "benchmark_model tells nothing else."
                )
            self.kind, self.clock, self.steps = "emulated", "none: answers are compared", frozenset({"answers"})
        made = self._adb.shell(_MAKE_FOLDER, str(FOLDER), _KEPT if self._settings.keep else "")
        if made.returncode:
            raise InputError(f"{self._adb.name}: cannot make a folder: {adb_client.last_line(made.stderr)}.")
        self._base = FOLDER / made.stdout.decode().strip().splitlines()[-1]
        self._state = adb_facts.state(self._adb)

    def _check_limits(self) -> None:
        if self._settings.memory_bytes is not None:
            raise InputError(f"--memory: {self._adb.name} takes no limit; behind adb only root can set one.")
        unknown = sorted(set(self._settings.cores) - set(self._facts.cores))
        if unknown:
            there = ", ".join(map(str, self._facts.cores)) or "none that it tells of"
            raise InputError(f"--cores: {self._adb.name} has no core {unknown[0]} to use; it has {there}.")

    def describe(self) -> dict[str, Any]:
        """What the device said of itself when it was reached: it may have been lost since. One that is emulated is no
        real one's equal."""
        facts, unknown = self._facts, adb_facts.NOT_AVAILABLE
        emulated = {"kind": "emulated", "clock": self.clock, "emulated_by": self._emulated_by}
        governors = self._state.get("governors")
        return {
            "device": "emulated" if self._emulated_by else facts.model,
            "title": f"{facts.title}, emulated" if self._emulated_by else facts.title,
            "soc": facts.soc,
            "cpu_model": facts.cpu,
            "architecture": facts.architecture,
            "abi": facts.abi,
            "isa": facts.isa,
            "cores": len(facts.cores) or unknown,
            "ram_gb": facts.ram_gb,
            "gpu": unknown,
            "system": facts.system,
            "governor": "/".join(governors) if governors else unknown,
            "battery": self._state.get("battery") or unknown,
            "thermal": self._state.get("thermal") or unknown,
            **(emulated if self._emulated_by else {}),
        }

    def push(self, source: Path, name: str) -> str:
        """Bring a bundle's artifact there, as far as it is not there already; the path of its folder there. Raises
        InputError for a bundle that cannot run there, or if the device is full."""
        manifest = manifests.read(source)
        if self._program == adb_program.BENCHMARK_MODEL and manifest.engine != "litert":
            raise InputError(f"--runner: benchmark_model runs LiteRT's files, and {source} is for {manifest.engine}.")
        if manifest.engine not in native_runner.ENGINES:
            known = " or ".join(native_runner.ENGINES)
            raise InputError(f"{source} is a bundle for {manifest.engine}; behind adb run those for {known}.")
        artifact = manifest.data["artifact"]
        self._bring({file: manifest.path(file) for file in (artifact["path"], *artifact.get("data_files", ()))}, name)
        place = str(self._folder / name)
        self._bundles[place] = source
        return place

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Run the steps of a benchmark. What ended before the device was lost or a step failed is in the outcome."""
        work = [self._work(step) for step in steps]
        progress(0, 1, "bringing what runs there")
        self._bring_program(work)
        outcome = Outcome([None] * len(steps), conditions={"before": self._state})
        whole = 1000
        try:
            for number, each in enumerate(work):

                def tell(done: int, total: int, text: str, number: int = number, what: str = each.what) -> None:
                    within = min(done / max(total, 1), 1.0)
                    progress(int(whole * (number + within)), whole * len(steps), f"{what}: {text}" if text else what)

                tell(0, 1, "")
                outcome.results[number] = self._step(each, tell)
            outcome.conditions["after"] = adb_facts.state(self._adb)
        except adb_client.LostError as error:
            outcome.failed = _failure("connection", str(error), error)
        except ToolkitError as error:
            outcome.failed = _failure(getattr(error, "kind", "error"), str(error), error)
        return outcome

    def pull(self, name: str) -> bytes:
        """A file of the folder there. Raises InputError if there is none."""
        with tempfile.TemporaryDirectory(prefix="toolkit-adb-") as aside:
            self._adb.get(self._folder / name, Path(aside) / "file")
            return (Path(aside) / "file").read_bytes()

    def close(self) -> None:
        """End what still runs there, and remove what was put there. May be called while another thread runs."""
        if self._closing.is_set():
            return
        self._closing.set()
        if self._base is None:
            return
        left = self._base / "answers" if self._settings.keep else self._base
        try:
            self._end()
            done = self._adb.shell('rm -rf -- "$1"', str(left), timeout_seconds=300)
            if done.returncode:
                raise MissingDependencyError(adb_client.last_line(done.stderr))
        except MissingDependencyError as error:  # this may be the end of another error
            warnings.warn(f"{self._adb.name}: {left} may be left there: {error}", stacklevel=2)

    # Files

    @property
    def _folder(self) -> PurePosixPath:
        assert self._base is not None  # noqa: S101 - of a device that was reached
        return self._base

    def _bring(self, files: Mapping[str, Path], name: str) -> None:
        """Make a folder there hold these files and no others; sent are those that are not there. Raises InputError."""
        place = self._folder / name
        folders = sorted({str(PurePosixPath(file).parent) for file in files} - {"."})
        listed = self._adb.shell(_HASHES, str(place), *folders, timeout_seconds=600)
        if listed.returncode:
            raise InputError(f"{self._adb.name}: cannot make {place}: {adb_client.last_line(listed.stderr)}.")
        changed, surplus = brought.difference(listed.stdout, files, place)
        if surplus:
            self._adb.shell('rm -f -- "$@"', *surplus)
        if changed:
            self._adb.put(changed, place)

    def _bring_program(self, work: Sequence[_Work]) -> None:
        """Bring the program, the engine's library and the encoded examples. Raises InputError and
        MissingDependencyError."""
        with tempfile.TemporaryDirectory(prefix="toolkit-adb-") as name:
            aside = Path(name)
            program = aside / self._program
            shutil.copy(adb_program.program(self._settings, self._facts, self._adb.name), program)
            program.chmod(0o755)  # adb brings the mode with it
            files = {self._program: program}
            if self._program == adb_program.NATIVE:
                engine = work[0].manifest.engine
                found = adb_program.library(self._settings, engine, self._facts, self._adb.name, aside)
                files[f"lib{engine}.so"] = found
                for each in {each.key: each for each in work}.values():
                    native_runner.write_inputs(aside / each.key, engine, each.manifest.artifact, each.inputs)
                    self._bring({file.name: file for file in (aside / each.key).iterdir()}, f"inputs-{each.key}")
            self._bring(files, "program")

    # Steps

    def _work(self, step: dict[str, Any]) -> _Work:
        """A step with its examples, which are encoded once; fewer of them where only answers are of use."""
        bundle, sizes = self._bundles[step["bundle"]], step.get("sizes")
        examples = step["examples"][:EXAMPLES] if self.kind == "emulated" else step["examples"]
        key = sha256_json([str(bundle), examples, sizes])[:12]
        if self._program == adb_program.BENCHMARK_MODEL:
            return _Work(step, manifests.read(bundle), [], key)
        if key not in self._encoded:
            self._encoded[key] = encoded(bundle, examples, sizes)
        return _Work({**step, "examples": examples}, *self._encoded[key], key)

    def _step(self, work: _Work, tell: Progress) -> dict[str, Any]:
        """Run one step in a process of its own there. Raises StepError and LostError."""
        step = work.step
        threads = int(step.get("threads") or work.manifest.threads)
        program = f"program/{self._program}"
        model = f"{PurePosixPath(step['bundle']).name}/{work.manifest.data['artifact']['path']}"
        if self._program == adb_program.BENCHMARK_MODEL:
            command = [program, *benchmark_model.arguments(step, model, threads)]
            said = self._call(step, benchmark_model.on_cores(command, self._settings.cores), tell)
            engine = {"engine": "litert", "program": "benchmark_model", "threads": threads}
            return {"told": benchmark_model.read(said), "engine": engine}
        with tempfile.TemporaryDirectory(prefix="toolkit-adb-") as aside:
            if work.what == "answers":
                self._adb.shell('mkdir -p -- "$1"', str(self._folder / "answers"))
            arguments = native_runner.arguments(
                step, engine=work.manifest.engine, library=f"program/lib{work.manifest.engine}.so", model=model,
                inputs=f"inputs-{work.key}", threads=threads, cores=self._settings.cores,
                answers="answers" if work.what == "answers" else None,
            )  # fmt: skip
            found: dict[str, Any] = json.loads(self._call(step, [program, *arguments], tell).splitlines()[-1])
            if work.what != "answers":
                return found
            self._adb.get(self._folder / "answers", Path(aside) / "answers")
            given = native_runner.read_answers(Path(aside) / "answers", work.manifest.engine, work.manifest.artifact)
        return {"engine": found["engine"], "answers": compared(work.manifest, work.inputs, given)}

    def _call(self, step: Mapping[str, Any], command: Sequence[str], tell: Progress) -> str:
        """Run a program there; its output. Raises StepError and LostError."""
        what, said = step["what"], [""]
        allowed = float(step.get("timeout_seconds") or DEFAULT_TIMEOUT_SECONDS)

        def hear(line: str) -> None:
            if line.startswith("process "):
                self._process = line.split()[1]
                if self._closing.is_set():
                    self._end()
            elif line.startswith("{"):
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    told = json.loads(line)
                    tell(told["done"], told["total"], told["text"])
            else:
                said.append(line)

        script = _START if what == "start" else _RUN
        # LiteRT's program says everything on one of the two streams, which one depends on its version.
        code, output = self._adb.follow(
            script, str(self._folder), *command, on_line=hear, timeout_seconds=allowed + HUNG_SECONDS
        )
        if code is None:
            self._end()
        self._process = None
        last = next((line for line in reversed(said) if line.strip()), "it gives no reason")
        last = last.removeprefix("error: ").rstrip(".")
        if self._closing.is_set():
            raise StepError("error", f"{self._adb.name} was left.", 3)
        if code in (None, _TIMED_OUT):
            raise StepError("timeout", f"'{what}' did not end within {allowed:g} s and was ended.", 3)
        if code == _KILLED:
            raise StepError("memory", f"'{what}' was killed, most likely because the memory ran out.", 1)
        if code in _NO_PROGRAM:
            raise StepError("error", f"{self._adb.name}: {command[0]} does not start there: {last}.", 3)
        if code:
            kind = "error" if code == 1 else "crash"
            raise StepError(kind, f"{self._adb.name}: '{what}' ended with code {code}: {last}.", 2)
        return "\n".join([*said, output.decode(errors="replace")])

    def _end(self) -> None:
        """End the program, if it runs."""
        process, self._process = self._process, None
        if process is not None and process.isdigit():
            self._adb.shell(_END, process)


def connect(address: str, settings: Settings) -> AdbDevice:
    """The device at `adb://SERIAL[?kind=emulated]`; with `adb://`, the only one that is connected. Raises InputError
    for no such address or an option that does not fit the device, MissingDependencyError if it is not reached."""
    plain, mark, query = address.partition("?")
    if mark and query != _EMULATED:
        raise InputError(f"'{address}': behind the ? there may be {_EMULATED}.")
    adb_program.check_options(settings)
    adb = adb_client.find(plain.removeprefix(adb_client.SCHEME))
    device = AdbDevice(f"{adb.name}{mark}{query}", adb, settings, bool(mark))
    try:
        device.reach()
    except BaseException:
        device.close()
        raise
    return device


def _failure(kind: str, error: str, raised: ToolkitError) -> dict[str, Any]:
    return {"kind": kind, "error": error, "exit_code": raised.exit_code}
