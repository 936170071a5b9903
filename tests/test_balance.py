"""Balanced activations: the same answers in float, and activations that fill their range."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import write_csv
from tests.small_inputs import prepare
from toolkit import stages
from toolkit.errors import InputError
from toolkit.export import onnx_balance, onnx_layers
from toolkit.stages import balance

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tuned, tmp_path_factory.mktemp("exported"), "onnxruntime")


@pytest.fixture(scope="module")
def context(tuned: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> stages.Context:
    folder = tmp_path_factory.mktemp("data")
    data = write_csv(folder / "some.csv", sentences[:300])
    prepare(tuned, data, folder / "prepared", known_labels=["negative", "positive"])
    return stages.Context(task="text-classification", data=folder / "prepared")


def run(source: Path, output: Path, context: stages.Context, alpha: float = 0.7) -> dict[str, Any]:
    output.mkdir()
    parameters = balance.Parameters.model_validate(
        {"alpha": alpha, "examples": {"samples": 48, "encoding": {"max_length": 64}}}
    )
    return balance.run(source, output, parameters, context)


def torch_answers(folder: Path, texts: list[str]) -> Any:
    from toolkit.engines import torch as torch_engine

    engine = torch_engine.load(folder)
    encoder = artifacts.tasks.get("text-classification").encoder(folder, {"max_length": 64}, inputs=engine.input_names)
    return np.asarray([engine.run(encoder(text))["output"][0] for text in texts])


def test_a_balanced_artifact_answers_the_same(
    exported: Path, context: stages.Context, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    import onnx

    report = run(exported, tmp_path / "out", context)
    assert report["balanced"] == 4 * 2 + 2
    texts = [text for text, _ in sentences[400:430]]
    before, after = artifacts.answers(exported, texts), artifacts.answers(tmp_path / "out", texts)
    assert after == pytest.approx(before, abs=1e-4)
    assert artifacts.description(tmp_path / "out")["precision"] == "fp32"

    def imbalance(folder: Path) -> float:
        """Of the largest activation to the usual one, on average over the layers."""
        model = onnx.load(str(folder / "model.onnx"))
        names = list(dict.fromkeys(layer.activation for layer in onnx_layers.find(model) if not layer.is_table))
        found = onnx_balance._largest(model, names, artifacts.encode(folder, texts))
        return float(np.mean([tops.max() / np.median(tops) for tops in found.values()]))

    assert imbalance(tmp_path / "out") < 0.6 * imbalance(exported)


def test_static_quantization_gains_where_channels_differ(
    tuned: Path, context: stages.Context, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    """Some channels of the attention's values are made large, and the layer that reads them as much smaller."""
    import onnx

    source = artifacts.export(tuned, tmp_path, "tensorrt")
    model = onnx.load(str(source / "model.onnx"))
    stored = {each.name: each for each in model.graph.initializer}
    layers = {layer.name: layer for layer in onnx_layers.find(model)}
    prefix = "bert.encoder.layer.0.attention"
    for name, factor, by_row in ((f"{prefix}.self.value", 60.0, False), (f"{prefix}.output.dense", 1 / 60, True)):
        weight = onnx.numpy_helper.to_array(stored[layers[name].weight]).copy()
        weight[(slice(4), slice(None)) if by_row else (slice(None), slice(4))] *= factor
        stored[layers[name].weight].CopyFrom(onnx.numpy_helper.from_array(weight, layers[name].weight))
    bias = onnx.numpy_helper.to_array(stored[f"{prefix}.self.value.bias"]).copy()
    bias[:4] *= 60
    stored[f"{prefix}.self.value.bias"].CopyFrom(onnx.numpy_helper.from_array(bias, f"{prefix}.self.value.bias"))
    onnx.save(model, str(source / "model.onnx"))

    run(source, tmp_path / "balanced", context)
    texts, calibration = [text for text, _ in sentences[400:440]], [text for text, _ in sentences[:48]]
    wanted = artifacts.answers(source, texts)
    errors = []
    for folder in (source, tmp_path / "balanced"):
        output = artifacts.quantized(folder, tmp_path / f"{folder.name}-int8", calibration, method="static-int8")
        errors.append(float(np.abs(artifacts.answers(output, texts) - wanted).mean()))
    assert errors[1] < 0.7 * errors[0]


def test_a_balanced_checkpoint_answers_the_same(
    tuned: Path, context: stages.Context, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    report = run(tuned, tmp_path / "out", context)
    assert report["balanced"] == 2
    texts = [text for text, _ in sentences[400:430]]
    assert torch_answers(tmp_path / "out", texts) == pytest.approx(torch_answers(tuned, texts), abs=1e-4)
    before = AutoModelForSequenceClassification.from_pretrained(tuned).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    changed = {name for name in before if not before[name].equal(after[name])}
    assert changed == {
        f"bert.encoder.layer.{layer}.attention.{name}"
        for layer in (0, 1)
        for name in ("self.value.weight", "self.value.bias", "output.dense.weight")
    }


def test_alpha_says_how_much_moves() -> None:
    activations, weights = np.asarray([1.0, 100.0, 4.0]), np.asarray([1.0, 1.0, 0.25])
    assert onnx_balance.scales(activations, weights, 1.0).tolist() == [1.0, 100.0, 4.0]
    assert onnx_balance.scales(activations, weights, 0.5).tolist() == pytest.approx([1.0, 10.0, 4.0])
    assert np.isfinite(onnx_balance.scales(np.zeros(3), np.zeros(3), 0.5)).all()


def test_a_litert_file_is_not_balanced(context: stages.Context, tuned: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tuned / name).read_bytes())
    (tmp_path / "artifact.json").write_text('{"format": "litert"}')
    with pytest.raises(InputError, match="A litert file cannot be balanced; balance the checkpoint, then export it"):
        run(tmp_path, tmp_path / "out", context)
