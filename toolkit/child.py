"""Child processes: start one, follow its progress, and make sure that it never outlives its parent.

Stages and benchmarks run in children of their own. A child gets a request file, reports progress as JSON lines on
a pipe and leaves its result, or its error, in a result file.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import silence
from toolkit.errors import InputError, MissingDependencyError, RefusedError, ToolkitError
from toolkit.storage import write_json

if TYPE_CHECKING:
    from toolkit.warm import Forked, Warm

_BY_EXIT_CODE: dict[int, type[ToolkitError]] = {1: RefusedError, 2: InputError, 3: MissingDependencyError}


def die_with_parent(parent: int) -> None:
    """In a child: ask Linux to kill this process when its parent dies, so that a killed run leaves nothing behind."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def bound() -> Callable[[], None]:
    """For a process that imports nothing of this toolkit: the `preexec_fn` by which it dies with this one."""
    return functools.partial(die_with_parent, os.getpid())


def peak_rss_bytes() -> int | None:
    """Highest resident set of this process so far; None where the system does not say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def environment() -> dict[str, str]:
    """The environment of a child: this process's, silenced, and with this very toolkit on its import path."""
    environ = dict(os.environ)
    silence.apply(environ)
    package_parent = str(Path(__file__).resolve().parent.parent)
    # OpenMP threads that wait by spinning take the cores from those they wait for when the machine is shared: two
    # fine-tunings at a time took four times as long.
    environ.setdefault("GOMP_SPINCOUNT", "1000")
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, environ.get("PYTHONPATH")]))
    return environ


@contextlib.contextmanager
def blocked(number: signal.Signals) -> Iterator[None]:
    """Block a signal in this thread for the time of a block; processes started in it inherit that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Child:
    """A running child; `wait` returns its result or raises what it reported."""

    def __init__(
        self,
        module: str,
        request: dict[str, Any],
        folder: Path,
        *,
        on_progress: Callable[[int, int, str], None] | None = None,
        environ: Mapping[str, str] | None = None,
        warm: Warm | None = None,
    ) -> None:
        """Start `python -m module` with `request`; its files (request, result, log) go to `folder`. `environ` adds to
        this process's environment. `warm` is the process to fork the child from, if it still can."""
        self.log = folder / "log.txt"
        self._result = folder / "result.json"
        reading, writing = os.pipe()
        request = {**request, "parent": os.getpid(), "result": str(self._result), "progress": writing}
        request_file = folder / "request.json"
        write_json(request_file, request)
        # -P keeps the user's working folder off the import path: a file there named like a library is not it.
        command = [sys.executable, "-P", "-m", module, str(request_file)]
        # SIGINT stays pending in the child until a stage that knows what to do with it lets it through.
        with self.log.open("wb") as log, blocked(signal.SIGINT):
            forked = warm.fork(module, request_file, log, writing) if warm else None
            self._process: subprocess.Popen[bytes] | Forked = forked or subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[writing],
                env={**environment(), **(environ or {})},
                start_new_session=True,  # Ctrl-C reaches the parent only, which decides
            )
        os.close(writing)
        self._follower = threading.Thread(target=self._follow, args=(reading, on_progress), daemon=True)
        self._follower.start()

    @staticmethod
    def _follow(descriptor: int, on_progress: Callable[[int, int, str], None] | None) -> None:
        with os.fdopen(descriptor, encoding="utf-8") as stream:
            for line in stream:
                if on_progress is not None:
                    event = json.loads(line)
                    on_progress(event["done"], event["total"], event["text"])

    def interrupt(self) -> None:
        """Send SIGINT, the polite request to stop early."""
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()
        self._process.wait()

    def poll(self, seconds: float) -> bool:
        """Wait up to `seconds`; True when the child has ended."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def result(self) -> dict[str, Any]:
        """The result of a child that has ended. Raises the error that it reported, or InputError with the last line
        of its log if it crashed."""
        self._process.wait()
        self._follower.join(timeout=5)
        if self._result.exists():
            answer: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
            if "error" in answer:
                failure = _BY_EXIT_CODE.get(answer["exit_code"], InputError)(answer["error"])
                if "traceback" in answer:
                    failure.add_note(answer["traceback"])
                raise failure
            return answer
        code = self._process.returncode
        if code == -signal.SIGKILL:
            raise MissingDependencyError("the process was killed, most likely because the memory ran out")
        lines = self.log.read_text(errors="replace").strip().splitlines()
        raise InputError(f"the process ended with code {code}: {lines[-1] if lines else 'no message'}")


def reporter(descriptor: int) -> Callable[[int, int, str], None]:
    """In a child: the progress callback that writes to the parent's pipe, at most ten lines a second."""
    import time

    last = 0.0

    def report(done: int, total: int, text: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < 0.1 and done < total:
            return
        last = now
        os.write(descriptor, (json.dumps({"done": done, "total": total, "text": text}) + "\n").encode())

    return report
