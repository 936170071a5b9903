"""`toolkit bench`: what its record holds, and what happens when its child does not come back. No time is asserted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests.conftest import run_toolkit, write_csv
from tests.engine_bundles import ENGINES, engine_bundle
from toolkit.bench import run
from toolkit.errors import InputError

KEYS = {
    "schema_version", "kind", "clock", "bundle", "content_hash", "precision", "artifact_bytes", "examples",
    "examples_from", "device", "latency", "preprocessing", "throughput_per_s", "cold_start", "memory", "warm_up_runs",
    "engine",
}  # fmt: skip
LATENCY = {"count", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "min_ms", "max_ms"}
SECONDS = 0.2


@pytest.fixture(scope="module")
def made(encoder: Path, reviews: Path) -> Path:
    return engine_bundle("litert", encoder, reviews)


def bench(*arguments: str | Path) -> dict[str, Any]:
    """The record that the command line prints."""
    done = run_toolkit("bench", *arguments, "--seconds", str(SECONDS), "--json")
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads(done.stdout)
    return record


@pytest.mark.parametrize("engine", ENGINES)
def test_record_is_whole_and_in_order(engine: str, encoder: Path, reviews: Path) -> None:
    folder = engine_bundle(engine, encoder, reviews)
    record = bench(folder)
    assert set(record) == KEYS
    assert record["kind"] == "measured"
    assert record["engine"]["engine"] == engine
    manifest = json.loads((folder / "manifest.json").read_text())
    assert record["content_hash"] == manifest["content_hash"]
    assert record["precision"] == manifest["artifact"]["precision"] == "int8"
    files = [manifest["artifact"]["path"], *manifest["artifact"].get("data_files", ())]
    assert record["artifact_bytes"] == sum((folder / name).stat().st_size for name in files)
    assert (record["examples"], record["examples_from"]) == (8, "the bundle's golden examples")
    for part in (record["latency"], record["preprocessing"]):
        assert set(part) == LATENCY
        assert part["count"] >= 50
        assert 0 < part["min_ms"] <= part["p50_ms"] <= part["p90_ms"] <= part["p99_ms"] <= part["max_ms"]
        assert part["min_ms"] <= part["mean_ms"] <= part["max_ms"]
    # The latency goes from the text to the label, so tokenizing is a part of it.
    assert record["preprocessing"]["p50_ms"] < record["latency"]["p50_ms"]
    assert record["throughput_per_s"] == pytest.approx(1e3 / record["latency"]["mean_ms"], rel=0.01)
    assert all(record["cold_start"][key] > 0 for key in ("process_ms", "load_ms", "first_inference_ms"))
    assert record["warm_up_runs"] > 0


def test_memory_grows_from_before_to_peak(made: Path) -> None:
    memory = bench(made)["memory"]
    if sys.platform != "linux":
        assert set(memory.values()) == {"not available"}
        return
    assert 0 < memory["before_load_rss_bytes"] < memory["after_first_inference_rss_bytes"]
    assert memory["after_first_inference_rss_bytes"] <= memory["peak_rss_bytes"]
    assert memory["peak_rss_bytes"] < 400e6  # an app's memory: no framework in it


def test_device_says_what_it_is_and_what_it_does_not_know(made: Path) -> None:
    device = bench(made)["device"]
    assert {"cpu_model", "architecture", "isa", "cores", "ram_gb", "system", "python", "governor"} <= set(device)
    assert device["architecture"] in ("x86_64", "aarch64")
    assert device["cores"] >= 1
    assert 0 not in [device[key] for key in ("ram_gb", "governor", "temperature_c")]


def test_threads_are_given_to_the_engine(made: Path) -> None:
    assert bench(made)["engine"]["threads"] == 1
    assert bench(made, "--threads", "2")["engine"]["threads"] == 2


def test_texts_of_a_file_are_run(made: Path, tmp_path: Path, sentences: list[tuple[str, str]]) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one text\n\n  \nanother, wörld 🙂\n", encoding="utf-8")
    record = bench(made, "--data", lines)
    assert (record["examples"], record["examples_from"]) == (2, "lines.txt")
    table = write_csv(tmp_path / "reviews.csv", sentences[:30])
    record = bench(made, "--data", table)
    assert (record["examples"], record["examples_from"]) == (30, "reviews.csv")


def test_minimum_of_runs_and_of_seconds(made: Path) -> None:
    assert run.bench(str(made), seconds=0.001)["latency"]["count"] == 50
    assert run.bench(str(made), seconds=1.0)["latency"]["count"] > 50  # about a millisecond each


def test_output_file_holds_the_same_record(made: Path, tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    record = bench(made, "-o", output)
    assert json.loads(output.read_text()) == record


def test_table_for_people(made: Path, tmp_path: Path) -> None:
    done = run_toolkit("bench", made, "--seconds", str(SECONDS), "-o", tmp_path / "record.json")
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert f"{record['latency']['p50_ms']:.3f} / {record['latency']['p90_ms']:.3f}" in done.stdout
    assert f"{record['memory']['peak_rss_bytes'] / 1e6:.1f} MB" in done.stdout
    assert f"{record['latency']['count']} runs over 8 examples (the bundle's golden examples)" in done.stdout
    assert record["device"]["cpu_model"] in done.stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", b"\n \n", "holds no examples"),
        ("latin.txt", "é".encode("latin-1"), "not UTF-8 text"),
        ("numbers.csv", b"a,b\n1,2\n", "text"),
    ],
)
def test_unusable_data_is_one_line(made: Path, name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        run.bench(str(made), data=str(path), seconds=SECONDS)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_unwritable_output_is_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_toolkit("bench", made, "--seconds", str(SECONDS), "-o", tmp_path / "file" / "record.json")
    assert done.returncode == 2, done.stderr
    assert "Cannot write to" in done.stderr


# --- the child


def start_bench(folder: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)}
    command = [sys.executable, "-m", "toolkit", "bench", str(folder), "--seconds", "100", "--json"]
    # A shell that runs the tests in the background hands down an ignored SIGINT; a user's terminal does not.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def measuring_child(parent: int) -> int:
    """The id of a bench's measuring process, once it is there."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            for child in task.read_text().split():
                if b"toolkit.bench.measure" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return int(child)
        time.sleep(0.05)
    raise AssertionError("no measuring child was started")


def gone(process: int) -> bool:
    """True once a process has ended (a zombie has)."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_killed_child_is_an_error(made: Path) -> None:
    with start_bench(made) as process:
        os.kill(measuring_child(process.pid), signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 3
    assert stdout == ""
    assert "was killed, most likely because the memory ran out" in stderr
    assert "Traceback" not in stderr


@linux
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_child_does_not_outlive_its_parent(made: Path, number: signal.Signals, code: int) -> None:
    with start_bench(made) as process:
        child = measuring_child(process.pid)
        time.sleep(0.5)  # past its start, in which it arranges to die with its parent
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode == code
    assert gone(child)
