"""Every method on every format, for real: what is in the file, and that it still answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import run_toolkit, write_csv
from tests.small_inputs import prepare
from toolkit import export as formats
from toolkit import stages, steps
from toolkit.errors import InputError
from toolkit.export import onnx_layers, onnx_quantize
from toolkit.ranges import Histogram, instability, scale_and_zero
from toolkit.stages import quantize

EVERY = [(engine, method) for form in ("onnx", "litert") for engine, methods in formats.get(form).METHODS.items()
         for method in methods if method != formats.INTEGER]  # fmt: skip
# Of the float file: the table of 30,522 rows is most of this small model.
LARGEST = {"int8": 0.30, "int16x8": 0.30, "int4": 0.28, "fp16": 0.55, "bf16": 0.55}


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    return {engine: artifacts.export(tuned, folder, engine) for engine in ("onnxruntime", "tensorrt", "litert")}


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in sentences[:60]]


@pytest.fixture(scope="module")
def calibration(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in sentences[100:148]]


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def made(exported: dict[str, Path], calibration: list[str], tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A quantized artifact, made once per request."""
    folders: dict[str, Path] = {}

    def make(engine: str, **parameters: Any) -> Path:
        key = json.dumps([engine, parameters])
        if key not in folders:
            output = tmp_path_factory.mktemp("quantized") / "artifact"
            given = calibration if parameters["method"] in formats.STATIC else ()
            folders[key] = artifacts.quantized(exported[engine], output, given, **parameters)
        return folders[key]

    return make


def model_of(folder: Path) -> Any:
    import onnx

    return onnx.load(str(folder / "model.onnx"))


def initializers(model: Any) -> dict[str, Any]:
    import onnx

    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


@pytest.mark.parametrize(("engine", "method"), EVERY)
def test_every_method_makes_a_smaller_file_that_answers_nearly_as_before(
    engine: str, method: str, made: Make, exported: dict[str, Path], texts: list[str]
) -> None:
    folder = made(engine, method=method)
    before, after = artifacts.description(exported[engine]), artifacts.description(folder)
    assert after["size_bytes"] == (folder / after["path"]).stat().st_size
    assert after["size_bytes"] < LARGEST[after["precision"]] * before["size_bytes"]
    for key in ("format", "engine", "path", "inputs", "lengths", "outputs"):
        assert after[key] == before[key]
    wanted, given = artifacts.answers(exported[engine], texts), artifacts.answers(folder, texts)
    assert (wanted.argmax(axis=1) == given.argmax(axis=1)).mean() >= 0.9
    assert 0 < np.abs(wanted - given).max() < 0.5 * np.ptp(wanted)
    assert not np.allclose(wanted, given, atol=1e-6)


@pytest.mark.parametrize("method", ["min-max", "percentile", "entropy", "mse"])
def test_every_calibration_gives_ranges_of_its_own(
    method: str, made: Make, exported: dict[str, Path], texts: list[str]
) -> None:
    folder = made("onnxruntime", method="static-int8", calibration=method)
    wanted, given = artifacts.answers(exported["onnxruntime"], texts), artifacts.answers(folder, texts)
    assert (wanted.argmax(axis=1) == given.argmax(axis=1)).mean() >= 0.9
    scales = {name: array for name, array in initializers(model_of(folder)).items() if name.endswith(".scale")}
    others = initializers(model_of(made("onnxruntime", method="static-int8", calibration="min-max")))
    narrower = [name for name, scale in scales.items() if scale.ndim == 0 and scale < 0.999 * others[name]]
    assert bool(narrower) == (method != "min-max")


def test_what_tensorrt_refuses_is_not_in_its_files(made: Make) -> None:
    """Its parser takes no unsigned or shifted activations, no int32 biases, no operator of ONNX Runtime's."""
    import onnx

    for method in formats.get("onnx").METHODS["tensorrt"]:
        model = model_of(made("tensorrt", method=method))
        onnx.checker.check_model(model, full_check=True)
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        stored = initializers(model)
        for node in model.graph.node:
            assert node.op_type not in ("DynamicQuantizeLinear", "MatMulInteger", "QLinearMatMul")
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                kinds = [stored[name].dtype.name for name in node.input if name in stored]
                assert not {"uint8", "int32"} & set(kinds)
            if node.op_type == "QuantizeLinear":
                assert stored[node.input[2]].dtype == np.int8
                assert stored[node.input[2]] == 0
    pairs = list(model_of(made("tensorrt", method="static-int8")).graph.node)
    linear = [layer for layer in onnx_layers.find(model_of(made("tensorrt", method="fp16"))) if not layer.is_table]
    assert not linear  # in half precision none is left in float32
    assert sum(node.op_type == "QuantizeLinear" for node in pairs) == 6 * 2 + 2  # layers of two blocks, and the head


def test_int4_weights_share_a_scale_in_blocks(made: Make) -> None:
    model = model_of(made("tensorrt", method="weight-int4", block_size=64))
    assert model.opset_import[0].version >= 21
    stored = initializers(model)
    blocks = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    four_bits = [node for node in blocks if stored[node.input[0]].dtype.name == "int4"]
    assert len(four_bits) == 14
    for node in four_bits:
        given = {attribute.name: attribute.i for attribute in node.attribute}
        weight, scale = stored[node.input[0]], stored[node.input[1]]
        assert given["block_size"] == 64
        assert weight.shape[given["axis"]] == 64 * scale.shape[given["axis"]]
    fused = model_of(made("onnxruntime", method="weight-int4", block_size=64))
    packed = [node for node in fused.graph.node if node.op_type == "MatMulNBits"]
    assert len(packed) == 4 * 2 + 2
    assert {a.i for node in packed for a in node.attribute if a.name == "block_size"} == {64}
    assert artifacts.description(made("onnxruntime", method="weight-int8"))["minimum_versions"] == {
        "onnxruntime": "1.22.0"
    }


def test_layers_have_the_names_of_the_modules(exported: dict[str, Path], tuned: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tuned)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    tables = ["bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings"]
    read = formats.get("onnx").layers(exported["tensorrt"], artifacts.description(exported["tensorrt"]))
    assert sorted(read) == sorted(linear + tables)
    assert read[tables[0]] == 4 * model.bert.embeddings.word_embeddings.weight.numel()
    fused = list(formats.get("onnx").layers(exported["onnxruntime"], artifacts.description(exported["onnxruntime"])))
    assert "bert.encoder.layer.1.attention.self.query_key_value" in fused
    assert "bert.encoder.layer.1.attention.output.dense" in fused
    lite = formats.get("litert").layers(exported["litert"], artifacts.description(exported["litert"]))
    assert len(lite) == 7 * 2 - 2 + 2 + 2  # six per block, the pooler and the head, two tables that are looked up
    assert {"bert.embeddings.word_embeddings", "bert.encoder.1.output.dense", "classifier"} <= set(lite)


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt", "litert"])
def test_layers_that_are_kept_stay_in_float(engine: str, made: Make, exported: dict[str, Path]) -> None:
    artifact = artifacts.description(exported[engine])
    sizes = formats.get(artifact["format"]).layers(exported[engine], artifact)
    all_of_them = made(engine, method="weight-int8")
    name = next(name for name in sizes if name.endswith("intermediate.dense"))
    kept = made(engine, method="weight-int8", keep=[name])
    more = artifacts.description(kept)["size_bytes"] - artifacts.description(all_of_them)["size_bytes"]
    assert 0.65 * sizes[name] < more < 0.8 * sizes[name]
    without = made(engine, method="weight-int8", embeddings=False)
    more = artifacts.description(without)["size_bytes"] - artifacts.description(all_of_them)["size_bytes"]
    assert more > 0.7 * sizes["bert.embeddings.word_embeddings"]
    with pytest.raises(InputError, match="no layer 'nowhere' to keep in float; the layers are: bert"):
        made(engine, method="weight-int8", keep=["nowhere"])


def test_tables_have_a_scale_for_every_row(made: Make) -> None:
    stored = initializers(model_of(made("onnxruntime", method="dynamic-int8")))
    table = stored["bert.embeddings.word_embeddings.weight.int8"]
    assert table.dtype == np.int8
    assert stored["bert.embeddings.word_embeddings.weight.scale"].shape == (len(table), 1)
    assert np.abs(table).max(axis=1).min() == 127


def test_blocks_that_do_not_fit_are_refused(exported: dict[str, Path]) -> None:
    model = model_of(exported["tensorrt"])
    layer = next(layer for layer in onnx_layers.find(model) if layer.name == "classifier")
    with pytest.raises(InputError, match="classifier has 384 inputs, which blocks of 100 do not divide"):
        onnx_quantize._store_weight(model, layer, 4, 100)


@pytest.mark.parametrize(
    ("method", "minimum"), [("fp16", "2.9.0"), ("weight-int8", "2.18.0"), ("weight-int4", "2.18.0")]
)
def test_minimum_litert_runtime_follows_the_weights(method: str, minimum: str, made: Make) -> None:
    assert artifacts.description(made("litert", method=method))["minimum_versions"]["tflite-runtime"] == minimum


# --- ranges


def test_a_histogram_does_not_depend_on_the_order_of_what_it_counts() -> None:
    values = np.random.default_rng(0).standard_cauchy(20_000).astype(np.float32)
    once, parts, halves = Histogram(), Histogram(), (Histogram(), Histogram())
    once.add(values)
    for part in np.array_split(np.sort(values), 50):
        parts.add(part)
    halves[0].add(values[:10_000])
    halves[1].add(values[10_000:])
    for other in (parts, halves[0].merge(halves[1])):
        assert (other.counts == once.counts).all()
        assert (other.low, other.high, other.limit) == (once.low, once.high, once.limit)


def test_ranges_clip_what_they_should() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(200_000).astype(np.float32)
    values[:20] = 30.0
    histogram = Histogram()
    histogram.add(values)
    assert histogram.range("min-max") == (values.min(), 30.0)
    low, high = histogram.range("percentile", 99.9)
    assert low == pytest.approx(np.percentile(values, 0.05), abs=0.02)
    assert high == pytest.approx(np.percentile(values, 99.95), abs=0.02)
    assert 3 < histogram.range("entropy")[1] < 10

    def error(clip: float) -> float:
        step = (clip - values.min()) / 255
        rounded = np.round((np.minimum(values, clip) - values.min()) / step) * step + values.min()
        return float(((values - rounded) ** 2).mean())

    best = histogram.range("mse")[1]
    assert error(best) <= 1.02 * min(error(clip) for clip in np.linspace(1, 30, 60))
    assert Histogram().range("mse") == (0.0, 0.0)
    positive = Histogram()
    positive.add(np.asarray([1.0, 2.0, 4.0]))
    assert positive.range("min-max") == (0.0, 4.0)


def test_entropy_agrees_with_the_calibrator_of_onnxruntime() -> None:
    from onnxruntime.quantization.calibrate import HistogramCollector

    values = np.random.default_rng(1).laplace(size=300_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    theirs = HistogramCollector("entropy", False, 2048, 128, 99.99, "same")
    theirs.collect({"x": values})
    assert histogram.range("entropy")[1] == pytest.approx(float(theirs.compute_collection_result()["x"][1]), rel=0.25)


def test_scales_are_symmetric_or_not() -> None:
    assert scale_and_zero(-1.0, 3.0, symmetric=True) == (3 / 127, 0)
    scale, zero = scale_and_zero(-1.0, 3.0, symmetric=False)
    assert scale == pytest.approx(4 / 255)
    assert (0 - zero) * scale == pytest.approx(-1.0, abs=scale)


def test_instability_is_how_much_wider_one_half_is() -> None:
    narrow, wide = Histogram(), Histogram()
    narrow.add(np.asarray([-1.0, 1.0]))
    wide.add(np.asarray([-2.0, 2.0]))
    assert instability(narrow, wide, "min-max") == instability(wide, narrow, "min-max") == 1.0
    assert instability(wide, wide, "min-max") == 0.0


# --- the stage and the verb


def test_calibration_needs_a_training_part(
    tuned: Path, exported: dict[str, Path], sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    data = write_csv(tmp_path / "some.csv", sentences[:120])
    prepare(tuned, data, tmp_path / "prepared", known_labels=["negative", "positive"], evaluate_only=True)
    (tmp_path / "out").mkdir()
    context = stages.Context(task="text-classification", data=tmp_path / "prepared")
    with pytest.raises(InputError, match=r"for evaluation only.*Name a file of other texts with --calibration-data"):
        quantize.run(exported["onnxruntime"], tmp_path / "out", quantize.Parameters(method="static-int8"), context)
    other = tmp_path / "other.txt"
    other.write_text("\n".join(text for text, _ in sentences[200:280]))
    parameters = quantize.Parameters.model_validate(
        {"method": "static-int8", "examples": {"file": str(other), "encoding": {"max_length": 64}}}
    )
    report = quantize.run(exported["onnxruntime"], tmp_path / "out", parameters, context)
    assert any(warning.startswith("Only 80 different calibration examples") for warning in report["warnings"])


def test_the_verb_takes_a_checkpoint_all_the_way(tuned: Path, reviews: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "quantize", tuned, "--engine", "onnxruntime", "--method", "static-int8", "--calibration", "mse", "--balance",
        "0.7", "--data", reviews, "--samples", "40", "-o", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "MB → " in done.stdout
    assert done.stderr.count("Warning: Only 40 different calibration examples") == 1  # two stages say so
    receipt = json.loads((tmp_path / "out" / "receipt.json").read_text())
    assert receipt["stage"] == "quantize"
    assert [each["stage"] for each in receipt["before"]] == ["prepare", "export", "balance"]
    assert str(reviews) not in json.dumps(receipt)
    artifact = artifacts.description(tmp_path / "out")
    assert artifact["precision"] == "int8"
    assert artifact["operators"]["QuantizeLinear"] > 0


def test_what_cannot_be_quantized_is_refused_before_anything_runs(
    tuned: Path, encoder: Path, exported: dict[str, Path], reviews: Path, tmp_path: Path
) -> None:
    def refuse(message: str, model: Path, **given: Any) -> None:
        with pytest.raises(InputError, match=message):
            steps.quantize(str(model), str(tmp_path / "out"), **{"method": "dynamic-int8", **given})
        assert not (tmp_path / "out").exists()

    refuse("is a checkpoint: name what it is exported for with --engine", tuned)
    refuse("Unknown engine 'magic'; known: onnxruntime", tuned, engine="magic")
    refuse("is not trained for text-classification; fine-tune it first", encoder, engine="litert")
    refuse("is not an artifact folder, and no checkpoint", tmp_path)
    refuse("tensorrt cannot be quantized by 'dynamic-int8'; known: static-int8", exported["tensorrt"])
    refuse("litert cannot be quantized by 'bf16'", tuned, engine="litert", method="bf16")
    refuse("was exported for litert; --engine tensorrt needs the checkpoint", exported["litert"], engine="tensorrt")
    refuse("--qat trains a checkpoint", exported["litert"], qat_epochs=1, options={"data": str(reviews)})
    refuse("No litert file can be balanced", exported["litert"], balance=0.5, options={"data": str(reviews)})
    refuse("--data: calibration takes them", exported["litert"], method="static-int8")
    refuse("--data: sensitivity is measured on them", exported["litert"], sensitivity=True)
    refuse("--data: --qat trains on them", tuned, engine="litert", qat_epochs=1)
    refuse("--qat trains for integers", tuned, engine="litert", method="fp16", qat_epochs=1,
           options={"data": str(reviews)})  # fmt: skip
    refuse("Data file nofile.csv does not exist", exported["litert"], method="static-int8",
           options={"data": "nofile.csv"})  # fmt: skip
    refuse("nofile.txt is not a text file", exported["litert"], method="static-int8", calibration_data="nofile.txt",
           options={"data": str(reviews)})  # fmt: skip
    refuse("--min-score 'much' is neither", exported["litert"], min_score="much", options={"data": str(reviews)})
