"""The stage cache: finished outputs by content key.

    CACHE/stages/KEY/output/      what the stage wrote
    CACHE/stages/KEY/receipt.json
    CACHE/resume/KEY/             what lets a killed stage go on
    CACHE/work/                   outputs being written; renamed into place when whole

A key never points to half an output: the folder appears by one rename, after an fsync.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import InputError
from toolkit.storage import explained


def default_folder() -> Path:
    """`$TOOLKIT_CACHE`, else `toolkit` in the user's cache folder."""
    given = os.environ.get("TOOLKIT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toolkit"


class Cache:
    """One cache folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            for name in ("stages", "resume", "work", "locks"):
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"Cannot make the cache {folder}: {error.strerror}. Name another folder with --cache-dir."
            ) from error

    def entry(self, key: str) -> Path:
        """Folder of the finished stage `key`; it exists only if the stage is finished."""
        return self.folder / "stages" / key

    def receipt(self, key: str) -> dict[str, Any] | None:
        """The receipt of a finished stage, or None."""
        path = self.entry(key) / "receipt.json"
        if not path.exists():
            return None
        receipt: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return receipt

    def resume(self, key: str) -> Path:
        """Folder in which the stage `key` may keep what lets it go on after a kill."""
        return self.folder / "resume" / key

    def forget(self, key: str) -> None:
        """Remove a finished stage and what it kept for resuming. Held under `lock`."""
        aside = self.folder / "work" / f"{key}.forgotten"  # a kill while removing must not leave half an entry
        shutil.rmtree(aside, ignore_errors=True)
        if self.entry(key).exists():
            self.entry(key).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(self.resume(key), ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, key: str, stopping: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """Only one process makes the output of a key; a second one waits and then finds it. Raises KeyboardInterrupt
        if `stopping` becomes true while it waits."""
        import fcntl

        path = self.folder / "locks" / key
        with path.open("a") as stream:
            while True:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stopping():
                        raise KeyboardInterrupt from None
                    time.sleep(0.1)
            yield

    @contextlib.contextmanager
    def work(self, key: str) -> Iterator[Path]:
        """An empty folder for the run of one stage, with what a killed run left cleared away. Held under `lock`.

        Every run has one of its own name, so that a process of a killed run cannot touch what the next one writes.
        """
        for left in (self.folder / "work").glob(f"{key}.*"):
            shutil.rmtree(left, ignore_errors=True)
        with explained("running a stage", self.folder / "work"):
            folder = Path(tempfile.mkdtemp(dir=self.folder / "work", prefix=f"{key}."))
            (folder / "entry" / "output").mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, key: str, work: Path) -> None:
        """Move `work/entry` into place. Raises InputError if the disk is full."""
        from toolkit.storage import fsync_tree

        with explained("keeping a finished stage", self.folder):
            fsync_tree(work / "entry")
            shutil.rmtree(self.entry(key), ignore_errors=True)
            (work / "entry").rename(self.entry(key))
            shutil.rmtree(self.resume(key), ignore_errors=True)


def open_cache(folder: Path | None) -> Cache:
    """The cache at `folder`, or the user's default one."""
    return Cache(folder or default_folder())
