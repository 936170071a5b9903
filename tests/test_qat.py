"""Quantization-aware training: it rounds as the artifact does, the gradient passes, and training gains from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import write_csv
from tests.small_inputs import prepare
from toolkit import stages, tasks, training
from toolkit.stages import qat, teach
from toolkit.tasks.task import Example

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("exported")
    return {engine: artifacts.export(tuned, folder, engine) for engine in ("onnxruntime", "tensorrt")}


@pytest.fixture(scope="module")
def prepared(tuned: Path, tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("data")
    data = write_csv(folder / "some.csv", sentences[:240])
    prepare(tuned, data, folder / "prepared", known_labels=["negative", "positive"])
    return folder / "prepared"


def load(folder: Path) -> Any:
    from toolkit.engines.torch import load_model

    return load_model(folder, tasks.get("text-classification"))


def rounding_answers(tuned: Path, texts: list[str], calibration: list[str] | None = None, **parameters: Any) -> Any:
    """Logits of the checkpoint when it computes with rounded values."""
    import torch

    from toolkit.engines.torch import input_names

    model, task = load(tuned), tasks.get("text-classification")
    names = input_names(model, task)
    encoder = task.encoder(tuned, {"max_length": 64}, inputs=names)
    examples = training.Examples(task, encoder, [Example(text, None) for text in calibration or ()], names)
    found = qat.activations(model, examples) if calibration else {}
    qat.round_while_running(model, qat.Parameters(**parameters), found)
    with torch.inference_mode():
        return np.asarray(
            [model(**{n: torch.from_numpy(a) for n, a in encoder(text).items()}).logits[0].numpy() for text in texts]
        )


def plain_answers(folder: Path, texts: list[str]) -> Any:
    """Logits of an ONNX file run as it is written: ONNX Runtime would multiply 4-bit weights by 8-bit activations."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    return np.asarray([session.run(None, arrays)[0][0] for arrays in artifacts.encode(folder, texts)])


@pytest.mark.parametrize(
    ("engine", "method", "close"),
    [
        ("tensorrt", "weight-int8", 1e-3),
        ("tensorrt", "weight-int4", 1e-3),
        ("onnxruntime", "dynamic-int8", 0.1),
        ("onnxruntime", "static-int8", 0.1),
    ],
)
def test_training_rounds_as_the_artifact_does(
    engine: str, method: str, close: float, exported: dict[str, Path], tuned: Path,
    sentences: list[tuple[str, str]], tmp_path: Path,
) -> None:  # fmt: skip
    texts, calibration = [text for text, _ in sentences[500:530]], [text for text, _ in sentences[:40]]
    folder = artifacts.quantized(exported[engine], tmp_path / "out", calibration, method=method)
    given = plain_answers(folder, texts)
    said = rounding_answers(tuned, texts, calibration if method == "static-int8" else None, method=method)
    in_float = artifacts.answers(exported[engine], texts)
    assert np.abs(said - given).mean() < close
    assert np.abs(said - given).mean() < 0.7 * np.abs(in_float - given).mean()


def test_weights_are_rounded_and_their_gradient_passes() -> None:
    import torch

    from toolkit.export.onnx_quantize import per_block, per_channel

    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    integers, scale = per_channel(weight.detach().numpy(), 0)
    rounded = qat.rounded_weight(weight, 8, None)
    assert rounded.detach().numpy() == pytest.approx(integers * scale[:, None], abs=1e-6)
    (rounded * 3).sum().backward()
    assert weight.grad.tolist() == torch.full((6, 64), 3.0).tolist()
    integers, scale = per_block(weight.detach().numpy(), 1, 32, 4)
    wanted = integers.reshape(6, 2, 32) * scale[:, :, None]
    assert qat.rounded_weight(weight, 4, 32).detach().numpy() == pytest.approx(wanted.reshape(6, 64), abs=1e-6)
    assert len(np.unique(qat.rounded_weight(weight[:1, :32], 4, 32).detach().numpy())) <= 15


def test_activations_are_rounded_over_each_example() -> None:
    import torch

    values = torch.stack([torch.linspace(-1, 1, 600), torch.linspace(0, 50, 600)]).reshape(2, 3, 200)
    values.requires_grad_()
    rounded = qat.rounded_by_example(values)
    steps = [2 / 255, 50 / 255]
    for row, step in enumerate(steps):
        assert float((rounded[row] - values[row]).detach().abs().max()) == pytest.approx(step / 2, rel=0.1)
        assert len(torch.unique(rounded[row].detach().mul(1 / step).round())) >= 255
    rounded.sum().backward()
    assert bool((values.grad == 1).all())


def learn(tuned: Path, output: Path, prepared: Path, **parameters: Any) -> dict[str, Any]:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a process of the stage's own has none
    output.mkdir(parents=True)
    given = qat.Parameters.model_validate(
        {"epochs": 2, "batch_size": 8, "encoding": {"max_length": 64}, "examples": {"samples": 32}, **parameters}
    )
    return qat.run(tuned, output, given, stages.Context(task="text-classification", data=prepared))


@pytest.fixture(scope="module")
def uneven(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same function with weights that 4 bits hold badly: one of every 32 that share a step is far larger."""
    import shutil

    import torch

    folder = tmp_path_factory.mktemp("uneven") / "model"
    shutil.copytree(tuned, folder)
    model = load(tuned)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight[:, ::32] *= 16
            layer.attention.self.value.weight[::32] /= 16
            layer.attention.self.value.bias[::32] /= 16
    model.save_pretrained(folder)
    return folder


def test_four_bits_come_nearer_to_the_float_answers_by_training(
    exported: dict[str, Path], uneven: Path, prepared: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    """The model learns its own float answers; the weights that come out are float, and quantize better."""
    from transformers import AutoModelForSequenceClassification

    lesson = tmp_path / "lesson"
    lesson.mkdir()
    asked = teach.Parameters(encoding={"max_length": 64})
    teach.run(uneven, lesson, asked, stages.Context("text-classification", data=prepared))
    report = learn(uneven, tmp_path / "out", prepared, method="weight-int4", teaching=[str(lesson)], temperature=1.0)
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.7 * losses[0]
    assert report["validation_score"] >= report["validation_score_before"] > 0.5
    assert report["warnings"] == []
    model, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    assert {path.suffix for path in (tmp_path / "out").iterdir()} <= {".json", ".safetensors", ".txt"}
    weight = model.bert.pooler.dense.weight.detach().numpy()
    assert len(np.unique(weight)) > 0.9 * weight.size  # not rounded
    texts = [text for text, _ in sentences[500:560]]
    wanted = artifacts.answers(exported["onnxruntime"], texts)
    before = np.abs(rounding_answers(uneven, texts, method="weight-int4") - wanted).mean()
    after = np.abs(rounding_answers(tmp_path / "out", texts, method="weight-int4") - wanted).mean()
    assert after < 0.7 * before


def test_training_that_does_not_pay_is_undone(tuned: Path, prepared: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    report = learn(tuned, tmp_path / "out", prepared, learning_rate=0.1, epochs=1)
    (warning,) = report["warnings"]
    assert warning.startswith("Training did not pay: the validation score fell from ")
    before = AutoModelForSequenceClassification.from_pretrained(tuned).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(before[name].equal(after[name]) for name in before)


def test_static_training_takes_its_ranges_from_calibration(tuned: Path, prepared: Path, tmp_path: Path) -> None:
    report = learn(tuned, tmp_path / "out", prepared, method="static-int8", calibration="mse", epochs=1)
    assert report["warnings"][:1] == ["Only 32 different calibration examples; ranges settle with 100 or more."]
    assert report["epochs_run"] == 1
