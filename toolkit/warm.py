"""A process that imports torch and transformers once, and forks a copy of itself for every stage that needs them.

Importing the two takes four seconds of processor time; a fork takes milliseconds, and its pages are shared. Every
stage still runs in a process of its own. Linux only: elsewhere, and if anything goes wrong here, stages start as
ordinary children.

Three processes stand in a row: the warm process, a keeper per stage, the stage. The keeper waits for its stage and
tells how it ended, so that the warm process never waits for anything but the next request. Each dies with the one
before it.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import IO

from toolkit import child

# What loading a checkpoint needs; the rest is imported by the stage that uses it.
PRELOAD = ("torch", "transformers", "transformers.modeling_utils", "transformers.models.auto.modeling_auto")
_LONGEST_MESSAGE = 65536


def is_supported() -> bool:
    """True where a process may fork after it has imported libraries that start threads."""
    return sys.platform == "linux"


class Forked:
    """A stage's process, with the part of `subprocess.Popen` that `toolkit.child.Child` uses."""

    def __init__(self, status: int) -> None:
        self.returncode: int | None = None
        self._pid: int | None = None
        self._status = status

    def _read(self, timeout: float | None) -> bool:
        """Take what the keeper tells next: first the process id, then the exit code. False if nothing came."""
        if not select.select([self._status], [], [], timeout)[0]:
            return False
        message = os.read(self._status, 4)
        number = array.array("i", message)[0] if message else -signal.SIGKILL  # the keeper was killed, too
        if self._pid is None and message:
            self._pid = number
        else:
            self._end(number)
        return True

    def _end(self, code: int) -> None:
        self.returncode = code
        os.close(self._status)

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, negative for a signal. Raises subprocess.TimeoutExpired."""
        while self.returncode is None:
            if not self._read(timeout):
                raise subprocess.TimeoutExpired("a stage", timeout or 0)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the stage, once it has started."""
        while self._pid is None and self.returncode is None:
            self._read(None)
        if self.returncode is None and self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def kill(self) -> None:
        """End the stage now. If it has not started yet, its keeper finds nobody to tell, and ends it."""
        if self.returncode is None and self._pid is None and not self._read(0):
            self._end(-signal.SIGKILL)
        else:
            self.send_signal(signal.SIGKILL)


class Warm:
    """The parent's side: starts the warm process, and has it fork."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def start(self) -> None:
        """Start importing, in the background. Does nothing if that was done before or cannot be done here."""
        with self._guard:
            if self._process is not None or not is_supported():
                return
            self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs, child.blocked(signal.SIGINT):
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "toolkit.warm", str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env=child.environment(),
                    start_new_session=True,
                )

    def fork(self, module: str, request_file: Path, log: IO[bytes], progress: int) -> Forked | None:
        """Run `module.main(request_file)` in a fork whose output goes to `log`. None if there is no warm process."""
        reading, writing = os.pipe()
        message = json.dumps({"module": module, "request": str(request_file)}).encode()
        try:
            with self._guard:
                if self._connection is None:
                    raise BrokenPipeError
                socket.send_fds(self._connection, [message], [log.fileno(), progress, writing])
        except OSError:
            os.close(reading)
            return None
        finally:
            os.close(writing)
        return Forked(reading)

    def stop(self) -> None:
        """End the warm process, and with it all that it forked."""
        with self._guard:
            if self._connection is not None:
                self._connection.close()
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            self._connection = self._process = None


def _stage(message: dict[str, str], log: int, progress: int, keeper: int) -> int:
    """In the stage's process: its exit code."""
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        module = importlib.import_module(message["module"])
        return int(module.main(message["request"], parent=keeper, progress=progress))
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _keep(message: dict[str, str], log: int, progress: int, status: int, warm: int) -> None:
    """In the keeper: fork the stage, tell its process id, wait, tell how it ended."""
    child.die_with_parent(warm)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    keeper = os.getpid()  # asking a stage for its parent would give whoever adopted it, if the keeper died meanwhile
    pid = os.fork()
    if pid == 0:
        os.close(status)
        os._exit(_stage(message, log, progress, keeper))
    os.close(log)
    os.close(progress)
    os.write(status, array.array("i", [pid]).tobytes())
    _, ended = os.waitpid(pid, 0)
    os.write(status, array.array("i", [os.waitstatus_to_exitcode(ended)]).tobytes())


def _hung_up(connection: socket.socket) -> bool:
    """Whether the other end is closed, though there may be messages of it yet."""
    poll = select.poll()
    poll.register(connection, select.POLLHUP)
    return bool(poll.poll(0))


def main(descriptor: int) -> int:
    """The warm process: import, then fork on request until the parent hangs up or is gone."""
    for name in PRELOAD:
        with contextlib.suppress(ImportError):  # the stage itself says which extra is missing
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers end on their own
    own = os.getpid()
    with socket.socket(fileno=descriptor) as connection:
        while True:
            data, descriptors, _, _ = socket.recv_fds(connection, _LONGEST_MESSAGE, 3)
            if not data or _hung_up(connection):  # a request of a run that was killed since is still delivered
                return 0
            if os.fork() == 0:
                connection.close()
                try:
                    log, progress, status = descriptors
                    _keep(json.loads(data), log, progress, status, own)
                finally:
                    os._exit(0)
            for each in descriptors:
                os.close(each)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
