"""`toolkit inspect`: what a model file holds, and what of a model falls back on a target."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import artifacts
from tests.conftest import run_toolkit
from tests.refusals import assert_refused, in_process
from toolkit import inspection, target, target_coverage
from toolkit.errors import InputError


@pytest.fixture(scope="module")
def litert_folder(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tuned, tmp_path_factory.mktemp("litert"), "litert")


# Files


def test_an_onnx_file(typed: dict[str, Path]) -> None:
    facts = inspection.inspect(typed["int8 network"] / "model.onnx")
    assert (facts["format"], facts["quantized"], facts["external_data"]) == ("onnx", "Q/DQ", [])
    assert facts["opsets"] == {"ai.onnx": 20}
    assert facts["inputs"] == [{"name": "pixel_values", "dtype": "float", "shape": ["batch", 1, 24, 24]}]
    assert facts["operators"]["Conv"] == 5
    assert next(iter(facts["operators"])) == "DequantizeLinear"
    assert facts["weights"]["int8"] > 5
    assert inspection.inspect(typed["float network"] / "model.onnx")["quantized"] == "no"
    assert inspection.inspect(typed["fp16 encoder"] / "model.onnx")["weights"]["float16"] > 20


def test_weights_beside_an_onnx_file_and_graphs_inside_its_nodes(tmp_path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
    inner = helper.make_graph([helper.make_node("Add", ["x", "w"], ["r"])], "inner", [], [result])
    given = [helper.make_tensor_value_info(n, t, s) for n, t, s in (("c", 9, []), ("x", 1, [64, 64]))]
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)], "g", given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((64, 64), np.float32), "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, str(tmp_path / "model.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    facts = inspection.inspect(tmp_path / "model.onnx")
    assert facts["external_data"] == ["weights.bin"]
    assert facts["parameters"] == 64 * 64
    assert facts["nodes_with_graphs"] == 2  # both branches
    assert facts["operators"] == {"Add": 2, "If": 1}


def test_a_litert_file(litert_folder: Path) -> None:
    facts = inspection.inspect(litert_folder / "model.tflite")
    assert facts["format"] == "litert"
    assert facts["signatures"] == [f"length_{length}" for length in artifacts.LENGTHS]
    assert facts["graphs"] == len(artifacts.LENGTHS)
    assert facts["quantized"] == "no"
    assert facts["operators"]["FULLY_CONNECTED"] > 10
    assert facts["versions"]["FULLY_CONNECTED"] >= 1
    assert {each["dtype"] for each in facts["inputs"]} == {"int32"}
    # Weights that graphs share count once.
    assert 15e6 < facts["parameters"] < 17e6


def test_a_file_for_people() -> None:
    rows = dict(inspection.rows({"kind": "file", "operators": {"Conv": 5}, "external_data": []}))
    assert rows == {"kind": "file", "operators: Conv": "5", "external_data": "-"}


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite"])
def test_a_file_that_is_none_is_one_message(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    assert_refused(in_process(["inspect", str(path)], capsys), str(path))
    path.write_bytes(b"x\n")
    for more in ([], ["--target", "jetson"]):
        said = "is not an ONNX file, or it is damaged" if path.suffix == ".onnx" else "file that can be read"
        assert_refused(in_process(["inspect", str(path), *more], capsys), said)


# On a target


def test_a_file_on_a_target(typed: dict[str, Path]) -> None:
    path = typed["int8 network"] / "model.onnx"
    done = run_toolkit("inspect", path, "--target", "jetson", "--ask", "--json")
    assert done.returncode == 0, done.stderr
    found = {each["engine"]: each for each in json.loads(done.stdout)["engines"]}
    assert set(found) == {"tensorrt", "onnxruntime"}
    assert (found["tensorrt"]["passed"], found["tensorrt"]["limit"]) == (True, 0)
    assert found["tensorrt"]["observed"]["operators"] == 0
    runtime = found["onnxruntime"]
    assert runtime["passed"] is None
    assert runtime["fallback"]["operators"] == runtime["observed"]["operators"] > 0
    assert 0 < runtime["fallback"]["multiply_adds"] < 1
    assert sum(each["count"] for each in runtime["offenders"]) == runtime["fallback"]["operators"]

    people = run_toolkit("inspect", path, "--target", "jetson")
    assert people.returncode == 0
    assert "tensorrt: 0 operators fall back, 0 % of the multiply-adds; none may: within the limit." in people.stdout
    assert runtime["offenders"][0]["module"] in people.stdout


def test_what_an_inference_may_take_is_said_by_module(typed: dict[str, Path]) -> None:
    path = typed["float network"] / "model.onnx"
    done = run_toolkit("inspect", path, "--target", "raspberry-pi-5", "--json")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["engines"]
    estimate = found["estimate"]
    assert 0 < estimate["low_ms"] < estimate["ms"] < estimate["high_ms"]
    assert 0 < sum(each["ms"] for each in found["modules"]) < estimate["ms"]  # the call comes on top
    assert [each["ms"] for each in found["modules"]] == sorted((each["ms"] for each in found["modules"]), reverse=True)
    people = run_toolkit("inspect", path, "--target", "raspberry-pi-5", "--times")
    assert f"by the profile: estimate {estimate['low_ms']:.2g}-" in people.stdout
    assert found["modules"][0]["operators"] in people.stdout
    without = run_toolkit("inspect", path, "--target", "host")
    assert "no estimate: the profile has no peak rate" in without.stdout


def test_why_nothing_is_estimated_is_said(typed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise InputError("the runtime does not take the file")

    monkeypatch.setattr(target_coverage.costs, "of_engine", refuse)
    [found] = target_coverage.of(typed["float network"] / "model.onnx", target.resolve("raspberry-pi-5"))
    assert target_coverage.estimated(found) == "no estimate: the runtime does not take the file"


def test_what_is_above_the_limit_is_said_and_is_no_failure(
    typed: dict[str, Path], board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = board.read_text(encoding="utf-8")
    engine = "  - {name: onnxruntime, precisions: [int8], rules: onnxruntime-1.31, max_fallback: 0.01}\n"
    board.write_text(text.replace("sources:", f"{engine}sources:"), encoding="utf-8")
    path = str(typed["int8 network"] / "model.onnx")
    done = in_process(["inspect", path, "--target", str(board)], capsys)
    assert done.returncode == 0
    assert "; at most 1 % may: ABOVE THE LIMIT." in done.stdout


def test_a_bundle_on_a_target_is_looked_at_for_its_engine(bundle: Path) -> None:
    found = target_coverage.of(bundle, target.resolve("host"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert [each.engine for each in found] == [manifest["engine"]["name"]]


def test_a_checkpoint_is_exported_for_every_engine(tuned: Path) -> None:
    found = {each.engine: each for each in target_coverage.of(tuned, target.resolve("host"), sizes={"length": 16})}
    assert set(found) == {"litert", "onnxruntime"}
    assert found["litert"].coverage.fallback.operators > 0
    assert found["litert"].passed
    assert found["litert"].coverage.note == "counted at length=16"
    assert found["onnxruntime"].coverage.note == "counted at batch=1, length=16"


def test_an_artifact_folder_on_a_target(litert_folder: Path) -> None:
    [found] = target_coverage.of(litert_folder, target.resolve("raspberry-pi-5"), ask=True)
    assert found.observed is not None
    assert found.observed.fallen is not None
    assert len(found.observed.fallen) == found.coverage.fallback.operators > 0
    said = target_coverage.observation(found.observed, found.coverage.operators)
    assert said.startswith("XNNPACK of ai-edge-litert ")
    assert said.endswith("operators fall back, 1 part")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--target", "jetzon"], ["Unknown target 'jetzon'. Did you mean"]),
        (["--target", "coral"], ["no runtime of target 'coral-edgetpu'", "reads .onnx files", "litert (edgetpu)"]),
        (["--target", "jetson", "--size", "lenght=3"], ["--size lenght", "no such dynamic axis; it has: batch"]),
        (["--target", "jetson", "--size", "batch=0"], ["--size batch=0: a size is a whole number from 1 on"]),
        (["--target", "host", "--size", "batch=x"], ["--size batch=x: a size is a whole number from 1 on"]),
        (["--size", "batch=1"], ["--size needs --target"]),
        (["--ask"], ["--ask needs --target"]),
    ],
)
def test_what_is_wrong_is_one_message(
    arguments: list[str], words: list[str], typed: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(typed["float network"] / "model.onnx")
    assert_refused(in_process(["inspect", path, *arguments], capsys), *words)


def test_sizes_that_a_model_does_not_have(tuned: Path, litert_folder: Path) -> None:
    path, pi = litert_folder / "model.tflite", target.resolve("raspberry-pi-5")
    with pytest.raises(InputError, match=r"--size length=64: .* is looked at in its first graph, of length 16"):
        target_coverage.of(path, pi, sizes={"length": 64})
    assert target_coverage.of(path, pi, sizes={"length": 16})
    with pytest.raises(InputError, match="--size width: of a checkpoint batch and length can be given"):
        target_coverage.of(tuned, pi, sizes={"width": 3})
    with pytest.raises(InputError, match="there is no engine of target 'hailo-8' with a rule table"):
        target_coverage.of(tuned, target.resolve("hailo-8"))


def test_without_the_runtime_the_table_still_answers(typed: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    found: list[Any] = target_coverage.of(typed["float network"], target.resolve("jetson"), ask=True)
    asked = next(each for each in found if each.engine == "tensorrt").observed
    assert asked.fallen is None
    assert "edge-deployment-toolkit[tensorrt]" in asked.reason
    with pytest.raises(InputError, match="is not a file"):
        target_coverage.of(Path("no.onnx"), target.resolve("jetson"))
