"""A device behind ssh: `ssh://[user@]host[:port]`, a Linux with a Python of its own.

Brought there are the bundle, the few files of this package that run it, and, where the device's Python lacks something,
wheels of which a virtual environment is made. A benchmark runs detached: when the connection drops it goes on, and is
followed again once the device is back. All of it lies in one folder

    toolkit/     this package, as far as a device needs it
    NAME/        what was pushed: only files that are not there already are sent
    wheels/      python/      if the device's own Python does not do
    run-ID/      a request and what it gave

which is removed in the end, by the device itself if nobody comes back; `keep` leaves all but the runs in
`~/toolkit-bench`.

A device whose processor is emulated gives answers and no times. Its Python tells (`toolkit.devices.python_facts`), or
who gives its address as `ssh://…?kind=emulated`: a whole emulated machine does not know of itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import toolkit
from toolkit.bench import runner
from toolkit.bench.encoding import compared_with_bundle
from toolkit.devices import Outcome, Progress, Settings, detached, runs, ssh_client, ssh_folder, wheels
from toolkit.errors import InputError, MissingDependencyError, ToolkitError
from toolkit.runtime import manifest as manifests

SCHEME = "ssh"
RECONNECT_SECONDS = 300.0  # for which a lost device is tried again
LEASE_SECONDS = 600.0  # after which a device that nobody asks cleans up
HUNG_SECONDS = 60.0  # that a runner may take longer than its step
RETRY_SECONDS = 1.0
OLDEST_PYTHON = (3, 11)
_SETUP_SECONDS = 900.0
_EMULATED = "kind=emulated"
_HERE = re.compile(r"localhost|127\.[\d.]+|\[::1\]")
# What of this package a device needs: no verb, no stage, nothing that imports more than the standard library, numpy and
# the bundle's engine.
PARTS = (
    "__init__.py", "child.py", "errors.py", "silence.py", "storage.py", "tasks/__init__.py",
    "bench", "devices", "engines", "profilers", "runtime",
)  # fmt: skip

# Scripts for the device's own shell; what they work on comes as arguments.
_STATE = (
    'cd -- "$1" || exit 1; told=; process=; true >"$3"; read -r told <progress.json; read -r process <"/proc/$2/stat"; '
    'printf "%s\\n" "$told" "$process" *'
)  # by the shell alone: it takes time from what is measured
_END = (
    'kill -s TERM -- "-$1" 2>/dev/null; kill -s CONT -- "-$1" 2>/dev/null; tries=0; while [ $tries -lt 100 ]; do '
    'case "$(cat "/proc/$1/stat" 2>/dev/null)" in ""|*") Z "*) break;; esac; sleep 0.1; tries=$((tries+1)); done; '
    'kill -s KILL -- "-$1" 2>/dev/null; exit 0'
)


@dataclass
class _Run:
    """A run on the device: its folder, its process group, and what is known here of its files."""

    folder: PurePosixPath
    process: int = 0
    started: str | None = None  # of the process, in ticks since the device was started
    connection: int = 0  # which one it was started by

    def __post_init__(self) -> None:
        self.files: dict[str, bytes] = {}


@dataclass(frozen=True)
class _State:
    alive: bool
    step: int


class SshDevice:
    """A device behind ssh that was reached."""

    def __init__(self, address: str, ssh: ssh_client.Ssh, settings: Settings, emulated: bool) -> None:
        self.address = address
        self.here = bool(_HERE.fullmatch(ssh.host))
        self.kind: Literal["measured", "emulated"] = "measured"
        self.clock = "time.perf_counter of the process"
        self.steps = frozenset({"start", "times", "compare", "sustain", "operators"})
        self._name = ssh.name
        self._settings = settings
        self._told_emulated = emulated
        self._connection = ssh_client.Connection(ssh)
        self._brought: ssh_folder.Folder | None = None
        self._own_python = self._python = settings.python or "python3"
        self._packages: str | list[str] = "its own"
        self._facts: dict[str, Any] = {}
        self._described: dict[str, Any] = {}
        self._bundles: dict[str, Path] = {}  # by their places on the device
        self._ready: set[str] = set()  # those that the device's Python can run
        self._runs: list[_Run] = []
        self._closing = threading.Event()

    def reach(self) -> None:
        """Connect, make the folder there, look at its Python. Raises InputError and MissingDependencyError."""
        keep = self._settings.keep
        self._brought = ssh_folder.Folder(self._connection, self._name, keep, self._closing)
        self._facts = self._python_facts()
        unknown = sorted(set(self._settings.cores) - set(self._facts["cores"]))
        if unknown:
            there = ", ".join(map(str, self._facts["cores"]))
            raise InputError(f"--cores: {self._name} has no core {unknown[0]} to use; it has {there}.")
        if self._facts["emulated_by"] or self._told_emulated:
            self.kind, self.clock, self.steps = "emulated", "none: answers are compared", frozenset({"answers"})
        self._there.bring(package_files(), "toolkit")

    def _python_facts(self) -> dict[str, Any]:
        """What the device's Python is (`toolkit.devices.python_facts`). Raises MissingDependencyError for none that can
        be used."""
        oldest = ".".join(map(str, OLDEST_PYTHON))
        advice = f"A benchmark needs Python {oldest} or later there: install one, or name one by --python /path/to/it."
        script = Path(__file__).with_name("python_facts.py")
        done = self._connection.ssh().run([self._python, "-"], given=script)
        if done.returncode in (126, 127):
            where = "" if "/" in self._python else " on the PATH of its ssh sessions"
            raise MissingDependencyError(f"{self._name} has no {self._python}{where}. {advice}")
        try:
            found: dict[str, Any] = json.loads(done.stdout)
        except ValueError as error:
            said = ssh_client.last_line(done.stderr)
            raise MissingDependencyError(f"{self._name}: {self._python} is no Python: {said}. {advice}") from error
        if tuple(found["version"]) < OLDEST_PYTHON:
            has = ".".join(map(str, found["version"]))
            raise MissingDependencyError(f"{self._name}: {self._python} is Python {has}. {advice}")
        if found["system"] != "Linux" or found["implementation"] != "CPython":
            raise MissingDependencyError(
                f"{self._name}: {self._python} is {found['implementation']} on {found['system']}; a benchmark over ssh "
                "needs CPython on Linux."
            )
        return found

    def describe(self) -> dict[str, Any]:
        """What the device said of itself when it was asked first, in the way of `toolkit.devices.local`: it may
        have been lost since. One that is emulated is no real one's equal."""
        if not self._described:
            self._described = self._describe()
        return self._described

    def _describe(self) -> dict[str, Any]:
        code = "import json; from toolkit.devices import local; print(json.dumps(local.describe()))"
        found: dict[str, Any] = self._answer(["-c", code], "describes itself")
        found["packages"] = self._packages
        if self.kind == "emulated":
            by = self._facts["emulated_by"] or "who gave its address says so"
            title = f"{found['cpu_model']} ({found['architecture']}), emulated"
            found |= {"device": "emulated", "kind": "emulated", "title": title, "clock": self.clock, "emulated_by": by}
        return found

    def push(self, source: Path, name: str) -> str:
        """Bring a folder there, as far as it is not there already; its path there. Raises InputError."""
        self._there.bring({str(path.relative_to(source)): path for path in source.rglob("*") if path.is_file()}, name)
        place = str(self._folder / name)
        self._ready.discard(place)
        if (source / manifests.FILE_NAME).is_file():
            self._bundles[place] = source
        return place

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Run the steps of a benchmark. What ended before the device was lost or a step failed is in the outcome."""
        self._prepare_python(progress)
        self.describe()
        run = _Run(self._folder / f"run-{secrets.token_hex(4)}")
        self._runs.append(run)
        request = {"steps": self._with_files(steps), "limits": self._settings.limits}
        with tempfile.TemporaryDirectory(prefix="toolkit-request-") as aside:
            file = Path(aside) / runner.REQUEST
            file.write_text(json.dumps(request), encoding="utf-8")
            self._there.bring({runner.REQUEST: file}, run.folder.name)
        try:
            self._start(run)
            failed = self._follow(run, steps, progress)
        finally:
            self._end(run)
        outcome = runs.outcome(run.files.get, steps, failed)
        for number, (step, result) in enumerate(zip(steps, outcome.results, strict=True)):
            if result is not None and step["what"] == "answers":
                outcome.results[number] = compared_with_bundle(self._bundles[step["bundle"]], step, result)
        return outcome

    def pull(self, name: str) -> bytes:
        """A file that the last run wrote. Raises InputError if there is none."""
        if not self._runs:
            raise InputError(f"Nothing was run on {self._name}.")
        return self._connection.ssh().get(self._runs[-1].folder / name)

    def close(self) -> None:
        """End what still runs there, remove what was put there, and leave. May be called while another thread runs."""
        if self._closing.is_set():
            return
        self._closing.set()
        place = self._brought.path if self._brought else None
        try:
            for run in self._runs:
                self._end(run)
            left = [run.folder for run in self._runs] if self._settings.keep else [place] if place else []
            if left:
                done = self._connection.ssh().run(["rm", "-rf", "--", *map(str, left)], timeout_seconds=300)
                if done.returncode:
                    raise MissingDependencyError(ssh_client.last_line(done.stderr))
        except MissingDependencyError as error:  # this may be the end of another error
            warnings.warn(f"{self._name}: {place} may be left there: {error}", stacklevel=2)
        finally:
            self._connection.close()

    # Python

    def _prepare_python(self, progress: Progress) -> None:
        """See to it that the device's Python has what the bundles need: its own packages, or wheels. Raises
        MissingDependencyError."""
        missing = self._missing()
        if missing is None:
            return
        self._install(missing, progress)
        missing = self._missing()
        if missing is not None:
            raise MissingDependencyError(f"{self._name}, with the wheels {', '.join(self._packages)}: {missing}")

    def _missing(self) -> str | None:
        """What the device's Python lacks for one of the bundles."""
        for place in self._bundles.keys() - self._ready:
            command = ["-m", "toolkit.devices.remote_setup", "check", place]
            missing: str | None = self._answer(command, "looks at the bundle")["missing"]
            if missing is not None:
                return missing
            self._ready.add(place)
        return None

    def _install(self, missing: str, progress: Progress) -> None:
        """Give the device wheels and let it make a virtual environment of them."""
        named = self._settings.wheels
        progress(0, 1, "fetching wheels for the device" if named is None else f"wheels of {named}")
        needed = wheels.wanted((manifests.read(each) for each in self._bundles.values()), same=named is None)
        try:
            folder = wheels.fetch(needed, self._facts, self._settings.cache, named)
        except MissingDependencyError as error:
            raise MissingDependencyError(
                f"{self._name}: {self._python} cannot run the bundle ({missing.rstrip('.')}), and {error} Install what "
                "is missing there, name another Python by --python, or a folder of wheels by --wheels."
            ) from error
        found = {path.name: path for path in folder.glob("*.whl")}
        self._there.bring(found, "wheels")
        progress(0, 1, "making a virtual environment on the device")
        command = ["-m", "toolkit.devices.remote_setup", "install"]
        command += [str(self._folder / "wheels"), str(self._folder / "python")]
        self._python = self._own_python
        made = self._answer(command, "makes a virtual environment")
        if "error" in made:
            raise MissingDependencyError(
                f"{self._name}: {self._python} makes no virtual environment in {self._folder}: {made['error']}."
            )
        self._python, self._packages = made["python"], sorted(found)
        self._ready.clear()

    # Files

    @property
    def _folder(self) -> PurePosixPath:
        return self._there.path

    @property
    def _there(self) -> ssh_folder.Folder:
        assert self._brought is not None  # noqa: S101 - of a device that was reached
        return self._brought

    def _with_files(self, steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The steps with the files of their examples brought to the device: those that are not the bundle's own."""
        files: dict[str, Path] = {}
        places: dict[str, str] = {}

        def there(example: Any) -> Any:
            if not isinstance(example, dict):
                return example
            moved = dict(example)
            for key in ("path", "file"):
                given = Path(str(moved.get(key, "")))
                if key in moved and (key == "path" or given.is_absolute()):
                    if str(given) not in places:
                        name = f"{len(files)}-{hashlib.sha256(str(given).encode()).hexdigest()[:8]}{given.suffix}"
                        files[name] = given
                        places[str(given)] = str(self._folder / "examples" / name)
                    moved[key] = places[str(given)]
            return moved

        made = [{**step, "examples": [there(each) for each in step["examples"]]} for step in steps]
        if files:
            self._there.bring(files, "examples")
        return made

    # Commands

    def _sh(self, script: str, *arguments: str, timeout_seconds: float = 60) -> Any:
        """Run a script of the device's shell."""
        return ssh_folder.shell(self._connection.ssh(), script, *arguments, timeout_seconds=timeout_seconds)

    def _package(self, arguments: Sequence[str]) -> list[str]:
        """The command that runs this package's files on the device."""
        return ["env", f"PYTHONPATH={self._folder}", self._python, "-P", *arguments]

    def _answer(self, arguments: Sequence[str], does: str) -> Any:
        """The JSON that the device's Python prints. Raises MissingDependencyError."""
        done = self._connection.ssh().run(self._package(arguments), timeout_seconds=_SETUP_SECONDS)
        with contextlib.suppress(ValueError, IndexError):
            if not done.returncode:
                return json.loads(done.stdout.splitlines()[-1])
        said = ssh_client.last_line(done.stderr)
        if "No space left" in said:
            said = ssh_folder.NO_SPACE
        raise MissingDependencyError(f"{self._name}: {self._python} fails when it {does}: {said}.")

    # A run

    def _start(self, run: _Run) -> None:
        """Start the runner, detached from the connection."""
        remove = run.folder if self._settings.keep else self._folder
        command = [
            "-m",
            "toolkit.devices.detached",
            str(run.folder),
            str(self._folder),
            str(LEASE_SECONDS),
            str(remove),
        ]
        run.process, run.started = int(self._answer(command, "starts the benchmark")), None
        run.connection = self._connection.made

    def _follow(self, run: _Run, steps: list[dict[str, Any]], progress: Progress) -> dict[str, Any] | None:
        """Wait for a run and gather what it gives; how it failed if it could not say so itself."""
        began = since = time.monotonic()
        step, lost = 0, 0.0
        while not self._closing.wait(RETRY_SECONDS if lost else _period(time.monotonic() - began)):
            try:
                state = self._state(run)
                runs.tell(run.files.get, progress)
                if runner.ENDED in run.files:
                    return None
                if not state.alive and run.connection == self._connection.made:
                    return _failure("crash", self._why(run))
                if not state.alive:  # lost with the connection: it goes on behind the last step that ended
                    self._start(run)
            except ssh_client.UnreachableError as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > RECONNECT_SECONDS:
                    return _failure("connection", f"The connection was lost, and for {RECONNECT_SECONDS:g} s: {error}")
                progress(step, len(steps), "the connection was lost; trying again")
                continue
            except ToolkitError as error:
                return _failure("crash", str(error))
            lost = 0.0
            if state.step != step:
                step, since = state.step, time.monotonic()
            allowed = float(steps[step].get("timeout_seconds") or runner.DEFAULT_TIMEOUT_SECONDS)
            if time.monotonic() - since > allowed + HUNG_SECONDS:
                said = f"'{steps[step]['what']}' did not end within {allowed:g} s, nor did the runner end it."
                return _failure("timeout", f"{self._name}: {said}")
        return _failure("error", f"{self._name} was left.")

    def _state(self, run: _Run) -> _State:
        """Ask after a run and fetch what is new of it. The device is asked rarely, and little, for that takes its time.
        Raises InputError if the run's folder is gone."""
        asked = str(self._folder / detached.ASKED)
        done = self._sh(_STATE, str(run.folder), str(run.process), asked, timeout_seconds=30)
        if done.returncode:
            raise InputError(f"{self._name}: {run.folder} is gone; was the device started anew?")
        told, process, *names = done.stdout.decode(errors="replace").splitlines()
        run.files[runner.PROGRESS] = told.encode()
        for name in names:
            if (name == runner.ENDED or re.fullmatch(r"step-\d+\.json", name)) and name not in run.files:
                run.files[name] = self._connection.ssh().get(run.folder / name)
        fields = process.rpartition(")")[2].split()
        started = fields[19] if len(fields) > 19 else None
        run.started = run.started or started
        step = 0
        with contextlib.suppress(ValueError, KeyError, TypeError):
            step = int(json.loads(told)["step"])
        return _State(started is not None and started == run.started and fields[0] not in "ZX", step)

    def _why(self, run: _Run) -> str:
        """Why a runner ended without a word."""
        done = self._connection.ssh().run(["tail", "-n", "1", "--", str(run.folder / detached.SAID)])
        said = ssh_folder.NO_SPACE if self._there.is_full(run.folder) else ssh_client.last_line(done.stdout)
        return f"{self._name}: the benchmark's runner was ended: {said}."

    def _end(self, run: _Run) -> None:
        """End a run's processes, if they are there."""
        if run.process:
            with contextlib.suppress(MissingDependencyError):
                self._sh(_END, str(run.process))
                run.process = 0


def connect(address: str, settings: Settings) -> SshDevice:
    """The device at `ssh://[user@]host[:port][?kind=emulated]`. Raises InputError for no such address or an option that
    does not fit the device, MissingDependencyError if it is not reached or has no Python that does."""
    plain, mark, query = address.partition("?")
    if mark and query != _EMULATED:
        raise InputError(f"'{address}': behind the ? there may be {_EMULATED}.")
    device = SshDevice(address, ssh_client.parse(plain, settings.ssh_config), settings, bool(mark))
    try:
        device.reach()
    except BaseException:
        device.close()
        raise
    return device


def package_files() -> dict[str, Path]:
    """What is brought of this package, by the paths in it."""
    package = Path(toolkit.__file__).parent
    files = [path for part in PARTS for path in package.glob(part if part.endswith(".py") else f"{part}/*.py")]
    return {str(path.relative_to(package)): path for path in files}


def _period(elapsed_seconds: float) -> float:
    """How long to leave a device alone: a short run is to end at once, a long one not to be disturbed."""
    return min(5.0, max(0.1, elapsed_seconds / 10))


def _failure(kind: str, error: str) -> dict[str, Any]:
    return {"kind": kind, "error": error, "exit_code": 3}
