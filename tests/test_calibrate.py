"""`toolkit targets calibrate`: kernels that engines run as meant, and a profile that lints and is used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import run_toolkit
from toolkit import costs, engines, estimate, kernels, target
from toolkit.errors import InputError
from toolkit.kernels import Kernel
from toolkit.target import draft

ENGINES = ("onnxruntime", "litert")


def smallest(engine: str) -> Iterator[Kernel]:
    """A kernel of every kind and precision."""
    seen = set()
    for kernel in sorted(kernels.of_engine(engine), key=lambda each: np.prod(each.size)):
        key = (kernel.work, kernel.kind, kernel.dtype)
        if key not in seen:
            seen.add(key)
            yield kernel


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_run_every_kind_of_kernel(engine: str, tmp_path: Path) -> None:
    module = kernels.get(engine)
    for kernel in smallest(engine):
        path = tmp_path / f"{kernel.name}{module.SUFFIX}"
        inputs = module.write(kernel, path, 0)
        again = tmp_path / f"again{module.SUFFIX}"
        module.write(kernel, again, 0)
        assert again.read_bytes() == path.read_bytes()
        loaded = engines.get(engine).load(path)
        answers = loaded.run(inputs)
        loaded.close()
        assert all(np.isfinite(value).all() and np.abs(value).max() > 0 for value in answers.values()), kernel
        own = [each for each in costs.operations(path, {}) if each.kind == kernel.kind and each.runs]
        assert [each.work for each in own] == [kernel.work] * kernel.repeats, kernel
        assert {each.dtype for each in own} == {kernel.dtype}, kernel
        assert all(each.shape is not None for each in costs.of_engine(path, {}, engine) if each.runs), kernel


def test_both_engines_time_the_same_products(tmp_path: Path) -> None:
    found = {}
    for engine in ENGINES:
        module = kernels.get(engine)
        found[engine] = {
            (kernel.work, kernel.dtype, kernel.size): kernel
            for kernel in kernels.of_engine(engine)
            if kernel.work in ("gemm", "convolution", "depthwise") and max(kernel.size) < 60
        }
        for key, kernel in found[engine].items():
            path = tmp_path / f"{kernel.name}{module.SUFFIX}"
            module.write(kernel, path, 0)
            counted = sum(each.multiply_adds for each in costs.operations(path, {}))
            found[engine][key] = counted  # type: ignore[assignment]
    assert found["onnxruntime"] == found["litert"]
    side, channels = 12, 48
    assert found["litert"]["depthwise", "fp32", (channels, side)] == 8 * 9 * channels * side * side
    assert found["litert"]["convolution", "int8", (channels, side)] == 8 * 9 * channels**2 * side * side


def test_an_engine_without_kernels_is_named() -> None:
    with pytest.raises(InputError, match="Nothing can be calibrated for engine 'tensorrt'; known: onnxruntime, litert"):
        kernels.get("tensorrt")


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This machine's profile with what one round measured."""
    path = tmp_path_factory.mktemp("profiles") / "mine.yaml"
    done = run_toolkit("targets", "calibrate", "--rounds", "1", "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["file"] == str(path)
    assert sorted(each["engine"] for each in said["calibration"]) == sorted(ENGINES)
    return path


def test_the_profile_is_clean_and_says_where_its_numbers_come_from(mine: Path) -> None:
    assert target.lint(mine) == []
    found = target.load_file(mine)
    source = next(each for each in found.sources if "calibration" in each.covers)
    assert source.confidence == "measured"
    assert "toolkit targets calibrate, 20" in source.source
    assert "threads 1" in source.source
    for each in found.calibration:
        assert each.version in source.source
        wanted = [kernel for kernel in kernels.of_engine(each.engine) if kernel not in kernels.launches(each.engine)]
        assert len(each.kernels) == len(wanted)
    unsourced = mine.with_name("unsourced.yaml")
    unsourced.write_text(
        mine.read_text().replace("covers: [calibration]", "covers: [memory]").replace("mine", "unsourced")
    )
    assert any("no source covers the number 'calibration.kernels.time_us'" in said for said in target.lint(unsourced))


@pytest.mark.parametrize("engine", ENGINES)
def test_estimates_go_by_it(mine: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory, engine: str) -> None:
    folder = artifacts.export(tuned, tmp_path_factory.mktemp("estimated"), engine)
    work = costs.of_engine(folder / artifacts.description(folder)["path"], {"batch": 1, "length": 64}, engine)
    found = target.load_file(mine)
    made = estimate.latency(found, found.engine(engine), "fp32", work)
    assert made is not None
    assert made.kind == "estimate"
    assert made.low_ms is not None
    assert made.high_ms is not None
    assert 0 < made.low_ms < made.ms < made.high_ms
    host = target.resolve("host")
    assert estimate.latency(host, host.engine(engine), "fp32", work) is None  # it has no peaks, nor a calibration
    slower = [
        each.model_copy(update={"kernels": [k.model_copy(update={"time_us": 10 * k.time_us}) for k in each.kernels]})
        for each in found.calibration
    ]
    then = estimate.latency(found.model_copy(update={"calibration": slower}), found.engine(engine), "fp32", work)
    assert then is not None
    assert then.ms == pytest.approx(10 * made.ms, rel=0.15)


def test_what_was_measured_of_other_threads_stays(mine: Path) -> None:
    found = target.load_file(mine)
    two = found.calibration[0].model_copy(update={"threads": 2})
    path = mine.with_name("both.yaml")
    path.write_text(draft.calibrated("both", found, [two], "measured again"), encoding="utf-8")
    assert target.lint(path) == []
    both = target.load_file(path).calibration
    assert both == [*found.calibration, two]
    path.write_text(draft.calibrated("both", target.load_file(path), both, "all anew"), encoding="utf-8")
    covering = [each.source for each in target.load_file(path).sources if "calibration" in each.covers]
    assert covering == ["all anew"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--device", "ssh://me@board"], "calibrating over ssh is not possible yet; run this command on the device"),
        (["--device", "toaster"], "'toaster' is no device"),
        (["--target", "raspberry-pi-4"], "This machine is no 'raspberry-pi-4'"),
        (["--threads", "4096"], "--threads 4096: this machine has"),
        (["-o", "raspberry-pi-4.yaml"], "There is a target 'raspberry-pi-4' already"),
        (["--target", "x86-avx2", "-o", "x86-avx2.yaml"], "There is a target 'x86-avx2' already"),
        (["-o", "mine.txt"], "a profile's file ends in .yaml"),
        (["-o", "nowhere/mine.yaml"], "there is no folder nowhere"),
        (["-o", "there.yaml"], "there.yaml exists; --overwrite replaces it"),
    ],
)
def test_mistakes_are_told_before_anything_is_timed(tmp_path: Path, arguments: list[str], reason: str) -> None:
    (tmp_path / "there.yaml").write_text("mine")
    done = run_toolkit("targets", "calibrate", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert reason in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["there.yaml"]
    assert (tmp_path / "there.yaml").read_text() == "mine"
