"""Runs stages: cache, child process, progress, receipt."""

from __future__ import annotations

import contextlib
import importlib.metadata
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from toolkit import stages
from toolkit.cache import Cache
from toolkit.child import Child
from toolkit.errors import ToolkitError
from toolkit.storage import explained, sha256_folder, sha256_json, write_json
from toolkit.warm import Warm


class Reporter(Protocol):
    """What is told about a run while it goes on."""

    def started(self, title: str) -> None: ...

    def progress(self, title: str, done: int, total: int, text: str) -> None: ...

    def finished(self, title: str, receipt: Mapping[str, Any], cached: bool) -> None: ...

    def failed(self, title: str, reason: str) -> None: ...


class Silent:
    """A reporter that says nothing."""

    def started(self, title: str) -> None: ...

    def progress(self, title: str, done: int, total: int, text: str) -> None: ...

    def finished(self, title: str, receipt: Mapping[str, Any], cached: bool) -> None: ...

    def failed(self, title: str, reason: str) -> None: ...


@dataclass(frozen=True)
class Finished:
    """A stage's output folder and its receipt."""

    output: Path
    receipt: dict[str, Any]

    @property
    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = self.receipt["report"]
        return report

    @property
    def sha256(self) -> str:
        return str(self.receipt["output_sha256"])


def library_versions(names: tuple[str, ...]) -> dict[str, str]:
    """Installed versions of the distributions that are there."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def interrupted_key(key: str, output_sha256: str) -> str:
    """Where the cache keeps what came of a stage that Ctrl-C ended early: it is not what its `key` promises."""
    return sha256_json({"interrupted": key, "output": output_sha256})


@dataclass
class Runner:
    """One run: where its cache is, and what all its stages share."""

    cache: Cache
    task: str
    seed: int
    reporter: Reporter = field(default_factory=Silent)
    force: bool = False
    receipts: list[dict[str, Any]] = field(default_factory=list)
    _warm: Warm | None = None
    _running: dict[str, Child] = field(default_factory=dict)  # by title
    _training: dict[str, Child] = field(default_factory=dict)  # those of them that keep their best epoch if interrupted
    _stopping: bool = False
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self,
        stage: str,
        source: Path,
        parameters: Mapping[str, Any],
        *,
        title: str,
        reason: str,
        inputs: Mapping[str, str],
        data: Finished | None = None,
        threads: int = 1,
        key_parameters: Mapping[str, Any] | None = None,
        resumable: bool = False,
        with_torch: bool = False,
    ) -> Finished:
        """Run a stage, or take its output from the cache.

        `inputs` are the content hashes of everything that it reads; `key_parameters` stand for `parameters` in the
        key where those name folders. `title` is for people, `reason` says why the stage is there. `with_torch` says
        that the stage imports torch, so that it may start in a process that has (`warmed`).
        """
        module = stages.get(stage)
        libraries = library_versions(module.LIBRARIES)
        identity = {
            "stage": stage,
            "version": module.VERSION,
            "parameters": dict(parameters if key_parameters is None else key_parameters),
            "inputs": dict(inputs),
            "data": data.sha256 if data else None,
            "task": self.task,
            "seed": self.seed,
            "libraries": libraries,
        }
        key = sha256_json(identity)
        with self.cache.lock(key, lambda: self._stopping):
            if self.force and not any(known["key"] == key for known in self.receipts):  # once per run
                self.cache.forget(key)
            receipt = self.cache.receipt(key)
            cached = receipt is not None
            if receipt is None:
                request = {
                    "stage": stage,
                    "source": str(source),
                    "parameters": dict(parameters),
                    "task": self.task,
                    "seed": self.seed,
                    "threads": threads,
                    "data": str(data.output) if data else None,
                    "resume": str(self.cache.resume(key)) if resumable else None,
                }
                self.reporter.started(title)
                try:
                    identity |= {"title": title, "reason": reason}
                    key, receipt = self._make(key, request, title, identity, with_torch)
                except ToolkitError as error:
                    self.reporter.failed(title, str(error))
                    raise
        with self._guard:
            again = any(known["key"] == receipt["key"] for known in self.receipts)
            if not again:
                self.receipts.append({**receipt, "cached": cached})
        if not again:
            self.reporter.finished(title, receipt, cached)
        return Finished(self.cache.entry(key) / "output", receipt)

    def _make(
        self, key: str, request: dict[str, Any], title: str, identity: dict[str, Any], with_torch: bool
    ) -> tuple[str, dict[str, Any]]:
        """Run the stage's child and publish its output: the key under which it lies, and the receipt."""
        with self.cache.work(key) as work:
            request["output"] = str(work / "entry" / "output")

            def progress(done: int, total: int, text: str) -> None:
                self.reporter.progress(title, done, total, text)

            with explained("starting a stage", work):
                if self._warm is not None:
                    self._warm.start()
                warm = self._warm if with_torch else None
                child = Child("toolkit.stages.process", request, work, on_progress=progress, warm=warm)
            result = self._wait(title, child, trains=request["resume"] is not None)
            receipt = {
                **identity,
                "key": key,
                "threads": request["threads"],
                "seconds": result["seconds"],
                "peak_rss_bytes": result["peak_rss_bytes"],
                "report": result["report"],
                "output_sha256": sha256_folder(work / "entry" / "output"),
            }
            interrupted = bool(result["report"].get("interrupted"))
            if interrupted:  # kept apart, and the rest stays resumable
                key = interrupted_key(key, receipt["output_sha256"])
            with explained("keeping a finished stage", work):
                write_json(work / "entry" / "receipt.json", receipt)
            self.cache.publish(key, work)
        return key, receipt

    def _wait(self, title: str, child: Child, trains: bool) -> dict[str, Any]:
        with self._guard:
            self._running[title] = child
            if trains:
                self._training[title] = child
        try:
            while not child.poll(0.2):
                if self._stopping:
                    raise KeyboardInterrupt
            return child.result()
        except BaseException:  # Ctrl-C, in whichever way: nobody waits for the child any more
            child.kill()
            raise
        finally:
            with self._guard:
                del self._running[title]
                self._training.pop(title, None)

    @contextlib.contextmanager
    def warmed(self) -> Iterator[None]:
        """For the time of a block, which will run several stages that need torch: import it once, when the first stage
        turns out not to be in the cache, and fork them from there."""
        self._warm = Warm()
        try:
            yield
        finally:
            self._warm.stop()
            self._warm = None

    def training(self) -> bool:
        """True while a stage runs that an interruption does not waste."""
        return bool(self._training)

    def interrupt(self) -> None:
        """Ask the training to stop early and keep its best epoch."""
        for child in list(self._training.values()):  # no lock: a signal handler calls this, whoever holds it
            child.interrupt()

    def note(self, finished: Finished, **facts: Any) -> None:
        """Add to a stage's receipt in this run what came after it: whether gates kept its output, and why."""
        for receipt in self.receipts:
            if receipt["key"] == finished.receipt["key"]:
                receipt.update(facts)

    def stop(self) -> None:
        """End all running stages."""
        self._stopping = True

    def write_receipts(self, folder: Path) -> None:
        """One numbered file per stage of this run, in the order in which they ended."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for number, receipt in enumerate(self.receipts, start=1):
            name = receipt["title"].replace(" ", "-").replace("/", "-")
            write_json(folder / f"{number:02d}-{name}.json", receipt)
