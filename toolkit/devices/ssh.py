"""A device that is reached by the system's ssh client: run a command there, put files there, get files back.

Host keys must be known and nothing is asked for (BatchMode): what ssh needs stands in the user's own ssh configuration.
A command is a list of arguments; the one string that ssh hands to the remote shell is quoted from it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from toolkit.errors import InputError, MissingDependencyError

SCHEME = "ssh://"
CONNECT_SECONDS = 15
_UNREACHABLE = 255  # ssh's own exit code; any other is the remote command's
_ADDRESS = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][\w.-]*)@)?(?P<host>[A-Za-z0-9][\w.-]*|\[[0-9a-fA-F:.]+\])(?::(?P<port>\d+))?"
)


@dataclass(frozen=True)
class Ssh:
    """A device behind ssh. `config` is an ssh configuration file to use instead of the user's."""

    user: str | None
    host: str
    port: int | None = None
    config: Path | None = None

    @property
    def name(self) -> str:
        return f"{SCHEME}{self.user + '@' if self.user else ''}{self.host}{f':{self.port}' if self.port else ''}"

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The local command that runs `arguments` there."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=yes", f"ConnectTimeout={CONNECT_SECONDS}"]
        options += ["ServerAliveInterval=15", "ServerAliveCountMax=4", "LogLevel=ERROR"]
        made = ["ssh", "-T", *(part for option in options for part in ("-o", option))]
        made += ["-F", str(self.config)] if self.config else []
        made += ["-p", str(self.port)] if self.port else []
        made += ["-l", self.user] if self.user else []
        return [*made, "--", self.host.strip("[]"), shlex.join(arguments)]

    def run(
        self, arguments: Sequence[str], *, timeout_seconds: float = 60, given: Path = Path(os.devnull)
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command there with a file's content as its input. Raises MissingDependencyError if the device is not
        reached, or does not answer in time."""
        try:
            with given.open("rb") as stream:
                done = subprocess.run(
                    self.command(arguments), stdin=stream, capture_output=True, timeout=timeout_seconds, check=False
                )
        except FileNotFoundError as error:  # ssh; `given` is there
            raise MissingDependencyError("There is no ssh on this machine; install OpenSSH's client.") from error
        except subprocess.TimeoutExpired as error:
            raise MissingDependencyError(f"{self.name} did not answer within {timeout_seconds:g} s.") from error
        if done.returncode == _UNREACHABLE:
            raise self._unreachable(done.stderr)
        return done

    def stream(self, arguments: Sequence[str], on_line: Callable[[str], None], timeout_seconds: float) -> int:
        """Run a command there and hand its lines on as they come, those of its standard error too; its exit code.
        Raises MissingDependencyError as `run` does."""
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
            raise MissingDependencyError(f"{self.name} did not end within {timeout_seconds:g} s.")
        if process.returncode == _UNREACHABLE:
            raise self._unreachable(last)
        return process.returncode

    def put(self, source: Path, destination: PurePosixPath, timeout_seconds: float = 600) -> None:
        """Write a file there. Raises InputError if that fails."""
        done = self.run(
            ["sh", "-c", 'cat > "$1"', "sh", str(destination)],
            given=source,
            timeout_seconds=timeout_seconds,
        )
        if done.returncode:
            raise InputError(f"{self.name}: cannot write {destination}: {_last(done.stderr)}.")

    def get(self, source: PurePosixPath, timeout_seconds: float = 600) -> bytes:
        """The bytes of a file there. Raises InputError if it cannot be read."""
        done = self.run(["cat", "--", str(source)], timeout_seconds=timeout_seconds)
        if done.returncode:
            raise InputError(f"{self.name}: cannot read {source}: {_last(done.stderr)}.")
        return done.stdout

    @contextmanager
    def folder(self, keep: str | None) -> Iterator[PurePosixPath]:
        """A folder there for the time of a block: a fresh one that is removed with all that is in it, or the one called
        `keep` in the user's home, which stays. Raises InputError if it cannot be made."""
        make = ["mkdir", "-p", "--", keep] if keep else ["mktemp", "-d"]
        done = self.run(make)
        if done.returncode:
            raise InputError(f"{self.name}: cannot make a folder: {_last(done.stderr)}.")
        path = PurePosixPath(keep) if keep else PurePosixPath(done.stdout.decode().strip())
        try:
            yield path
        finally:
            if not keep:
                self.run(["rm", "-rf", "--", str(path)])

    def _unreachable(self, said: bytes) -> MissingDependencyError:
        return MissingDependencyError(
            f"{self.name} is not reached: {_last(said)}. `ssh {self.host}` must work without a question: a known host "
            "key, and a key of yours that it accepts."
        )


def parse(address: str, config: Path | None = None) -> Ssh:
    """The device at `ssh://[user@]host[:port]`. Raises InputError."""
    found = _ADDRESS.fullmatch(address.removeprefix(SCHEME))
    port = int(found["port"]) if found and found["port"] else None
    if not address.startswith(SCHEME) or found is None or (port is not None and not 0 < port < 65536):
        raise InputError(f"'{address}' is no device: give local, or ssh://user@host[:port].")
    if config is not None and not config.is_file():
        raise InputError(f"{config} is not a file.")
    return Ssh(found["user"], found["host"], port, config)


def _last(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].strip().rstrip(".") if lines else "it gives no reason"
