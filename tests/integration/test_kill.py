"""`kill -9` at any moment of a conversion, again and again: nothing half-written is ever seen, what was finished is not
done twice, and the bundle at the end is byte for byte that of a run that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import toolkit
from tests.conftest import write_csv
from toolkit import bundle as bundles
from toolkit.cache import Cache
from toolkit.child import Child
from toolkit.storage import sha256_folder

KILLS = 3
SEED = 20
LIMIT = 300  # seconds for anything that must end


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    return write_csv(tmp_path_factory.mktemp("kill") / "some.csv", sentences[:400])


def start(encoder: Path, data: Path, cache: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "toolkit", "convert", encoder, "--data", data, "--epochs", "2", "--min-score", "80%",
        "--learning-rate", "5e-4", "--batch-size", "16", "--cache-dir", cache, "-o", output,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent), "TOOLKIT_CACHE": str(cache)}
    with (output.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)


def finish(process: subprocess.Popen[bytes], output: Path) -> None:
    assert process.wait(LIMIT) == 0, (output.parent / "log.txt").read_text()[-2000:]


def processes_of(cache: Path) -> list[int]:
    """Processes whose environment names the cache: the conversion, its stages and what they are forked from."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue
        if f"TOOLKIT_CACHE={cache}\0".encode() in environment:
            found.append(int(folder.name))
    return found


def finished_stages(cache: Path) -> dict[str, int]:
    """Key → time at which its receipt was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (cache / "stages").glob("*/receipt.json")}


def check_stages_are_whole(cache: Path) -> None:
    for entry in (cache / "stages").iterdir():
        receipt = json.loads((entry / "receipt.json").read_text())
        assert receipt["key"] == entry.name
        assert sha256_folder(entry / "output") == receipt["output_sha256"]


@pytest.fixture(scope="module")
def undisturbed(encoder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """The bundle of a run that nobody kills, and its seconds."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    finish(start(encoder, data, folder / "cache", folder / "bundle"), folder / "bundle")
    return folder / "bundle", time.monotonic() - began


def content(bundle: Path) -> tuple[str, str, dict[str, bytes]]:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert bundles.verify(bundle)["failures"] == []
    files = {name: (bundle / name).read_bytes() for name in (manifest["artifact"]["path"], "golden/examples.json")}
    return manifest["metrics"]["chosen"], manifest["content_hash"], files


def test_kills_cost_nothing_but_time(
    encoder: Path, data: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    expected, seconds = undisturbed
    cache, output = tmp_path / "cache", tmp_path / "bundle"
    draw = random.Random(SEED)
    done: dict[str, int] = {}
    # Each run gets a random share of the undisturbed run's time and goes on where the one before was killed.
    kills = 0
    while kills < KILLS:
        process = start(encoder, data, cache, output)
        try:
            process.wait(draw.uniform(0.05, 0.4) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        else:  # through before all kills were made: the rest are made on the way of another one
            finish(process, output)
            assert content(output) == content(expected)
            shutil.rmtree(output)
            cache, done = tmp_path / f"cache-{kills}", {}
            continue
        until = time.monotonic() + 60  # they end by themselves; on a busy machine it takes a while
        while processes_of(cache) and time.monotonic() < until:
            time.sleep(0.05)
        assert processes_of(cache) == []
        assert not output.exists()
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        if not cache.exists():
            continue
        check_stages_are_whole(cache)
        now = finished_stages(cache)
        assert {key: now.get(key) for key in done} == done  # kept, and not made again
        done = now
    assert done
    finish(start(encoder, data, cache, output), output)
    now = finished_stages(cache)
    assert {key: now[key] for key in done} == done
    check_stages_are_whole(cache)
    assert list((cache / "work").iterdir()) == []
    assert list((cache / "resume").iterdir()) == []
    assert content(output) == content(expected)


def test_two_conversions_share_a_cache(
    encoder: Path, data: Path, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    running = [start(encoder, data, cache, folder / "bundle") for folder in folders]
    for process, folder in zip(running, folders, strict=True):
        finish(process, folder / "bundle")
    check_stages_are_whole(cache)
    made: dict[str, list[bool]] = {}
    for folder in folders:
        for path in (folder / "bundle" / "receipts").glob("*.json"):
            receipt = json.loads(path.read_text())
            made.setdefault(receipt["key"], []).append(receipt["cached"])
    assert all(sorted(cached) == [False, True] for cached in made.values()), made  # each stage was run by one of them
    assert content(folders[0] / "bundle") == content(folders[1] / "bundle") == content(undisturbed[0])


def test_a_conversion_that_waits_for_another_can_be_ended(tmp_path: Path) -> None:
    with Cache(tmp_path).lock("key"), pytest.raises(KeyboardInterrupt), Cache(tmp_path).lock("key", lambda: True):
        pytest.fail("both hold the lock")


def test_a_kill_while_an_entry_is_removed_leaves_no_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    with cache.work("key") as work:
        (work / "entry" / "receipt.json").write_text("{}")
        cache.publish("key", work)
    assert cache.receipt("key") == {}
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as far as a killed run gets
    cache.forget("key")
    assert cache.receipt("key") is None


def test_ctrl_c_in_a_program_that_calls_the_toolkit_ends_the_stage(
    encoder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("TOOLKIT_CACHE", str(cache))

    def interrupted(child: Child, seconds: float) -> bool:
        assert processes_of(cache) != []
        raise KeyboardInterrupt

    monkeypatch.setattr(Child, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        toolkit.convert(encoder, data=str(data), output=str(tmp_path / "bundle"), cache_dir=str(cache))
    assert processes_of(cache) == []
