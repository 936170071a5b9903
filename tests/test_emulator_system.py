"""Whole emulated Arm machines: a real kernel, real engines, virtual time and real memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.refusals import assert_refused, in_process
from toolkit.bench import run, text
from toolkit.bench.steps import Wanted
from toolkit.devices import Settings, emulator_setup, emulator_system, emulator_system_setup
from toolkit.errors import MissingDependencyError

A72 = "emulator://cortex-a72?mode=system"
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def ready(cache_folder: Path) -> Path:
    try:
        emulator_setup.tools((*emulator_setup.SETUP_TOOLS, *emulator_system_setup.TOOLS))
    except MissingDependencyError as error:
        pytest.skip(str(error))
    done = run_toolkit("devices", "setup", "emulator", "--system", "--json")
    assert done.returncode == 0, done.stderr
    return Path(json.loads(done.stdout)["system"]["folder"])


@pytest.fixture(scope="module")
def micro(small_network: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bundle for LiteRT."""
    output = tmp_path_factory.mktemp("system") / "bundle"
    toolkit.convert(
        small_network, "cortex-m4", data=str(pictures), output=str(output), allow_code=True, min_score="90%",
        compress=False,
    )  # fmt: skip
    return output


def test_times_are_virtual_and_memory_is_real(ready: Path, micro: Path, cache_folder: Path) -> None:
    (record,) = run.bench(str(micro), [A72], Wanted(), Settings(cache_folder))
    assert record.failure is None
    assert (record.kind, record.clock) == ("emulated", "virtual: 1 instruction = 1 ns")
    assert (record.protocol.threads, record.protocol.examples, record.protocol.rounds) == (1, 3, 1)
    assert record.latency is not None and record.memory is not None
    assert record.cold_start is None and record.warm_start is not None
    low, high = record.latency.min_ms, record.latency.p90_ms.value
    assert 0 < low <= high < 1.1 * low  # every inference takes as many instructions
    assert "virtual ms" in dict(text.rows(record))["virtual time p50"]
    assert record.device.facts["kernel"].endswith("cloud-arm64")
    assert record.device.facts["ram_gb"] == pytest.approx(1.074)
    peak, delta = record.memory.peak_rss_bytes, record.memory.model_delta_bytes
    assert peak is not None and delta is not None
    assert 0 < delta < peak < 1024 * MEBIBYTE


def test_a_machine_without_memory_says_so(ready: Path, micro: Path, cache_folder: Path) -> None:
    (record,) = run.bench(str(micro), [A72], Wanted(), Settings(cache_folder, memory_bytes=64 * MEBIBYTE))
    assert record.failure is not None
    assert (record.failure.kind, record.failure.exit_code) == ("memory", 1)
    assert "more memory than the 64 MiB of the machine" in record.failure.error
    assert record.latency is None


def test_a_step_that_takes_too_long_is_ended(ready: Path, micro: Path, cache_folder: Path) -> None:
    (record,) = run.bench(str(micro), [A72], Wanted(), Settings(cache_folder, timeout_seconds=0.5))
    assert record.failure is not None
    assert (record.failure.kind, record.failure.exit_code) == ("timeout", 3)
    assert "did not end within 0.5 s" in record.failure.error


def test_nothing_is_done_twice() -> None:
    start, times = {"what": "start"}, {"what": "times"}
    steps = [{**start, "cold": True}, *[{**start, "cold": False}] * 3, {**times, "noise": True}, times]
    assert emulator_system.chosen(steps) == [5, 1]


def test_what_cannot_be_is_one_message(
    tmp_path: Path, cache_folder: Path, capsys: pytest.CaptureFixture[str], ready: Path, micro: Path
) -> None:
    def bench(*more: str) -> Any:
        return in_process(["bench", str(micro), *more], capsys)

    assert_refused(bench("--device", "emulator://cortex-a72?mode=fast"), "behind the ? goes mode=user or mode=system")
    assert_refused(bench("--device", A72, "--cores", "0"), "has one core; leave --cores out")
    assert_refused(bench("--device", A72, "--threads", "2"), "the emulated machine has one core")
    assert_refused(bench("--device", A72, "--memory", "20MB"), "no Linux starts in 20 MB; give 64 MiB or more")
    assert_refused(
        bench("--device", A72, "--cache-dir", str(tmp_path / "empty")),
        "toolkit devices setup emulator --system",
        code=3,
    )
