"""A run of `toolkit.bench.runner`, followed from here: its progress, and what it gave when it ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Callable
from typing import Any

from toolkit.bench import runner
from toolkit.devices import Outcome, Progress

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
