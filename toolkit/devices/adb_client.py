"""The system's `adb` client: run a script on a device, put files there, get files back.

A script's arguments are quoted for the device's shell; nothing else is handed to it.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from toolkit import child
from toolkit.errors import InputError, MissingDependencyError

SCHEME = "adb://"
SILENT_SECONDS = 30.0  # after which a device that says nothing is asked whether it is there
ANSWER_SECONDS = 20.0  # that it has for that
NO_SPACE = "no space is left on the disk there"
_SERIAL = re.compile(r"[A-Za-z0-9._\[][\w.:\[\]() -]*")
_MOST_FILES = 100  # in one call
_PERIOD_SECONDS = 0.1
# adb ends with 0 too when the device is lost in the middle of a command, so a script that ended well says it by this.
_WELL = 99
_SAID = re.compile(r"^(adb: |error: |failed: )+")
_STATES = {
    "unauthorized": "does not trust this machine yet: unlock its screen and allow USB debugging where it asks",
    "authorizing": "is still asking whether it may trust this machine: look at its screen",
    "offline": "is connected, but does not answer (offline): plug it in anew, or run `adb reconnect offline`",
    "no permissions": "may not be used by you on this machine (no permissions): the system's rules for USB devices, on "
    "Debian those of the package android-sdk-platform-tools-common, must let you",
}


class LostError(MissingDependencyError):
    """The device is not there any more."""


class FullError(InputError):
    """The device's disk is full."""


@dataclass(frozen=True)
class Adb:
    """A device as adb knows it: `program` is adb, `serial` the device's name there."""

    program: str
    serial: str

    @property
    def name(self) -> str:
        return f"{SCHEME}{self.serial}"

    def shell(self, script: str, *arguments: str, timeout_seconds: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run a script of the device's shell. Raises LostError if the device is gone or does not answer in time."""
        done = self._call(["shell", "-n", "-T", _remote(script, arguments)], timeout_seconds)
        done.returncode = self._code(done.returncode, done.stderr)
        return done

    def follow(
        self, script: str, *arguments: str, on_line: Callable[[str], None], timeout_seconds: float
    ) -> tuple[int | None, bytes]:
        """Run a script that may take long, and hand on the lines of its standard error as they come; its exit code,
        None if it did not end in time, and its output. Raises LostError."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                self._command(["shell", "-n", "-T", _remote(script, arguments)]), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.PIPE, start_new_session=True, preexec_fn=child.bound(),
            )  # fmt: skip
            heard = _Heard(process, on_line)
            try:
                ended = self._wait(process, heard, timeout_seconds)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                heard.close()
            output.seek(0)
            found = output.read()
        if not ended:
            return None, found
        return self._code(process.returncode, heard.last.encode()), found

    def _wait(self, process: subprocess.Popen[bytes], heard: _Heard, timeout_seconds: float) -> bool:
        """Whether it ended in time. A device that says nothing for long is asked whether it is there."""
        began = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PERIOD_SECONDS)
                return True
            now = time.monotonic()
            if now - began > timeout_seconds:
                return False
            if now - heard.at > SILENT_SECONDS:
                self.shell(":", timeout_seconds=ANSWER_SECONDS)
                heard.at = time.monotonic()

    def put(self, files: Mapping[str, Path], folder: PurePosixPath, timeout_seconds: float = 3600) -> None:
        """Write files into a folder there, by their names in it. Raises FullError, InputError if that fails,
        LostError."""
        same: dict[PurePosixPath, list[Path]] = {}
        for name, file in files.items():
            place = folder / name
            if place.name == file.name:
                same.setdefault(place.parent, []).append(file)
            else:
                self._push([file], str(place), timeout_seconds)
        for parent, found in same.items():
            for first in range(0, len(found), _MOST_FILES):
                self._push(found[first : first + _MOST_FILES], f"{parent}/", timeout_seconds)

    def _push(self, files: Sequence[Path], place: str, timeout_seconds: float) -> None:
        done = self._call(["push", *(str(file.absolute()) for file in files), place], timeout_seconds)
        if not done.returncode:
            return
        said = done.stderr + done.stdout
        self._code(done.returncode, said)
        size = sum(file.stat().st_size for file in files) / 1e6
        full = b"No space left" in said
        why = NO_SPACE if full else last_line(said)
        raise (FullError if full else InputError)(f"{self.name}: cannot write {size:.1f} MB to {place}: {why}.")

    def get(self, source: PurePosixPath, target: Path, timeout_seconds: float = 600) -> None:
        """Copy a file, or a folder with all in it, to `target`, which is not there yet. Raises InputError and
        LostError."""
        done = self._call(["pull", str(source), str(target)], timeout_seconds)
        if done.returncode:
            said = done.stderr + done.stdout
            self._code(done.returncode, said)
            raise InputError(f"{self.name}: cannot read {source}: {last_line(said)}.")

    def features(self) -> set[str]:
        """What the device's side of adb can do."""
        return set(self._call(["features"], ANSWER_SECONDS).stdout.decode(errors="replace").split())

    def _code(self, code: int, said: bytes) -> int:
        """The exit code of a script from that of adb. Raises LostError if it is adb's own, for the device is gone."""
        if code == _WELL:
            return 0
        state = self._call(["get-state"], ANSWER_SECONDS)
        if state.returncode or state.stdout.strip() != b"device" or code == 0:
            raise LostError(f"{self.name} was lost: {last_line(state.stderr or said)}.")
        return code

    def _call(self, arguments: Sequence[str], timeout_seconds: float) -> subprocess.CompletedProcess[bytes]:
        try:
            return _run(self._command(arguments), timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise LostError(f"{self.name} did not answer within {timeout_seconds:g} s.") from error

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [self.program, "-s", self.serial, *arguments]


class _Heard:
    """Reads what a process says, in a thread of its own, and knows when that was."""

    def __init__(self, process: subprocess.Popen[bytes], on_line: Callable[[str], None]) -> None:
        self.at, self.last = time.monotonic(), ""
        assert process.stderr is not None  # noqa: S101 - a pipe
        self._stream = process.stderr
        self._on_line = on_line
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._stream:
            text = line.decode(errors="replace").rstrip()
            self.at, self.last = time.monotonic(), text or self.last
            self._on_line(text)

    def close(self) -> None:
        self._thread.join()
        self._stream.close()


def find(serial: str) -> Adb:
    """The device of a serial number; of none, the only one that is connected. Raises InputError for several,
    MissingDependencyError where there is no adb, or for a device that cannot be used."""
    if serial and not _SERIAL.fullmatch(serial):
        raise InputError(f"'{SCHEME}{serial}' is no device; give adb://SERIAL as `adb devices` lists it.")
    program = shutil.which("adb")
    if program is None:
        raise MissingDependencyError("There is no adb on this machine. On Debian and Ubuntu: apt-get install adb")
    there = _listed(program)
    known = ", ".join(there) or "none"
    if not serial and len(there) > 1:
        raise InputError(
            f"{SCHEME}: several devices are connected, {known}; say which, as in {SCHEME}{next(iter(there))}."
        )
    serial = serial or next(iter(there), "")
    if serial not in there:
        network = f" One in the network is connected by `adb connect {serial}`." if ":" in serial else ""
        raise MissingDependencyError(
            f"{SCHEME}{serial} is not connected. `adb devices` lists: {known}. Plug it in, with USB debugging switched "
            f"on in its developer options.{network}"
        )
    state = there[serial]
    if state != "device":
        kind = next((name for name in _STATES if state.startswith(name)), None)
        why = _STATES[kind] if kind else f"is in the state '{state}', and not started as usual"
        raise MissingDependencyError(f"{SCHEME}{serial} {why}.")
    found = Adb(program, serial)
    if "shell_v2" not in found.features():
        raise MissingDependencyError(
            f"{found.name}: its adbd does not tell exit codes (no shell_v2); Android 7 or later is needed."
        )
    return found


def _listed(program: str) -> dict[str, str]:
    """Serial number → state of all that adb knows. Raises MissingDependencyError."""
    try:
        done = _run([program, "devices"], 60)
    except subprocess.TimeoutExpired as error:
        raise MissingDependencyError("adb does not answer; `adb kill-server` ends its server.") from error
    if done.returncode:
        raise MissingDependencyError(f"adb does not work: {last_line(done.stderr)}.")
    lines = done.stdout.decode(errors="replace").partition("List of devices attached")[2].splitlines()
    pairs = [line.partition("\t") for line in lines if "\t" in line]
    return {serial.strip(): state.strip() for serial, _, state in pairs}


def _run(command: Sequence[str], timeout_seconds: float) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_seconds, check=False,
        start_new_session=True,  # Ctrl-C is for this process, which may have something to clean up there
    )  # fmt: skip


def _remote(script: str, arguments: Sequence[str]) -> str:
    return f"{shlex.join(['sh', '-c', script, 'sh', *arguments])} && exit {_WELL}"


def last_line(said: bytes) -> str:
    """The last line of what adb or a command said, for a message."""
    lines = said.decode(errors="replace").strip().splitlines()
    return _SAID.sub("", lines[-1].strip()).rstrip(".") if lines else "it gives no reason"
