"""Stages forked from a process that has imported torch: they run, fail, are killed, and never outlive their run."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolkit import warm
from toolkit.child import Child
from toolkit.errors import InputError, MissingDependencyError
from toolkit.warm import Warm

pytestmark = pytest.mark.skipif(not warm.is_supported(), reason="stages are forked on Linux only")

# What a child does is asked for in its request; it tells its process id as progress.
MODULE = """
import json, os, signal, sys
from pathlib import Path
from toolkit import child
from toolkit.storage import write_json

def main(request_file, **inherited):
    request = json.loads(Path(request_file).read_text()) | inherited
    child.die_with_parent(request["parent"])
    print("said on standard output")
    child.reporter(request["progress"])(1, 1, str(os.getpid()))
    if request["ask"] == "answer":
        blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        write_json(Path(request["result"]), {"torch": "torch" in sys.modules, "sigint_blocked": blocked})
    if request["ask"] == "exit":
        sys.exit(7)
    if request["ask"] == "abort":
        os.abort()
    if request["ask"] == "raise":
        raise ValueError("one line for people")
    if request["ask"] == "wait":
        signal.pause()
    return 0

if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A module of the children's, importable by them."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "asked.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield "asked"


@pytest.fixture(scope="module")
def parent(module: str) -> Iterator[Warm]:
    """A warm process for the tests that leave it alive."""
    started = Warm()
    started.start()
    yield started
    started.stop()


class Started:
    """A child and the process id that it told."""

    def __init__(self, module: str, ask: str, folder: Path, parent: Warm | None) -> None:
        folder.mkdir()
        self._told = threading.Event()
        self._pid = 0
        self.child = Child(module, {"ask": ask}, folder, on_progress=self._tell, warm=parent)

    def _tell(self, _done: int, _total: int, text: str) -> None:
        self._pid = int(text)
        self._told.set()

    @property
    def pid(self) -> int:
        assert self._told.wait(60)
        return self._pid


def ended(pid: int) -> bool:
    """Wait until a process is gone."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with os.fdopen(descriptor):
        return bool(select.select([descriptor], [], [], 30)[0])


def test_a_forked_child_answers_and_has_torch(module: str, parent: Warm, tmp_path: Path) -> None:
    forked = Started(module, "answer", tmp_path / "forked", parent)
    assert forked.child.result() == {"torch": True, "sigint_blocked": True}
    assert forked.child.log.read_text() == "said on standard output\n"
    ordinary = Started(module, "answer", tmp_path / "ordinary", None)
    assert ordinary.child.result() == {"torch": False, "sigint_blocked": True}


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        ("exit", InputError, "ended with code 7"),
        ("abort", InputError, f"ended with code {-signal.SIGABRT}"),
        ("raise", InputError, "ValueError: one line for people"),
    ],
)
@pytest.mark.parametrize("forks", [True, False])
def test_a_child_that_fails_says_so(
    module: str, parent: Warm, tmp_path: Path, ask: str, error: type[Exception], message: str, forks: bool
) -> None:
    started = Started(module, ask, tmp_path / "work", parent if forks else None)
    with pytest.raises(error, match=message):
        started.child.result()


def test_a_child_that_the_system_kills_is_taken_for_out_of_memory(module: str, parent: Warm, tmp_path: Path) -> None:
    started = Started(module, "wait", tmp_path / "work", parent)
    os.kill(started.pid, signal.SIGKILL)
    with pytest.raises(MissingDependencyError, match="memory ran out"):
        started.child.result()


def test_kill_ends_a_child_whether_it_has_started_or_not(module: str, tmp_path: Path) -> None:
    parent = Warm()
    parent.start()
    early = Started(module, "wait", tmp_path / "early", parent)
    early.child.kill()
    late = Started(module, "wait", tmp_path / "late", parent)
    pid = late.pid
    late.child.kill()
    assert ended(pid)
    after = Started(module, "answer", tmp_path / "after", parent)
    assert after.child.result()["torch"] is True
    parent.stop()


def test_stop_takes_running_children_along(module: str, tmp_path: Path) -> None:
    parent = Warm()
    parent.start()
    started = Started(module, "wait", tmp_path / "work", parent)
    pid = started.pid
    parent.stop()
    assert ended(pid)


def test_an_ordinary_child_takes_over_when_the_warm_process_is_gone(module: str, tmp_path: Path) -> None:
    parent = Warm()
    parent.start()
    assert parent._process is not None
    parent._process.kill()
    parent._process.wait()
    started = Started(module, "answer", tmp_path / "work", parent)
    assert started.child.result()["torch"] is False
    parent.stop()


def test_what_a_killed_run_asked_for_while_libraries_were_imported_is_not_run(module: str, tmp_path: Path) -> None:
    """The request waits in the socket while the warm process imports: by then its run may be dead, and a new one may be
    at work in the same place."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    request, result = tmp_path / "request.json", tmp_path / "result.json"
    request.write_text(json.dumps({"ask": "answer", "result": str(result)}))
    reading, writing = os.pipe()
    with ours, theirs, (tmp_path / "log.txt").open("wb") as log:
        message = json.dumps({"module": module, "request": str(request)}).encode()
        socket.send_fds(ours, [message], [log.fileno(), writing, writing])
        ours.close()
        os.close(writing)
        root = str(Path(warm.__file__).resolve().parents[1])
        subprocess.run(
            [sys.executable, "-m", "toolkit.warm", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], root])},
            check=True,
        )
    with os.fdopen(reading, "rb") as stream:  # closed by all that could hold it
        assert stream.read() == b""
    assert not result.exists()
    assert (tmp_path / "log.txt").read_bytes() == b""


def test_nothing_outlives_a_killed_run(module: str, tmp_path: Path) -> None:
    script = tmp_path / "run.py"  # its first line is the warm process's id or the stage's, the second the other's
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from toolkit.child import Child\n"
        "from toolkit.warm import Warm\n"
        "parent = Warm()\n"
        "parent.start()\n"
        "tell = lambda done, total, text: print(text, flush=True)\n"
        f"child = Child({module!r}, {{'ask': 'wait'}}, Path(sys.argv[1]), on_progress=tell, warm=parent)\n"
        "print(parent._process.pid, flush=True)\n"
        "child.result()\n"
    )
    root = str(Path(warm.__file__).resolve().parents[1])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], root])}
    run = subprocess.Popen([sys.executable, str(script), str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environ)
    assert run.stdout is not None
    processes = [int(run.stdout.readline()) for _ in range(2)]
    run.kill()
    run.wait()
    assert all(ended(process) for process in processes)
