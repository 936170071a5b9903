"""On a device behind ssh: starts the runner of a benchmark so that it outlives the connection, and ends it if nobody
comes back for it.

    python -m toolkit.devices.detached RUN BASE SECONDS REMOVE

Prints the id of a process group and ends; the group runs `toolkit.bench.runner RUN`. Whoever follows the run touches
`BASE/asked`. If nobody did for SECONDS, the run is ended and the folder REMOVE is removed. SIGTERM to the group ends
the run, too. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from toolkit.bench import runner
from toolkit.storage import write_json

ASKED, SAID = "asked", "said.txt"
_PERIOD_SECONDS = 1.0
_END_SECONDS = 8.0  # in which a runner gives up its control group


def _start(run: Path) -> subprocess.Popen[bytes]:
    request = json.loads((run / runner.REQUEST).read_text(encoding="utf-8"))
    write_json(run / runner.REQUEST, {**request, "parent": os.getpid()})
    with (run / SAID).open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "toolkit.bench.runner", str(run)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip


def _asked(base: Path) -> int | None:
    try:
        return (base / ASKED).stat().st_mtime_ns
    except OSError:
        return None


def guard(run: Path, base: Path, seconds: float, remove: Path) -> None:
    """Stay with a runner until somebody asks after it who finds that it has ended, or for too long nobody does."""
    process = _start(run)
    last, since = _asked(base), time.monotonic()  # which no change of the device's clock moves
    ended = False
    try:
        while time.monotonic() - since < seconds:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_PERIOD_SECONDS)
                time.sleep(_PERIOD_SECONDS if ended else 0)
            asked = _asked(base)
            if asked != last and ended:
                return
            if asked != last:
                last, since = asked, time.monotonic()
            ended = process.poll() is not None
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    shutil.rmtree(remove, ignore_errors=True)


def _ended(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def main(run: str, base: str, seconds: str, remove: str) -> None:
    """Start the group, whose first process is its guard."""
    guarding = os.fork()
    if guarding:
        print(guarding)
        return
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # or ssh would wait for them to be closed
        os.dup2(nothing, stream)
    signal.signal(signal.SIGTERM, _ended)
    guard(Path(run), Path(base), float(seconds), Path(remove))


if __name__ == "__main__":
    main(*sys.argv[1:])
