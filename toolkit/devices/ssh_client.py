"""The system's ssh client: run a command on a machine, put files there, get files back.

Host keys must be known and nothing is asked for (BatchMode): what ssh needs stands in the user's own ssh configuration.
A command is a list of arguments; the one string that ssh hands to the remote shell is quoted from it.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from toolkit import child
from toolkit.errors import InputError, MissingDependencyError

SCHEME = "ssh://"
CONNECT_SECONDS = 15
_UNREACHABLE = 255  # ssh's own exit code; any other is the remote command's
_ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9][\w.-]*|\[[0-9a-fA-F:.]+\])(?::(?P<port>\d+))?"
)
_SOCKET_ROOM = 60  # bytes of a folder's path: a socket's may have 107, and ssh adds to it


class UnreachableError(MissingDependencyError):
    """ssh did not reach the machine, or had no answer from it in time."""


@dataclass(frozen=True)
class Ssh:
    """A machine behind ssh. `config` is an ssh configuration file to use instead of the user's, `control` the socket of
    a connection that commands share."""

    user: str | None
    host: str
    port: int | None = None
    config: Path | None = None
    control: Path | None = None

    @property
    def name(self) -> str:
        return f"{SCHEME}{self.user + '@' if self.user else ''}{self.host}{f':{self.port}' if self.port else ''}"

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The local command that runs `arguments` there."""
        return [*self._ssh("ServerAliveInterval=15", "ServerAliveCountMax=4"), *self._there(), shlex.join(arguments)]

    def keeping(self) -> list[str]:
        """The local command that makes the connection of `control`, and keeps it for as long as it runs."""
        return [
            *self._ssh("ServerAliveInterval=5", "ServerAliveCountMax=3", "ControlMaster=yes", "ControlPersist=no"),
            "-N", *self._there(),
        ]  # fmt: skip

    def _ssh(self, *more: str) -> list[str]:
        options = [*more, "BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={CONNECT_SECONDS}"]
        options += ["LogLevel=ERROR"]
        if self.control is not None:
            options += [f"ControlPath={str(self.control).replace('%', '%%')}", "ControlMaster=no"]
        made = ["ssh", "-T", *(part for option in options for part in ("-o", option))]
        return [*made, *(["-F", str(self.config)] if self.config else [])]

    def _there(self) -> list[str]:
        made = ["-p", str(self.port)] if self.port else []
        made += ["-l", self.user] if self.user else []
        return [*made, "--", self.host.strip("[]")]

    def run(
        self, arguments: Sequence[str], *, timeout_seconds: float = 60, given: Path = Path(os.devnull)
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command there with a file's content as its input. Raises UnreachableError if the device is not reached,
        or does not answer in time, MissingDependencyError where there is no ssh."""
        try:
            with given.open("rb") as stream:
                done = subprocess.run(
                    self.command(arguments), stdin=stream, capture_output=True, timeout=timeout_seconds, check=False,
                    start_new_session=True,  # Ctrl-C is for this process, which may have something to clean up there
                )  # fmt: skip
        except FileNotFoundError as error:  # ssh; `given` is there
            raise _no_ssh() from error
        except subprocess.TimeoutExpired as error:
            raise UnreachableError(f"{self.name} did not answer within {timeout_seconds:g} s.") from error
        if done.returncode == _UNREACHABLE:
            raise self.unreachable(done.stderr)
        return done

    def feed(
        self, arguments: Sequence[str], write: Callable[[IO[bytes]], None], timeout_seconds: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command there whose input `write` writes. Raises UnreachableError as `run` does."""
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                self.command(arguments), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said,
                start_new_session=True,
            )  # fmt: skip
            assert process.stdin is not None  # noqa: S101 - a pipe
            late = threading.Event()

            def end() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout_seconds, end)
            timer.start()
            try:
                with suppress(BrokenPipeError):  # the command's exit code tells why it reads no more
                    write(process.stdin)
                with suppress(BrokenPipeError):
                    process.stdin.close()
                process.wait()
            except BaseException:
                process.kill()
                process.wait()
                raise
            finally:
                timer.cancel()
            said.seek(0)
            done = subprocess.CompletedProcess(process.args, process.returncode, b"", said.read())
        if late.is_set():
            raise UnreachableError(f"{self.name} did not take all files within {timeout_seconds:g} s.")
        if done.returncode == _UNREACHABLE:
            raise self.unreachable(done.stderr)
        return done

    def stream(self, arguments: Sequence[str], on_line: Callable[[str], None], timeout_seconds: float) -> int:
        """Run a command there and hand its lines on as they come, those of its standard error too; its exit code.
        Raises UnreachableError as `run` does."""
        process = subprocess.Popen(
            self.command(arguments), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        ended = threading.Event()

        def end() -> None:
            ended.set()
            process.kill()

        timer = threading.Timer(timeout_seconds, end)
        timer.start()
        last = b""
        try:
            with process:
                for line in process.stdout or ():
                    last = line.strip() or last
                    on_line(line.decode(errors="replace").strip())
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        if ended.is_set():
            raise UnreachableError(f"{self.name} did not end within {timeout_seconds:g} s.")
        if process.returncode == _UNREACHABLE:
            raise self.unreachable(last)
        return process.returncode

    def put(self, source: Path, destination: PurePosixPath, timeout_seconds: float = 600) -> None:
        """Write a file there. Raises InputError if that fails."""
        done = self.run(
            ["sh", "-c", 'cat > "$1"', "sh", str(destination)],
            given=source,
            timeout_seconds=timeout_seconds,
        )
        if done.returncode:
            raise InputError(f"{self.name}: cannot write {destination}: {last_line(done.stderr)}.")

    def get(self, source: PurePosixPath, timeout_seconds: float = 600) -> bytes:
        """The bytes of a file there. Raises InputError if it cannot be read."""
        done = self.run(["cat", "--", str(source)], timeout_seconds=timeout_seconds)
        if done.returncode:
            raise InputError(f"{self.name}: cannot read {source}: {last_line(done.stderr)}.")
        return done.stdout

    @contextmanager
    def folder(self, keep: str | None) -> Iterator[PurePosixPath]:
        """A folder there for the time of a block: a fresh one that is removed with all that is in it, or the one called
        `keep` in the user's home, which stays. Raises InputError if it cannot be made."""
        make = ["mkdir", "-p", "--", keep] if keep else ["mktemp", "-d"]
        done = self.run(make)
        if done.returncode:
            raise InputError(f"{self.name}: cannot make a folder: {last_line(done.stderr)}.")
        path = PurePosixPath(keep) if keep else PurePosixPath(done.stdout.decode().strip())
        try:
            yield path
        finally:
            if not keep:
                self.run(["rm", "-rf", "--", str(path)])

    def unreachable(self, said: bytes) -> UnreachableError:
        """What to raise when ssh itself fails."""
        return UnreachableError(
            f"{self.name} is not reached: {last_line(said)}. `ssh {self.host}` must work without a question: a known "
            "host key, and a key of yours that it accepts."
        )


class Connection:
    """One connection that all commands share, over a socket in a folder of its own; made again when it was lost."""

    def __init__(self, ssh: Ssh) -> None:
        short = len(tempfile.gettempdir()) <= _SOCKET_ROOM
        self._folder = Path(tempfile.mkdtemp(prefix="toolkit-ssh-", dir=None if short else "/tmp"))  # noqa: S108 - 0700
        self._ssh = replace(ssh, control=self._folder / "socket")
        self._process: subprocess.Popen[bytes] | None = None
        self._making = threading.Lock()
        self._closed = False
        self.made = 0  # how many times

    def ssh(self) -> Ssh:
        """The machine, connected. Raises UnreachableError, MissingDependencyError where there is no ssh."""
        with self._making:
            if self._closed:
                raise UnreachableError(f"{self._ssh.name} was left.")
            if self._process is None or self._process.poll() is not None:
                self._process = self._connect()
                self.made += 1
        return self._ssh

    def _connect(self) -> subprocess.Popen[bytes]:
        said, control = self._folder / "said", self._folder / "socket"
        control.unlink(missing_ok=True)
        try:
            with said.open("wb") as log:
                process = subprocess.Popen(
                    self._ssh.keeping(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log,
                    start_new_session=True, preexec_fn=child.bound(),
                )  # fmt: skip
        except FileNotFoundError as error:
            raise _no_ssh() from error
        until = time.monotonic() + 2 * CONNECT_SECONDS
        try:
            while not control.exists():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.02)
                    raise self._ssh.unreachable(said.read_bytes())
                if time.monotonic() > until:
                    raise self._ssh.unreachable(f"no answer within {2 * CONNECT_SECONDS} s".encode())
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def close(self) -> None:
        """End the connection, and with it the commands that still run over it."""
        with self._making:
            self._closed = True
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()
                try:
                    self._process.wait(5)
                except subprocess.TimeoutExpired:
                    self._process.kill()
                    self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


def parse(address: str, config: Path | None = None) -> Ssh:
    """The device at `ssh://[user@]host[:port]`. Raises InputError."""
    found = _ADDRESS.fullmatch(address.removeprefix(SCHEME))
    port = int(found["port"]) if found and found["port"] else None
    if not address.startswith(SCHEME) or found is None or (port is not None and not 0 < port < 65536):
        raise InputError(f"'{address}' is no device: give local, or ssh://user@host[:port].")
    if config is not None and not config.is_file():
        raise InputError(f"{config} is not a file.")
    return Ssh(found["user"], found["host"], port, config)


def last_line(said: bytes) -> str:
    """The last line of what a command said, for a message."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "it gives no reason"


def _no_ssh() -> MissingDependencyError:
    return MissingDependencyError("There is no ssh on this machine; install OpenSSH's client.")
