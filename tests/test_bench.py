"""`toolkit bench`: what its record holds, and what happens when its child does not come back. No time is asserted."""

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
from typing import Any

import pytest

import toolkit
from tests.conftest import run_toolkit, write_csv
from tests.engine_bundles import ENGINES, engine_bundle
from tests.refusals import assert_refused, in_process
from toolkit.bench import run
from toolkit.bench.record import SCHEMAS, Distribution, Record
from toolkit.bench.steps import Wanted, planned
from toolkit.devices import Settings, cgroup
from toolkit.errors import InputError, MissingDependencyError

QUICK = ("--seconds", "0.2")
PARTS = {"preprocessing", "inference", "postprocessing"}
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def made(encoder: Path, reviews: Path) -> Path:
    return engine_bundle("litert", encoder, reviews)


@pytest.fixture(scope="module")
def done(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """One benchmark by the command line, and the file of its record."""
    output = tmp_path_factory.mktemp("bench") / "record.json"
    more = ("--sweep", "threads=1,2", "--sweep", "length=24", "--threads", "2")
    return run_toolkit("bench", made, *QUICK, *more, "-o", output), output


@pytest.fixture(scope="module")
def record(done: tuple[subprocess.CompletedProcess[str], Path]) -> Record:
    assert done[0].returncode == 0, done[0].stderr
    return Record.model_validate_json(done[1].read_text())


def bench(folder: Path, settings: Settings | None = None, address: str = "local", **wanted: Any) -> Record:
    """The record of a benchmark that takes little time."""
    return run.bench(str(folder), [address], Wanted(**{"seconds": 0.2, "starts": 1, "rounds": 4, **wanted}), settings)[
        0
    ]


def assert_in_order(found: Distribution) -> None:
    assert 0 < found.min_ms <= found.p50_ms.value <= found.p90_ms.value <= found.p99_ms.value <= found.max_ms
    for value in (found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms):
        assert value.low <= value.value <= value.high
    assert found.quantiles_ms == sorted(found.quantiles_ms)
    assert (len(found.quantiles_ms), found.quantiles_ms[0]) == (101, found.min_ms)


# --- the record


def test_record_says_what_was_measured_and_how(record: Record, made: Path) -> None:
    manifest = json.loads((made / "manifest.json").read_text())
    assert (record.kind, record.failure) == ("measured", None)
    assert record.bundle.content_hash == manifest["content_hash"]
    assert record.bundle.precision == manifest["artifact"]["precision"] == "int8"
    score = manifest["metrics"]["score"]
    assert (record.bundle.score, record.bundle.score_name) == (score["after"], score["name"])
    files = [manifest["artifact"]["path"], *manifest["artifact"].get("data_files", ())]
    assert record.bundle.artifact_bytes == sum((made / name).stat().st_size for name in files)
    assert (record.protocol.examples, record.protocol.examples_from) == (8, "the bundle's golden examples")
    assert record.protocol.threads == 2
    assert record.engine is not None
    assert record.engine["threads"] == 2


def test_latency_is_that_of_its_parts(record: Record) -> None:
    assert record.latency is not None
    assert set(record.parts) == PARTS
    for found in (record.latency, *record.parts.values()):
        assert_in_order(found)
        assert found.count == record.latency.count >= 50
    parts = sum(part.mean_ms.value for part in record.parts.values())
    assert record.latency.mean_ms.value == pytest.approx(parts, rel=1e-3)
    assert record.throughput_per_s == pytest.approx(1e3 / record.latency.mean_ms.value, rel=1e-3)


def test_every_run_measures_its_own_noise(record: Record) -> None:
    assert record.noise is not None
    assert record.noise.low <= record.noise.ratio <= record.noise.high
    assert record.noise.floor_percent > 0
    assert len(record.round_p50_ms) == record.protocol.rounds == record.noise.rounds == 8
    assert record.protocol.warm_up_runs is not None
    assert min(record.protocol.warm_up_runs) >= 8  # all examples once


def test_memory_and_starts(record: Record) -> None:
    assert record.memory is not None
    assert record.cold_start is not None
    assert record.warm_start is not None
    assert record.cold_start.starts == record.warm_start.starts == 3
    for start in (record.cold_start, record.warm_start):
        assert min(start.process_ms, start.load_ms, start.first_inference_ms) > 0
    if sys.platform != "linux":
        assert record.memory.peak_rss_bytes is None
        return
    assert record.cold_start.resident is not None
    assert record.cold_start.resident < 1
    before, after = record.memory.before_load, record.memory.after_first_inference
    assert 0 < (before["rss_bytes"] or 0) < (after["rss_bytes"] or 0) <= (record.memory.peak_rss_bytes or 0)
    assert (after["private_dirty_bytes"] or 0) <= (after["pss_bytes"] or 0) <= (after["rss_bytes"] or 0)
    assert (record.memory.peak_rss_bytes or 0) < 400e6  # an app's memory: no framework in it


def test_sweep_varies_one_thing_at_a_time(record: Record) -> None:
    points = [(point.threads, point.batch, point.length) for point in record.sweep or ()]
    assert points == [(1, 1, None), (2, 1, None), (2, 1, 24)]
    for point in record.sweep or ():
        assert_in_order(point.inference)
        assert point.examples_per_s == pytest.approx(1e3 / point.inference.mean_ms.value, rel=1e-3)


def test_device_says_what_it_is_and_what_it_does_not_know(record: Record) -> None:
    facts = record.device.facts
    assert {"cpu_model", "architecture", "isa", "cores", "ram_gb", "system", "python"} <= set(facts)
    assert facts["cores"] >= 1
    for state in (record.conditions["before"], record.conditions["after"]):
        assert {"load_average", "governors", "clock_mhz", "temperature_c", "throttled", "power_mode"} <= set(state)
        assert 0 not in state.values()


def test_table_for_people(done: tuple[subprocess.CompletedProcess[str], Path], record: Record) -> None:
    said = done[0].stdout
    assert record.latency is not None
    assert record.memory is not None
    assert record.noise is not None
    assert f"{record.latency.p50_ms.value:.3f} ({record.latency.p50_ms.low:.3f}-" in said
    assert f"{(record.memory.peak_rss_bytes or 0) / 1e6:.1f} MB" in said
    assert f"{record.noise.floor_percent:.1f} %" in said
    assert f"{record.latency.count} queries in 8 rounds over 8 examples" in said
    assert record.device.title in said


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "litert"])
def test_engines_with_a_profiler_tell_their_operators(engine: str, encoder: Path, reviews: Path) -> None:
    folder = engine_bundle(engine, encoder, reviews)
    record = bench(folder, operators=True)
    assert record.engine is not None
    assert record.engine["engine"] == engine
    assert_in_order(record.latency or pytest.fail())
    if engine == "executorch":
        assert record.failure is not None
        assert "executorch does not tell the times of operators" in record.failure.error
        return
    assert record.failure is None
    assert record.operators is not None
    assert sum(each.share for each in record.operators) == pytest.approx(1, abs=1e-3)
    modules = {each.module for each in record.operators}
    assert "bert.encoder.layer.1.attention.self.query" in modules


# --- what is asked for


def test_texts_of_a_file_are_run(made: Path, tmp_path: Path, sentences: list[tuple[str, str]]) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("one text\n\n  \nanother, wörld 🙂\n", encoding="utf-8")
    assert run.examples_of(run.read_bundle(made), str(lines)) == (["one text", "another, wörld 🙂"], "lines.txt")
    table = write_csv(tmp_path / "reviews.csv", sentences[:100])
    record = bench(made, data=str(table))
    assert (record.protocol.examples, record.protocol.examples_from) == (64, "reviews.csv")


def test_mlperf_asks_a_minute_and_its_queries(made: Path) -> None:
    """Without running it: what the device is given."""
    given = planned(run.read_bundle(made), "there", ["a text"], Wanted(protocol="mlperf"), Settings(Path()))
    timed = [step for step in given if step["what"] == "times" and not step.get("noise")]
    assert [(step["seconds"], step["queries"], step["rounds"]) for step in timed] == [(60.0, 1024, 1)]
    assert [step["rounds"] for step in given if step.get("noise")] == [8]


def test_what_measures_for_hours_is_given_the_time(made: Path) -> None:
    def given(wanted: Wanted, **settings: float) -> float | None:
        steps = planned(run.read_bundle(made), "there", ["a text"], wanted, Settings(Path(), **settings))
        (found,) = [step["timeout_seconds"] for step in steps if step["what"] in ("sustain", "times")]
        return found if found is None else float(found)

    assert given(Wanted(sustain_seconds=7200.0)) == 2 * 7200 + 1800
    assert given(Wanted(seconds=3600.0)) == 2 * 3600 + 1800
    assert given(Wanted()) is None  # as long as any step
    assert given(Wanted(sustain_seconds=7200.0), timeout_seconds=60.0) == 60


def test_a_floor_above_the_asked_precision_is_refused(made: Path) -> None:
    record = bench(made, precision_percent=1e-6)
    assert record.failure is not None
    assert record.failure.exit_code == 1
    assert "above the asked 1e-06 %" in record.failure.error
    assert record.latency is not None  # what was measured is kept


def test_sustained_load_gives_a_curve(made: Path) -> None:
    found = bench(made, sustain_seconds=1.0).sustained
    assert found is not None
    assert len(found.windows) >= 10
    assert [window.at_s for window in found.windows] == sorted(window.at_s for window in found.windows)
    assert all(window.count > 0 and 0 < window.p50_ms <= window.p99_ms for window in found.windows)
    assert found.slowdown == pytest.approx(found.steady_ms / found.first_minute_ms, rel=1e-3)


@linux
def test_memory_that_is_not_enough_is_told_with_its_limit(made: Path, tmp_path: Path) -> None:
    try:
        with cgroup.memory(1 << 26):
            pass
    except MissingDependencyError as error:
        pytest.skip(str(error))
    record = bench(made, Settings(tmp_path, memory_bytes=20_000_000))
    assert record.failure is not None
    assert (record.failure.kind, record.failure.exit_code) == ("memory", 1)
    assert "needs more than the 20 MB that it may have" in record.failure.error
    assert record.protocol.memory_limit_bytes == 20_000_000


@linux
def test_it_stays_on_its_cores(made: Path, tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    record = bench(made, Settings(tmp_path, cores=(core,)), threads=2)
    assert record.failure is None
    assert record.protocol.cores == [core]


def test_a_step_that_hangs_is_ended(made: Path, tmp_path: Path) -> None:
    record = bench(made, Settings(tmp_path, timeout_seconds=0.01))
    assert record.failure is not None
    assert (record.failure.kind, record.failure.exit_code) == ("timeout", 3)
    assert "'start' did not end within 0.01 s" in record.failure.error


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
        bench(made, data=str(path))
    assert message in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "ftp://there"), "'ftp://there' is no device"),
        (("--device", "local://there"), "'local://there' is no device"),
        (("--cores", "4096"), "there is no core 4096"),
        (("--cores", "one"), "'one' is not a whole number"),
        (("--sweep", "depth=1"), "is not threads=…, batch=… or length=…"),
        (("--sweep", "batch=0"), "0 is none"),
        (("--precision", "-1"), "'-1' is not a percentage"),
        (("--sustain", "half an hour"), "is not a positive number with a unit of"),
    ],
)
def test_what_cannot_be_is_one_message(
    made: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_refused(in_process(["bench", str(made), *options], capsys), message)


def test_sizes_that_the_file_does_not_have_are_told(made: Path) -> None:
    for sizes, message in (({"length": 7}, "has the lengths"), ({"batch": 3}, "has a fixed batch of 1")):
        record = bench(made, sizes=sizes)
        assert record.failure is not None
        assert (record.failure.exit_code, message in record.failure.error) == (2, True)


def test_damaged_bundle_is_refused_before_anything_runs(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(made, folder)
    (folder / "model.tflite").write_bytes(b"")
    with pytest.raises(InputError, match=r"model\.tflite"):
        bench(folder)


def test_unwritable_output_is_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_toolkit("bench", made, *QUICK, "-o", tmp_path / "file" / "record.json")
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


def children(parent: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{parent}/task").glob("*/children") for child in task.read_text().split()
    ]


def measuring_child(parent: int) -> int:
    """The id of a bench's measuring process, once it is there: a child of its runner."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for runner in children(parent):
                for child in children(runner):
                    if b"toolkit.bench.measure" in Path(f"/proc/{child}/cmdline").read_bytes():
                        return child
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


@linux
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles a clock")
@pytest.mark.parametrize("step", [-86_400, 400 * 86_400], ids=["back", "forward"])
def test_a_clock_that_is_set_meanwhile_changes_nothing(step: int, made: Path, tmp_path: Path) -> None:
    """As by NTP on a board that has no clock of its own."""
    library, source = tmp_path / "clock.so", Path(__file__).with_name("stepping_clock.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    clock = {"LD_PRELOAD": str(library), "CLOCK_STEP": str(step)}
    jumps = "import time; began = time.time()\nwhile abs(time.time() - began) < 3600: pass"
    subprocess.run([sys.executable, "-c", jumps], env={**os.environ, **clock}, timeout=60, check=True)
    output = tmp_path / "record.json"
    done = run_toolkit("bench", made, "--seconds", "4", "-o", output, environ=clock)
    assert done.returncode == 0, done.stderr
    record = Record.model_validate_json(output.read_text())
    assert record.latency is not None
    assert_in_order(record.latency)
    assert record.latency.max_ms < 60_000
    for start in (record.cold_start, record.warm_start):
        assert start is not None
        for part in (start.process_ms, start.load_ms, start.first_inference_ms):
            assert 0 < part < 60_000
    assert record.throughput_per_s is not None
    assert record.throughput_per_s > 0


@linux
def test_killed_child_is_an_error(made: Path) -> None:
    with start_bench(made) as process:
        os.kill(measuring_child(process.pid), signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 1
    assert json.loads(stdout)["failure"]["kind"] == "memory"
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


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_published_schema_is_that_of_the_records(name: str) -> None:
    """Written anew by: python -m toolkit.bench.record NAME > docs/NAME-record.schema.json"""
    published = Path(__file__).parent.parent / "docs" / f"{name}-record.schema.json"
    assert json.loads(published.read_text()) == SCHEMAS[name].model_json_schema()
