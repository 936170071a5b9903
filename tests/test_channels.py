"""Convolutional networks made narrower: what goes, what has to stay, and the way to a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.networks import CLASSES, image_folder, network_file, pattern
from toolkit import checkpoint as checkpoints
from toolkit import modules, network, tasks
from toolkit.errors import InputError
from toolkit.stages import prune

TASK = tasks.get("image-classification")
SPEC = {"resize": {"height": 24, "width": 24}, "channels": 1}

pytestmark = pytest.mark.usefixtures("torch_as_before")


def a_network(folder: Path, width: int = 48) -> Any:
    import torch

    torch.manual_seed(0)
    code = modules.imported(f"{network_file(folder)}:build", None, folder / "cache", False)
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps({**config, "arguments": {"width": width}}))
    return network.load(code, TASK, list(CLASSES), SPEC)


def images(count: int = 12) -> Any:
    import torch

    generator = np.random.default_rng(1)
    pixels = np.stack([pattern(CLASSES[i % 3], generator, 40) for i in range(count)])
    return torch.from_numpy(pixels[:, None].astype(np.float32) / 255)


def narrow(model: Any, share: float, multiple: int = 8, method: str = "magnitude") -> None:
    """On images and their classes."""
    import torch
    from torch.nn import functional

    from toolkit import channels

    batches = [(images(), torch.arange(12) % 3)] if method != "magnitude" else []
    channels.narrow(
        model,
        share,
        multiple,
        method,  # type: ignore[arg-type]
        batches,
        lambda model, batch: functional.cross_entropy(model(pixel_values=batch[0]), batch[1]),
        {"pixel_values": images(1)},
    )


def answers(model: Any) -> Any:
    import torch

    with torch.inference_mode():
        result = model.eval()(pixel_values=images())
    return getattr(result, "logits", result).numpy()


@pytest.mark.parametrize("method", ["magnitude", "taylor", "fisher"])
def test_channels_that_no_answer_depends_on_go_first(method: str, tmp_path: Path) -> None:
    """Half of the channels are always zero. Without them the answers are what they were."""
    import torch

    model = a_network(tmp_path, 16)
    dead = torch.tensor([0, 3, 4, 7, 8, 10, 13, 15])
    with torch.no_grad():
        for layer in (model.net.stem[0], *(block.mix for block in model.net.blocks)):
            layer.weight[dead] = 0
            layer.bias[dead] = 0
    before = answers(model)
    narrow(model, 0.5, method=method)
    assert model.net.stem[0].out_channels == model.net.blocks[1].depthwise.groups == model.net.head.in_features == 8
    assert answers(model) == pytest.approx(before, abs=1e-5)


def test_a_narrower_network_is_loaded_anew(tmp_path: Path) -> None:
    model = a_network(tmp_path)
    narrow(model, 0.5)
    (tmp_path / "narrow").mkdir()
    model.save_pretrained(tmp_path / "narrow")
    again = network.load(tmp_path / "narrow", TASK)
    assert again.net.blocks[0].mix.in_channels == 24
    assert answers(again) == pytest.approx(answers(model), abs=1e-6)


@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2", "convnext"])
def test_transformers_networks_are_loaded_anew(kind: str, tmp_path: Path) -> None:
    """Their config cannot say how wide the layers are, so the weights do."""
    import transformers

    from toolkit.engines.torch import load_for_training, load_model

    configs = {
        "resnet": {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "num_channels": 1},
        "mobilenet_v2": {"depth_multiplier": 0.35, "num_channels": 1},
        "convnext": {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 16, 32, 32], "num_channels": 1},
    }
    labels = {"num_labels": 3, "id2label": dict(enumerate(CLASSES))}
    config = transformers.AutoConfig.for_model(kind, **configs[kind], **labels)
    model = transformers.AutoModelForImageClassification.from_config(config).eval()
    before = sum(p.numel() for p in model.parameters())
    narrow(model, 0.5)
    assert sum(p.numel() for p in model.parameters()) < 0.6 * before
    model.save_pretrained(tmp_path / "narrow")
    assert answers(load_model(tmp_path / "narrow", TASK)) == pytest.approx(answers(model), abs=1e-5)
    assert load_for_training(tmp_path / "narrow", TASK, CLASSES, {}).num_labels == 3
    with pytest.raises(InputError, match="keeps its labels"):
        load_for_training(tmp_path / "narrow", TASK, ["one", "other"], {})


def test_convolutions_in_groups_stay_as_they_are() -> None:
    """Their groups would have to lose as many channels each."""
    import torch
    from torch import nn

    layers = [nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 32, 3)]

    class Grouped(nn.Module):  # type: ignore[misc]
        config = network.Config({})

        def __init__(self) -> None:
            super().__init__()
            self.layers, self.head = nn.Sequential(*layers), nn.Linear(32, 3)

        def forward(self, pixel_values: Any) -> Any:
            return self.head(self.layers(pixel_values).mean((2, 3)))

    torch.manual_seed(0)
    model = Grouped()
    narrow(model, 0.5)
    assert [layers[i].out_channels for i in (0, 2, 4)] == [16, 16, 16]
    assert answers(model).shape == (12, 3)


def test_a_share_that_takes_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--channels 0.05 takes no channel out: rounded to multiples of 8, all 240"):
        narrow(a_network(tmp_path), 0.05)
    narrow(model := a_network(tmp_path), 0.05, multiple=1)
    assert model.net.head.in_features == 46


def test_what_cannot_be_narrowed_says_so(tmp_path: Path) -> None:
    """Half convolutions, half attention: the channels are split into heads."""
    import transformers

    sizes = {"hidden_sizes": [32, 48, 64], "neck_hidden_sizes": [16, 24, 32, 48, 64, 96, 128], "num_channels": 1}
    config = transformers.MobileViTConfig(image_size=24, **sizes)
    model = transformers.AutoModelForImageClassification.from_config(config)
    with pytest.raises(InputError, match="The channels of this network cannot be pruned: "):
        narrow(model, 0.5)


def test_the_stage_is_refused_beforehand_where_it_makes_no_sense(tuned: Path, tmp_path: Path) -> None:
    text = tasks.get("text-classification")
    with pytest.raises(InputError, match="is no network of convolutions"):
        prune.check(prune.Parameters(channels=0.5), checkpoints.inspect(tuned, text), text)
    model = a_network(tmp_path)
    (tmp_path / "model").mkdir()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor.json").write_text(json.dumps(SPEC))
    found = checkpoints.inspect(tmp_path / "model", TASK)
    with pytest.raises(InputError, match="goes with no other pruning"):
        prune.check(prune.Parameters(channels=0.5, ffn=0.5), found, TASK)
    with pytest.raises(InputError, match="Models of the type 'module' cannot be made smaller"):
        prune.check(prune.Parameters(layers=1), found, TASK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), 70)


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `toolkit finetune` writes."""
    work = tmp_path_factory.mktemp("trained")
    done = run_toolkit(
        "finetune", f"{network_file(work)}:build", "--task", TASK.NAME, "--data", folder, "--option", "size=24",
        "--option", "channels=1", "--epochs", "5", "--learning-rate", "1e-2", "--batch-size", "16",
        "-o", work / "tuned",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return work / "tuned"


def test_the_verb_prunes_and_lets_recover(trained: Path, folder: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "prune", trained, "--allow-code", "--data", folder, "--channels", "0.5", "--epochs", "3", "--learning-rate",
        "1e-2", "--batch-size", "16", "-o", tmp_path / "narrow", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["shape_before"] == {"convolutions": 5, "channels": 240}
    assert report["shape"] == {"convolutions": 5, "channels": 120}
    assert report["validation_score"] > 0.8
    model = network.load(tmp_path / "narrow", TASK)
    assert sum(p.numel() for p in model.parameters()) == report["parameters"]


def test_the_chain_prunes_channels(trained: Path, folder: Path, tmp_path: Path) -> None:
    """convert --compress: probed before it is trained, recovered, judged, and exported at its new width."""
    made = toolkit.convert(
        str(trained), "host", allow_code=True, data=str(folder), output=str(tmp_path / "bundle"), compress=True,
        min_score="80%",
    )  # fmt: skip
    found = made.summary["compression"]
    assert [point["channels_pruned"] for point in found["points"]] == [0.5, 0.4, 0.3, 0.2, 0.65]
    step = found["steps"][-1]  # which share is measurably faster may differ from machine to machine
    assert found["outcome"] == f"{step['name']} passed" and step["name"].endswith("of the channels pruned")
    assert step["stage"] == "prune" and step["kept"]
    assert step["after"]["parameters"] < 0.8 * step["before"]["parameters"]
    receipts = [json.loads(path.read_text()) for path in (made.path / "receipts").glob("*.json")]
    assert {"teach", "prune"} <= {receipt["stage"] for receipt in receipts}
    classify = toolkit.load(made.path)
    assert classify(pattern("stripes", np.random.default_rng(99)))["label"] == "stripes"
    classify.close()


def test_quantized_training_rounds_convolutions_as_the_artifact_does(
    trained: Path, folder: Path, tmp_path: Path
) -> None:
    import torch

    from toolkit import engines, steps, training
    from toolkit.stages import qat
    from toolkit.tasks.task import Example

    pictures = [pattern(CLASSES[i % 3], np.random.default_rng(i)) for i in range(24)]
    model = network.load(trained, TASK)
    encoder = TASK.encoder(trained, {}, inputs=["pixel_values"])
    batch = {"pixel_values": torch.from_numpy(np.concatenate([encoder(each)["pixel_values"] for each in pictures]))}
    with torch.inference_mode():
        exact = model(**batch).numpy()
        parameters = qat.Parameters(method="static-int8")
        calibrating = training.Examples(TASK, encoder, [Example(each, None) for each in pictures], ["pixel_values"])
        qat.round_while_running(model, parameters, qat.activations(model, calibrating))
        rounded = model(**batch).numpy()
    assert np.abs(rounded - exact).max() > 1e-3  # it does round
    options = {"data": str(folder), "allow_code": True}
    steps.quantize(str(trained), str(tmp_path / "int8"), method="static-int8", engine="onnxruntime", options=options)
    engine = engines.get("onnxruntime").load(tmp_path / "int8" / "model.onnx")
    (name,) = (each["name"] for each in json.loads((tmp_path / "int8" / "artifact.json").read_text())["inputs"])
    artifact = np.concatenate([engine.run({name: each[None].numpy()})["output"] for each in batch["pixel_values"]])
    assert np.abs(rounded - artifact).mean() < np.abs(exact - artifact).mean()


def test_quantized_training_keeps_the_statistics_of_norms(trained: Path) -> None:
    import torch

    from toolkit.stages import qat

    model = network.load(trained, TASK)
    norm = model.net.stem[1]
    before = norm.running_mean.clone()
    model.train()
    model(pixel_values=images())
    assert not torch.equal(norm.running_mean, before)
    before = norm.running_mean.clone()
    qat.without_noise(model)
    model.train()
    said = model(pixel_values=images())
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(said, model.eval()(pixel_values=images()))
