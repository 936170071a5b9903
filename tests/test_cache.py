"""The stage cache: a key points to a whole output or to nothing, and the runner's keys follow the inputs."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.small_inputs import ROWS, csv_text, tiny_checkpoint
from toolkit import cache as caches
from toolkit.cache import Cache
from toolkit.errors import InputError
from toolkit.runner import Finished, Runner
from toolkit.storage import sha256_file, write_json


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def make(cache: Cache, key: str, text: str) -> None:
    with cache.work(key) as work:
        (work / "entry" / "output" / "a").write_text(text)
        write_json(work / "entry" / "receipt.json", {"text": text})
        cache.publish(key, work)


def test_an_unknown_key_has_nothing(cache: Cache) -> None:
    assert cache.receipt("k") is None
    assert not cache.entry("k").exists()


def test_a_published_stage_is_found_and_its_work_is_gone(cache: Cache) -> None:
    (cache.resume("k") / "state").mkdir(parents=True)
    make(cache, "k", "one")
    assert cache.receipt("k") == {"text": "one"}
    assert (cache.entry("k") / "output" / "a").read_text() == "one"
    assert not cache.resume("k").exists()
    assert list((cache.folder / "work").iterdir()) == []
    make(cache, "k", "two")
    assert (cache.entry("k") / "output" / "a").read_text() == "two"


def test_a_failed_stage_leaves_nothing_but_what_it_may_resume_from(cache: Cache) -> None:
    (cache.resume("k") / "state").mkdir(parents=True)
    with pytest.raises(RuntimeError), cache.work("k") as work:
        (work / "entry" / "output" / "a").write_text("half")
        raise RuntimeError
    assert cache.receipt("k") is None
    assert list((cache.folder / "work").iterdir()) == []
    assert (cache.resume("k") / "state").is_dir()


def test_what_a_killed_run_left_is_not_taken_over(cache: Cache) -> None:
    killed = cache.work("k")
    left = killed.__enter__()
    (left / "entry" / "output" / "half").write_text("half")
    with cache.work("k") as work:
        assert list((work / "entry" / "output").iterdir()) == []
        assert work != left  # a process of the killed run that is still there writes elsewhere
        assert not left.exists()


def test_forgetting_removes_the_stage_and_its_resume_state(cache: Cache) -> None:
    make(cache, "k", "one")
    cache.resume("k").mkdir()
    cache.forget("k")
    cache.forget("k")
    assert cache.receipt("k") is None
    assert not cache.resume("k").exists()


def test_one_key_is_made_by_one_at_a_time(cache: Cache) -> None:
    inside = threading.Event()

    def second() -> None:
        with Cache(cache.folder).lock("k"):
            inside.set()

    other = threading.Thread(target=second)
    with cache.lock("k"):
        other.start()
        with cache.lock("another key"):  # does not wait
            assert not inside.wait(0.05)
    other.join(10)
    assert inside.is_set()


def test_default_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "mine"))
    assert caches.default_folder() == tmp_path / "mine"
    monkeypatch.delenv("TOOLKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert caches.default_folder() == tmp_path / "xdg" / "toolkit"


def test_a_cache_that_cannot_be_made_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300)):
        with pytest.raises(InputError, match="--cache-dir"):
            caches.open_cache(folder)


class Watching:
    """A reporter that notes what ran, what came from the cache, and what failed."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def started(self, title: str) -> None:
        self.seen.append("started")

    def progress(self, title: str, done: int, total: int, text: str) -> None: ...

    def finished(self, title: str, receipt: Mapping[str, Any], cached: bool) -> None:
        self.seen.append("cached" if cached else "ran")

    def failed(self, title: str, reason: str) -> None:
        self.seen.append("failed")


def run_prepare(
    cache: Cache, checkpoint: Path, data: Path, *, seed: int = 0, force: bool = False, **parameters: Any
) -> tuple[list[str], Finished | None]:
    """Run the stage `prepare` as a conversion does: (what the reporter saw, the result)."""
    watching = Watching()
    runner = Runner(cache, "text-classification", seed, watching, force)
    try:
        finished = runner.run(
            "prepare",
            checkpoint,
            {"data": str(data), **parameters},
            title="prepare",
            reason="a test",
            inputs={"data": sha256_file(data)},
            key_parameters=parameters,
        )
    except InputError:
        return watching.seen, None
    return watching.seen, finished


def test_the_runner_repeats_nothing_that_is_the_same_and_everything_that_is_not(cache: Cache, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    data = tmp_path / "a.csv"
    data.write_text(csv_text(ROWS), encoding="utf-8")
    seen, first = run_prepare(cache, checkpoint, data)
    assert seen == ["started", "ran"]
    moved = data.rename(tmp_path / "moved.csv")
    seen, second = run_prepare(cache, checkpoint, moved)
    assert seen == ["cached"]
    assert first is not None and second is not None
    assert second.output == first.output
    assert json.loads((first.output.parent / "receipt.json").read_text()) == second.receipt

    moved.write_text(csv_text(ROWS[:10]), encoding="utf-8")
    assert run_prepare(cache, checkpoint, moved)[0] == ["started", "ran"]
    assert run_prepare(cache, checkpoint, moved, max_length=16)[0] == ["started", "ran"]
    assert run_prepare(cache, checkpoint, moved, seed=1)[0] == ["started", "ran"]
    assert run_prepare(cache, checkpoint, moved, force=True)[0] == ["started", "ran"]
    assert len(list((cache.folder / "stages").iterdir())) == 4


def test_a_stage_that_fails_is_tried_again(cache: Cache, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    data = tmp_path / "a.csv"
    data.write_text("text,label\na,1\n", encoding="utf-8")
    for _ in range(2):
        assert run_prepare(cache, checkpoint, data) == (["started", "failed"], None)
    assert list((cache.folder / "stages").iterdir()) == []
    assert list((cache.folder / "work").iterdir()) == []
