"""OpenVINO: what its files are called inside, that they answer as they should, and what is said of damaged ones."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import toolkit
from tests import artifacts
from tests.conftest import run_toolkit
from tests.networks import CLASSES, checkpoint, pattern
from tests.test_light_imports import assert_one_line, hidden_in_children
from toolkit import builds, candidates, check, engines, export, model_file, recipe, steps, tasks
from toolkit import target as targets
from toolkit.errors import InputError
from toolkit.export import openvino as openvino_format
from toolkit.export import openvino_file
from toolkit.stages import Context
from toolkit.stages import export as export_stage

QUERY = "bert.encoder.layer.1.attention.self.query"


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float artifact of the two-layer classifier, and its ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    return {engine: artifacts.export(tuned, folder, engine) for engine in ("openvino", "onnxruntime", "tensorrt")}


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in sentences[:40]]


@pytest.fixture(scope="module")
def calibration(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in sentences[100:112]]


def quantized(source: Path, output: Path, examples: list[str], **parameters: Any) -> Path:
    return artifacts.quantized(source, output, examples, **{"method": "static-int8", **parameters})


@pytest.fixture(scope="module")
def int8(exported: dict[str, Path], calibration: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It in int8. Read it only."""
    return quantized(exported["openvino"], tmp_path_factory.mktemp("quantized") / "int8", calibration)


def files_of(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model.xml").read_bytes(), (folder / "model.bin").read_bytes()


def layers_of(folder: Path) -> dict[str, int]:
    artifact = artifacts.description(folder)
    return export.get(artifact["format"]).layers(folder, artifact)


def feed(rows: int, length: int) -> dict[str, Any]:
    generator = np.random.default_rng(length)
    names = ("input_ids", "attention_mask", "token_type_ids")
    made = {name: np.ones((rows, length), dtype=np.int64) for name in names}
    made["token_type_ids"] *= 0
    return {**made, "input_ids": generator.integers(5, 999, (rows, length))}


# --- the float file


def test_it_answers_as_pytorch_in_every_batch_and_length(exported: dict[str, Path], tuned: Path) -> None:
    reference = engines.get("torch").load(tuned)
    engine = engines.get("openvino").load(exported["openvino"] / "model.xml")
    for rows, length in ((1, 3), (1, 64), (4, 17)):
        wanted = reference.run(feed(rows, length))["output"]
        assert np.abs(engine.run(feed(rows, length))["logits"] - wanted).max() < 1e-5
    narrow = {name: array.astype(np.int32) for name, array in feed(1, 9).items()}
    assert np.array_equal(engine.run(narrow)["logits"], engine.run(feed(1, 9))["logits"])
    engine.close()


def test_padding_does_not_change_the_answer(exported: dict[str, Path]) -> None:
    engine = engines.get("openvino").load(exported["openvino"] / "model.xml")
    short = feed(1, 12)
    long = {name: np.pad(array, ((0, 0), (0, 20))) for name, array in short.items()}
    assert np.abs(engine.run(short)["logits"] - engine.run(long)["logits"]).max() < 1e-5
    seen = {**long, "attention_mask": np.ones((1, 32), dtype=np.int64)}
    assert np.abs(engine.run(short)["logits"] - engine.run(seen)["logits"]).max() > 1e-3  # it is the mask that does it


def test_inputs_and_axes_are_called_as_in_onnx(exported: dict[str, Path]) -> None:
    mine, onnx = (artifacts.description(exported[engine]) for engine in ("openvino", "tensorrt"))
    assert mine["inputs"] == onnx["inputs"]
    assert mine["outputs"] == onnx["outputs"]
    assert mine["lengths"] is None
    assert (mine["precision"], mine["arithmetic"]) == ("fp32", "f32")
    assert mine["minimum_versions"] == {"openvino": "2024.6.0"}
    assert mine["size_bytes"] == sum(map(len, files_of(exported["openvino"])))
    assert mine["data_files"] == ["model.bin"]


def test_layers_are_called_after_the_modules(exported: dict[str, Path]) -> None:
    mine = layers_of(exported["openvino"])
    assert mine == layers_of(exported["tensorrt"])
    assert QUERY in mine


def test_a_file_comes_out_the_same_twice_and_names_no_machine(tuned: Path, tmp_path: Path) -> None:
    """In one process, where everything that OpenVINO and PyTorch number goes on from where it was."""
    made = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        parameters = export_stage.Parameters(format="openvino", encoding={"max_length": 64})
        context = Context(task="text-classification")
        openvino_format.export(tuned, tmp_path / name, parameters, context)
        made.append(files_of(tmp_path / name))
    assert made[0] == made[1]
    text = made[0][0].decode()
    assert str(tmp_path) not in text
    assert str(Path(sys.prefix)) not in text
    assert "conversion_parameters" not in text
    assert 'INFERENCE_PRECISION_HINT value="f32"' in text


# --- fewer bits


def test_int8_comes_out_the_same_twice_and_holds_int8(
    exported: dict[str, Path], int8: Path, calibration: list[str], tmp_path: Path
) -> None:
    assert files_of(int8) == files_of(quantized(exported["openvino"], tmp_path / "again", calibration))
    assert b"<nncf" not in files_of(int8)[0]
    described = artifacts.description(int8)
    assert described["precision"] == model_file.precision_of(int8 / "model.xml") == "int8"
    assert described["operators"]["FakeQuantize"] > 0
    # Attention stays in float: nothing is rounded between a projection and it.
    assert described["operators"]["FakeQuantize"] <= 4 * 2 + 2


def test_layers_that_are_kept_stay_in_float(
    exported: dict[str, Path], int8: Path, calibration: list[str], texts: list[str], tmp_path: Path
) -> None:
    source = exported["openvino"]
    sizes = layers_of(source)
    every = artifacts.description(int8)
    kept = artifacts.description(quantized(source, tmp_path / "kept", calibration, keep=[QUERY]))
    assert 0.7 * sizes[QUERY] < kept["size_bytes"] - every["size_bytes"] < 0.8 * sizes[QUERY]
    without = artifacts.description(quantized(source, tmp_path / "tables", calibration, embeddings=False))
    assert without["size_bytes"] - every["size_bytes"] > 0.7 * sizes["bert.embeddings.word_embeddings"]
    none = quantized(source, tmp_path / "none", calibration, keep=list(sizes))
    assert "FakeQuantize" not in artifacts.description(none)["operators"]
    assert np.abs(artifacts.answers(none, texts) - artifacts.answers(source, texts)).max() < 1e-5
    with pytest.raises(InputError, match=r"There is no layer 'nowhere' to keep in float; the layers are: bert\."):
        quantized(source, tmp_path / "nowhere", calibration, keep=["nowhere"])


def test_half_precision_is_stored_and_names_its_arithmetic(exported: dict[str, Path], tmp_path: Path) -> None:
    for method, arithmetic, minimum in (("fp16", "f32", "2024.6.0"), ("bf16", "bf16", "2026.0.0")):
        folder = quantized(exported["openvino"], tmp_path / method, [], method=method, keep=[QUERY])
        described = artifacts.description(folder)
        assert (described["precision"], described["arithmetic"]) == (method, arithmetic)
        assert described["minimum_versions"] == {"openvino": minimum}
        assert model_file.precision_of(folder / "model.xml") == method
        engine = engines.get("openvino").load(folder / "model.xml")
        assert engine.describe()["arithmetic"] == arithmetic
        engine.close()
        left = {each.name for each in openvino_file.find(engines.get("openvino").read(folder / "model.xml"))}  # type: ignore[attr-defined]
        assert left == {QUERY}


def test_calibrations_that_nncf_has_not_are_refused_before_anything_runs(
    exported: dict[str, Path], int8: Path, calibration: list[str], reviews: Path, tmp_path: Path
) -> None:
    percentile = quantized(exported["openvino"], tmp_path / "p", calibration, calibration="percentile", percentile=99.0)
    assert files_of(percentile) != files_of(int8)
    for method in ("mse", "entropy"):
        done = run_toolkit(
            "quantize", exported["openvino"], "--method", "static-int8", "--calibration", method, "--data", reviews,
            "-o", tmp_path / "out",
        )  # fmt: skip
        assert done.returncode == 2
        assert f"--calibration {method}: the ranges of openvino files are found by its own quantizer" in done.stderr
        assert "prepare" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_a_missing_quantizer_is_one_line_with_the_command(exported: dict[str, Path], few: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "quantize", exported["openvino"], "--method", "static-int8", "--data", few, "--samples", "8",
        "-o", tmp_path / "out", environ=hidden_in_children({"nncf"}, tmp_path / "site"),
    )  # fmt: skip
    assert_one_line(
        done, 3, "Quantizing an OpenVINO file needs the package 'nncf'", "edge-deployment-toolkit[openvino]"
    )
    assert not (tmp_path / "out").exists()


def test_sensitivity_chooses_layers(exported: dict[str, Path], few: Path, tmp_path: Path) -> None:
    sizes = layers_of(exported["openvino"])
    open_ones = {name for name in sizes if ".1.intermediate." in name or ".1.output." in name}
    keep = [argument for name in sizes if name not in open_ones for argument in ("--keep", name)]
    done = run_toolkit(
        "quantize", exported["openvino"], "--method", "static-int8", "--data", few, "--samples", "8", "--examples", "8",
        "--mixed", *keep, "-o", tmp_path / "out", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)["sensitivity"]
    assert {row["layer"] for row in table["layers"]} == open_ones
    assert len(open_ones) == 2
    assert all(row["bytes_saved"] > 0.7 * sizes[row["layer"]] for row in table["layers"])
    assert len({row["divergence"] for row in table["layers"]}) == 2


# --- networks of convolutions, and ONNX files


def test_a_network_of_convolutions_is_quantized_by_its_modules(tmp_path: Path) -> None:
    import torch

    from toolkit.engines.torch import load_model

    spec = {"resize": {"height": 24, "width": 24}, "channels": 1}
    folder = checkpoint(tmp_path, spec)
    model = load_model(folder, tasks.get("image-classification"))
    steps.export(str(folder), str(tmp_path / "float"), engine="openvino", lengths=[1], allow_code=True)
    artifact = artifacts.description(tmp_path / "float")
    assert artifact["inputs"][0]["shape"] == ["batch", 1, 24, 24]
    names = [name for name, each in model.named_modules() if isinstance(each, torch.nn.Conv2d | torch.nn.Linear)]
    assert list(export.get("openvino").layers(tmp_path / "float", artifact)) == names
    names_of_inputs = [tensor["name"] for tensor in artifact["inputs"]]
    encoder = tasks.get("image-classification").encoder(tmp_path / "float", spec, inputs=names_of_inputs)
    generator = np.random.default_rng(0)
    inputs = [encoder(pattern(kind, generator)) for kind in CLASSES]
    (tmp_path / "int8").mkdir()
    given = SimpleNamespace(
        method="static-int8", keep=[names[1]], embeddings=True, calibration="min-max", percentile=99.99
    )
    made, _ = openvino_format.quantize(tmp_path / "float", tmp_path / "int8", artifact, given, inputs)
    assert made["operators"]["FakeQuantize"] > 0
    left = openvino_file.find(engines.get("openvino").read(tmp_path / "int8" / "model.xml"))  # type: ignore[attr-defined]
    assert [layer.name for layer in left] == [names[1]]
    wanted, found = (
        [engines.get("openvino").load(tmp_path / name / "model.xml").run(each)["output"] for each in inputs]
        for name in ("float", "int8")
    )
    assert 0 < np.abs(np.asarray(wanted) - np.asarray(found)).max() < 0.2 * np.ptp(wanted)


def test_an_onnx_file_becomes_one(exported: dict[str, Path], texts: list[str], tmp_path: Path) -> None:
    source = exported["tensorrt"] / "model.onnx"
    done = run_toolkit(
        "export", source, "--engine", "openvino", "--preprocessing", exported["tensorrt"], "-o", tmp_path / "made"
    )
    assert done.returncode == 0, done.stderr
    made = artifacts.description(tmp_path / "made")
    assert made["inputs"] == artifacts.description(exported["tensorrt"])["inputs"]
    wanted, found = (artifacts.answers(folder, texts) for folder in (exported["openvino"], tmp_path / "made"))
    assert np.abs(wanted - found).max() < 1e-5
    assert layers_of(tmp_path / "made") == layers_of(exported["openvino"])


def test_a_fused_onnx_file_becomes_one_too(exported: dict[str, Path], texts: list[str], tmp_path: Path) -> None:
    """Its operators are ONNX Runtime's own; OpenVINO knows those of encoders."""
    source = exported["onnxruntime"]
    steps.export(
        str(source / "model.onnx"), str(tmp_path / "made"), engine="openvino", lengths=[8], preprocessing=str(source)
    )
    wanted, found = (artifacts.answers(folder, texts) for folder in (exported["openvino"], tmp_path / "made"))
    assert np.abs(wanted - found).max() < 1e-4
    assert "bert.encoder.layer.1.attention.self.query_key_value" in layers_of(source)


def test_an_onnx_file_of_texts_is_quantized(exported: dict[str, Path], few: Path, tmp_path: Path) -> None:
    """Its config does not say how large the vocabulary is, which the lint of calibration texts wants to know."""
    source = exported["tensorrt"]
    report = steps.quantize(
        str(source / "model.onnx"), str(tmp_path / "int8"), method="static-int8", engine="openvino", samples=16,
        options={"data": str(few), "preprocessing": str(source)},
    )  # fmt: skip
    assert report["size_after_bytes"] < 0.3 * report["size_before_bytes"]
    assert model_file.precision_of(tmp_path / "int8" / "model.xml") == "int8"


def test_inputs_and_axes_of_an_onnx_file_may_have_any_name(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, numpy_helper

    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a,b; c", 4]) for name in ("0", "x/y:0", "sum & more")
    ]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w/1")
    nodes = [helper.make_node("Add", ["0", "x/y:0"], ["t"]), helper.make_node("MatMul", ["t", "w/1"], ["sum & more"])]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    steps.export(str(tmp_path / "model.onnx"), str(tmp_path / "made"), engine="openvino", lengths=[8])
    made = artifacts.description(tmp_path / "made")
    assert [(each["name"], each["shape"]) for each in made["inputs"]] == [
        ("0", ["a b  c", 4]),
        ("x/y:0", ["a b  c", 4]),
    ]
    assert layers_of(tmp_path / "made") == {"w.1": 64}
    engine = engines.get("openvino").load(tmp_path / "made" / "model.xml")
    found = engine.run({"0": np.ones((2, 4), np.float32), "x/y:0": np.full((2, 4), 2, np.float32)})
    assert np.array_equal(found["sum & more"], np.full((2, 4), 3))
    engine.close()


def test_an_onnx_file_that_it_cannot_convert_is_one_message(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"])], "determinant",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    done = run_toolkit("export", tmp_path / "model.onnx", "--engine", "openvino", "-o", tmp_path / "made")
    assert done.returncode == 2
    assert done.stderr.count("Error: ") == 1
    assert "OpenVINO cannot convert the ONNX file: " in done.stderr
    assert "Det" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


# --- plans, estimates and verbs


def test_targets_with_intel_kernels_have_candidates(trained: Path) -> None:
    chosen, skipped = recipe.candidates(targets.resolve("intel-n100"), texts=True)
    mine = {plan.precision: plan.method for plan in chosen if plan.engine == "openvino"}
    assert mine == {"fp32": None, "fp16": "fp16", "int8": "static-int8"}
    assert not skipped
    of_float, left = recipe.of_graph(chosen, skipped, "fp32")
    assert {plan.name for plan in of_float if plan.engine == "openvino"} == {
        "openvino fp32", "openvino fp16", "openvino int8",
    }  # fmt: skip
    _, left = recipe.of_graph(chosen, skipped, "int8")
    assert "openvino files are made from ONNX files in float alone" in {each.reason for each in left}


def test_files_whose_costs_are_not_counted_have_no_estimate(exported: dict[str, Path]) -> None:
    plan = recipe.CandidatePlan(engine="openvino", precision="fp32", method=None, reason="-")
    built = SimpleNamespace(output=exported["openvino"])
    candidate = candidates.Candidate(plan, built=built, artifact=artifacts.description(exported["openvino"]))  # type: ignore[arg-type]
    workshop = SimpleNamespace(target=targets.resolve("intel-n100"))
    assert candidates.estimated(workshop, candidate) is None  # type: ignore[arg-type]


def test_inspect_tells_what_a_file_is(exported: dict[str, Path], int8: Path) -> None:
    done = run_toolkit("inspect", int8 / "model.xml", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["kind"], facts["format"], facts["arithmetic"]) == ("file", "openvino", "f32")
    assert facts["quantized"] == "static"
    assert facts["weights"]["i8"] == len(layers_of(exported["openvino"]))
    assert facts["weights_file"] == {"model.bin": (int8 / "model.bin").stat().st_size}
    assert facts["inputs"][0] == {"name": "input_ids", "dtype": "int64", "shape": ["batch", "length"]}
    for path in (int8 / "model.xml", int8):
        done = run_toolkit("inspect", path, "--target", "intel-n100")
        assert done.returncode == 2
        assert "no runtime of target 'intel-n100' that has a rule table reads .xml files" in done.stderr


def test_check_compares_a_file_with_its_checkpoint(
    exported: dict[str, Path], int8: Path, tuned: Path, texts: list[str]
) -> None:
    first = builds.open_build(tuned)
    for path, precision in ((exported["openvino"], "fp32"), (int8, "int8"), (int8 / "model.xml", "int8")):
        second = builds.open_build(path, like=first)
        assert second.precision == precision
        found = check.check(first, second, texts[:8])
        assert found.first is None
        assert found.model is not None
        assert found.model.sqnr_db > {"fp32": 90, "int8": 10}[precision]
        second.close()


# --- damaged files


def damaged(source: Path, folder: Path, case: str) -> Path:
    shutil.copytree(source, folder)
    graph, weights = folder / "model.xml", folder / "model.bin"
    if case == "no weights":
        weights.unlink()
    elif case == "no graph":
        graph.unlink()
    elif case == "empty graph":
        graph.write_bytes(b"")
    elif case == "empty weights":
        weights.write_bytes(b"")
    elif case == "half of the graph":
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    elif case == "half of the weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif case == "other xml":
        graph.write_text('<?xml version="1.0"?><project/>')
    return graph


CASES = {
    "no weights": r"its weights are missing; model\.bin belongs beside it",
    "no graph": "No such file",
    "empty graph": r"it is not the \.xml file of a model",
    "empty weights": "Incorrect weights in bin file",
    "half of the graph": "Error parsing",
    "half of the weights": "Incorrect weights in bin file",
    "other xml": r"it is not the \.xml file of a model",
}


@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_one_message(case: str, exported: dict[str, Path], tmp_path: Path) -> None:
    path = damaged(exported["openvino"], tmp_path / "copy", case)
    with pytest.raises(InputError, match=rf"cannot load .*model\.xml: .*{CASES[case]}") as caught:
        engines.get("openvino").load(path)
    assert "\n" not in str(caught.value)
    if case != "no graph":
        with pytest.raises(InputError, match=CASES[case]):
            model_file.inspect(path)


@pytest.mark.parametrize("verb", ["inspect", "quantize", "check"])
def test_a_verb_on_a_damaged_file_says_so_in_one_line(
    verb: str, exported: dict[str, Path], tuned: Path, reviews: Path, tmp_path: Path
) -> None:
    path = damaged(exported["openvino"], tmp_path / "copy", "half of the weights")
    given = {
        "inspect": [path],
        "quantize": [path.parent, "--method", "fp16", "-o", tmp_path / "out"],
        "check": [tuned, path, "--data", reviews],
    }[verb]
    done = run_toolkit(verb, *given)
    assert done.returncode == 2
    assert done.stderr.count("Error: ") == 1
    assert "Incorrect weights in bin file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# --- silence

IMPORTS = """\
import os, sys
import toolkit
from pathlib import Path
from toolkit import engines
engine = engines.get("openvino").load(Path(sys.argv[1]))
import nncf
engine.close()
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
print("openvino_telemetry" in loaded, type(nncf.telemetry.wrapper.telemetry).__name__, os.listdir(os.environ["HOME"]))
"""


def test_nothing_is_reported_and_nothing_is_written_at_home(exported: dict[str, Path], tmp_path: Path) -> None:
    """Neither package imports what reports; it would leave an identity in the home folder."""
    environ = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environ |= {"HOME": str(tmp_path), "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, exported["openvino"] / "model.xml"],
        capture_output=True, text=True, env=environ, cwd=tmp_path, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "MagicMock", "[]"]
