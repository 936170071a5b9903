"""`toolkit compare`: which of several bundles is faster, and what a stored record is good for. No time is asserted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_toolkit
from tests.engine_bundles import engine_bundle
from tests.refusals import assert_refused, in_process
from toolkit.bench import compare, run
from toolkit.bench.compare import refuse_slower, with_stored
from toolkit.bench.record import ComparisonRecord, Noise, Ratio, Record
from toolkit.bench.steps import Wanted
from toolkit.errors import InputError, RefusedError


@pytest.fixture(scope="module")
def bundles(encoder: Path, reviews: Path) -> list[Path]:
    return [engine_bundle(engine, encoder, reviews) for engine in ("litert", "onnxruntime")]


@pytest.fixture(scope="module")
def stored(bundles: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of one of them."""
    path = tmp_path_factory.mktemp("stored") / "before.json"
    (record,) = run.bench(str(bundles[0]), wanted=Wanted(seconds=0.2, starts=1))
    path.write_text(record.model_dump_json())
    return path


def test_bundles_are_timed_in_turn(bundles: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    done = run_toolkit("compare", *bundles, "--seconds", "0.5", "-o", output)
    assert done.returncode == 0, done.stderr
    record = ComparisonRecord.model_validate_json(output.read_text())
    assert [bundle.engine for bundle in record.bundles] == ["litert", "onnxruntime"]
    assert len(record.latency) == 2
    (ratio,) = record.ratios
    assert ratio.low < ratio.ratio < ratio.high
    assert ratio.verdict == ("undecided" if ratio.low <= 1 <= ratio.high else "slower" if ratio.ratio > 1 else "faster")
    assert record.noise is not None
    assert record.noise.rounds == record.protocol.rounds
    assert (record.protocol.rounds or 0) >= 6
    assert f"{ratio.ratio:.3f} ({ratio.low:.3f}-{ratio.high:.3f})" in done.stdout
    assert ratio.verdict in done.stdout
    assert "The first against itself".lower() in done.stdout


def test_a_record_against_a_stored_one(bundles: list[Path], stored: Path) -> None:
    done = run_toolkit("compare", bundles[0], "--baseline", stored, "--json")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)["ratios"]
    assert found["how"] == "stored"
    assert found["low"] < found["ratio"] < found["high"]
    record = Record.model_validate(json.loads(done.stdout)["record"])
    before = Record.model_validate_json(stored.read_text())
    assert record.protocol.seconds == before.protocol.seconds  # as it was measured then
    slower = before.model_copy(update={"round_p50_ms": [2 * value for value in before.round_p50_ms]})
    assert with_stored(before, slower).verdict == "faster"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["device"].update(fingerprint="another"), "times of different devices are not compared"),
        (lambda record: record["protocol"].update(threads=7), "measured with threads 7"),
        (lambda record: record.update(round_p50_ms=[1.0]), "single round"),
    ],
)
def test_what_cannot_be_compared_is_told(stored: Path, change: Any, message: str) -> None:
    other = json.loads(stored.read_text())
    change(other)
    with pytest.raises(InputError, match=message):
        with_stored(Record.model_validate_json(stored.read_text()), Record.model_validate(other))


@pytest.mark.parametrize(
    ("ratio", "low", "high", "refused"),
    [
        (1.05, 1.04, 1.06, "slower by more than 3 %"),
        (1.02, 1.01, 1.03, None),  # slower, but not by so much
        (1.02, 0.99, 1.05, "does not tell whether it is slower by 3 %"),
        (1.01, 0.99, 1.02, None),
        (0.90, 0.85, 0.95, None),
    ],
)
def test_a_gate_for_slower_builds(ratio: float, low: float, high: float, refused: str | None) -> None:
    verdict = "slower" if low > 1 else "faster" if high < 1 else "undecided"
    found = [Ratio(bundle="new", ratio=ratio, low=low, high=high, verdict=verdict)]
    noise = Noise(floor_percent=2.5, ratio=1, low=0.98, high=1.02, rounds=6)
    if refused is None:
        refuse_slower(found, noise, 3)
        return
    with pytest.raises(RefusedError, match=refused) as caught:
        refuse_slower(found, noise, 3)
    assert caught.value.exit_code == 1


def test_a_much_slower_bundle_fails_the_gate(bundles: list[Path], stored: Path, tmp_path: Path) -> None:
    before = json.loads(stored.read_text())
    before["round_p50_ms"] = [value / 50 for value in before["round_p50_ms"]]
    (tmp_path / "fast.json").write_text(json.dumps(before))
    done = run_toolkit("compare", bundles[0], "--baseline", tmp_path / "fast.json", "--fail-if-slower", "3%")
    assert done.returncode == 1, done.stderr
    assert "slower by more than 3 %" in done.stderr


def test_mistakes_are_one_message(
    bundles: list[Path], stored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str | Path) -> Any:
        return in_process(["compare", *map(str, arguments)], capsys)

    assert_refused(said(bundles[0]), "Name two bundles or more")
    assert_refused(said(*bundles, "--baseline", stored), "name a single BUNDLE")
    assert_refused(said(bundles[0], "--baseline", tmp_path / "none.json"), "Cannot read", "none.json")
    (tmp_path / "list.json").write_text("[1, 2]")
    assert_refused(said(bundles[0], "--baseline", tmp_path / "list.json"), "is not the record of one bundle")
    assert_refused(said(bundles[0], tmp_path / "nothing"), "is not a folder")
    other = tmp_path / "other task"
    shutil.copytree(bundles[1], other)
    manifest = json.loads((other / "manifest.json").read_text())
    manifest["task"] = "image-classification"
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError):
        compare.compare([str(bundles[0]), str(other)])
