"""Runs a benchmark's steps on the device, each in a fresh process, and keeps what they gave.

    python -m toolkit.bench.runner FOLDER

`FOLDER/request.json` holds the steps and the limits; each step's result goes to `FOLDER/step-N.json` when it ends, the
progress to `FOLDER/progress.json`, and how all of it ended to `FOLDER/ended.json`. A runner that is started again
goes on behind the last step that has a result: what was measured before a connection or a process was lost is kept.

Needs nothing but the runtime. Limits: `cores`, the numbers of those to run on; `memory_bytes`, by a control group;
`timeout_seconds` for a step; `parent`, the process that this one dies with. `program` is the module that runs a step,
and what a cold start reads beside the bundle and the runtime stands in the step's `loads`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.bench import conditions, page_cache
from toolkit.child import environment
from toolkit.errors import MissingDependencyError, ToolkitError
from toolkit.storage import write_json

REQUEST, PROGRESS, ENDED, LOG = "request.json", "progress.json", "ended.json", "log.txt"
DEFAULT_TIMEOUT_SECONDS = 3600.0
MEASURE = "toolkit.bench.measure"
_LOADED = ("numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime", "openvino", "tokenizers")  # by a cold start


def step_file(number: int) -> str:
    """The name of the file of a step's result."""
    return f"step-{number}.json"


class StepError(ToolkitError):
    """A step did not end as it should; `kind` is how: error, memory, timeout, crash."""

    def __init__(self, kind: str, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.kind, self.exit_code = kind, exit_code


class Runner:
    """One request in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        self._steps: list[dict[str, Any]] = request["steps"]
        self._limits: dict[str, Any] = request.get("limits", {})
        self._program: str = request.get("program", MEASURE)
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> dict[str, Any]:
        """Run what has no result yet; how it ended."""
        before = conditions.now()
        others = conditions.Others()
        ended: dict[str, Any] = {"failed": None}
        try:
            with self._memory_group() as (enter, killed):
                for number, step in enumerate(self._steps):
                    self._say(number, 0, 1, "")
                    if (self._folder / step_file(number)).exists():
                        continue
                    write_json(self._folder / step_file(number), self._step(number, step, enter, killed))
        except StepError as error:
            ended["failed"] = {"kind": error.kind, "error": str(error), "exit_code": error.exit_code}
        except ToolkitError as error:
            ended["failed"] = {"kind": "error", "error": str(error), "exit_code": error.exit_code}
        ended["conditions"] = {"before": before, "after": conditions.now()}
        ended["others"] = others.read({os.getpid()})
        return ended

    @contextlib.contextmanager
    def _memory_group(self) -> Any:
        limit = self._limits.get("memory_bytes")
        if limit is None:
            yield None, lambda: 0
            return
        from toolkit.devices import cgroup

        with cgroup.memory(int(limit)) as group:
            yield group.enter(), lambda: group.killed

    def _step(
        self, number: int, step: Mapping[str, Any], enter: Callable[[], None] | None, killed: Callable[[], int]
    ) -> dict[str, Any]:
        """Run one step in a process of its own. Raises StepError."""
        given, result = self._folder / f"given-{number}.json", self._folder / f"result-{number}.json"
        resident = None
        if step.get("cold"):
            folders = [Path(folder) for folder in (step["bundle"], *step.get("loads", ()))]
            resident = page_cache.drop(page_cache.files_of(folders, _LOADED))
        write_json(given, {**step, "parent": os.getpid(), "result": str(result), "spawned": time.monotonic()})
        killed_before = killed()
        with (self._folder / LOG).open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", self._program, str(given)],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment(),
                preexec_fn=lambda: _begin(self._limits.get("cores"), enter),
            )  # fmt: skip
            timed_out = self._follow(number, float(step.get("timeout_seconds") or DEFAULT_TIMEOUT_SECONDS))
        code, self._child = self._child.returncode, None
        if timed_out:
            raise StepError("timeout", f"'{step['what']}' did not end within {timed_out:g} s and was ended.", 3)
        if killed() > killed_before:
            limit = self._limits["memory_bytes"] / 1e6
            raise StepError("memory", f"'{step['what']}' needs more than the {limit:.0f} MB that it may have.", 1)
        if result.exists():
            answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
            if "error" in answer:
                raise StepError(answer.get("kind", "error"), answer["error"], answer["exit_code"])
            return {**answer, "cold_resident": resident} if step.get("cold") else answer
        if code == -signal.SIGKILL:
            raise StepError("memory", f"'{step['what']}' was killed, most likely because the memory ran out.", 1)
        lines = (self._folder / LOG).read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "no message"
        raise StepError("crash", f"'{step['what']}' ended with code {code}: {said}", 2)

    def _follow(self, number: int, timeout_seconds: float) -> float | None:
        """Hand on the progress of the running child until it ends; the timeout if that ended it."""
        child = self._child
        assert child is not None and child.stdout is not None  # noqa: S101 - just started
        ended = threading.Event()

        def end() -> None:
            ended.set()
            child.kill()

        timer = threading.Timer(timeout_seconds, end)
        timer.start()
        try:
            for line in child.stdout:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    told = json.loads(line)
                    self._say(number, told["done"], told["total"], told["text"])
            child.wait()
        finally:
            timer.cancel()
            child.stdout.close()
        return timeout_seconds if ended.is_set() else None

    def _say(self, number: int, done: int, total: int, text: str) -> None:
        said = {"step": number, "steps": len(self._steps), "what": self._steps[number]["what"]}
        temporary = self._folder / f".{PROGRESS}"  # need not outlive a crash: renamed, not fsynced
        temporary.write_text(json.dumps({**said, "done": done, "total": total, "text": text}), encoding="utf-8")
        temporary.replace(self._folder / PROGRESS)

    def end(self) -> None:
        """End the running child."""
        if self._child is not None:
            self._child.kill()


def _begin(cores: list[int] | None, enter: Callable[[], None] | None) -> None:
    """In the child, before it becomes a Python."""
    if cores:
        os.sched_setaffinity(0, cores)
    if enter is not None:
        enter()


def main(folder: str) -> int:
    """Run the request in `folder`."""
    from toolkit.child import die_with_parent

    runner = Runner(Path(folder))
    parent = json.loads((Path(folder) / REQUEST).read_text(encoding="utf-8")).get("parent")

    def end(*_: object) -> None:
        runner.end()
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    if parent is not None:
        die_with_parent(int(parent))
    try:
        ended = runner.run()
    except MissingDependencyError as error:
        ended = {"failed": {"kind": "error", "error": str(error), "exit_code": error.exit_code}}
    write_json(Path(folder) / ENDED, ended)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
