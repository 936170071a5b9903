"""A run of `toolkit.bench.runner`, followed from here: its progress, and what it gave when it ended."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit import child
from toolkit.bench import runner
from toolkit.devices import Outcome, Progress
from toolkit.errors import InputError
from toolkit.storage import write_json

Read = Callable[[str], bytes | None]  # the content of a file of the run's folder; None if it is not there
_PERIOD_SECONDS = 0.1


def tell(read: Read, progress: Progress) -> None:
    """Hand on how far a run has come."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        said = json.loads(read(runner.PROGRESS) or b"null")
        whole = 1000
        within = said["done"] / max(said["total"], 1)
        text = f"{said['what']}: {said['text']}" if said["text"] else str(said["what"])
        progress(int(whole * (said["step"] + min(within, 1.0))), whole * said["steps"], text)


def outcome(read: Read, steps: list[dict[str, Any]], failed: dict[str, Any] | None = None) -> Outcome:
    """What a run gave so far; `failed` is how it failed where it could not say so itself."""
    results: list[dict[str, Any] | None] = []
    for number in range(len(steps)):
        content = read(runner.step_file(number))
        results.append(json.loads(content) if content is not None else None)
    ended = json.loads(read(runner.ENDED) or b"{}")
    return Outcome(results, failed or ended.get("failed"), ended.get("conditions", {}), ended.get("others", {}))


def follow(read: Read, process: subprocess.Popen[bytes], steps: list[dict[str, Any]], progress: Progress) -> Outcome:
    """Wait for a runner that is a child of this process."""
    while True:
        try:
            process.wait(_PERIOD_SECONDS)
            break
        except subprocess.TimeoutExpired:
            tell(read, progress)
    failed = None
    if read(runner.ENDED) is None:
        said = (process.stderr.read() if process.stderr else b"").decode(errors="replace").strip().splitlines()
        why = said[-1] if said else f"it ended with code {process.returncode}"
        failed = {"kind": "crash", "error": f"The benchmark's runner was ended: {why}", "exit_code": 3}
    return outcome(read, steps, failed)


class Here:
    """Runs on this machine, each in a folder of its own; all of them are gone after `close`. `program` is the module
    that runs one step."""

    def __init__(self, limits: dict[str, Any], program: str = runner.MEASURE) -> None:
        self._limits, self._program = limits, program
        self._work = tempfile.TemporaryDirectory(prefix="toolkit-bench-", ignore_cleanup_errors=True)
        self._folder = Path(self._work.name)
        self._runs = 0

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Run steps by a runner that dies with this process."""
        self._runs += 1
        self._folder = Path(self._work.name) / f"run-{self._runs}"
        scratch = self._folder / "scratch"  # what a step that was killed could not remove goes with the rest
        scratch.mkdir(parents=True)
        request = {"steps": steps, "limits": self._limits, "parent": os.getpid(), "program": self._program}
        write_json(self._folder / runner.REQUEST, request)
        environ = {**child.environment(), "TMPDIR": str(scratch)}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "toolkit.bench.runner", str(self._folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environ,
            start_new_session=True,  # Ctrl-C reaches this process only, which ends the runner
        )  # fmt: skip
        try:
            return follow(self._read, process, steps, progress)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()

    def pull(self, name: str) -> bytes:
        """A file of the last run. Raises InputError if there is none."""
        found = self._read(name)
        if found is None:
            raise InputError(f"The run on this machine wrote no {name}.")
        return found

    def _read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def close(self) -> None:
        """Remove what the runs wrote."""
        self._work.cleanup()
