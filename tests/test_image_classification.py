"""Image classification, from files to a bundle: where images come from, what is refused, and the whole way."""

from __future__ import annotations

import csv
import gzip
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.networks import CLASSES, image_folder, network_file, pattern
from toolkit import bundle as bundles
from toolkit import engines, stages
from toolkit.errors import InputError
from toolkit.export.litert import METHODS
from toolkit.tasks.image_classification import TASK

EACH = 70
OPTIONS = {"size": 24, "channels": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_folder(tmp_path_factory.mktemp("images"), EACH)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says nothing of images."""
    path = tmp_path_factory.mktemp("model")
    (path / "config.json").write_text("{}")
    return path


def prepare(source: Path, data: Path, output: Path, **options: Any) -> dict[str, Any]:
    module = stages.get("prepare")
    output.mkdir(parents=True)
    given = module.Parameters.model_validate({"data": str(data), **OPTIONS, **options})
    return module.run(source, output, given, stages.Context(task=TASK.NAME))


def shown(output: Path) -> dict[bytes, int]:
    """What the model will see of every prepared image, and its label."""
    encoder = TASK.encoder(output, json.loads((output / "report.json").read_text())["encoding"])
    examples = [example for split in ("train", "validation", "eval") for example in TASK.read_examples(output, split)]
    return {encoder(example.input)["pixel_values"].tobytes(): example.label for example in examples}


# Where images come from


def idx(path: Path, array: Any) -> Path:
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.fixture(scope="module")
def expected(folder: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, int]:
    output = tmp_path_factory.mktemp("expected") / "prepared"
    report = prepare(source, folder, output)
    assert report["splits"] == {"train": 150, "validation": 18, "eval": 42}
    assert report["labels"] == dict.fromkeys(CLASSES, EACH)
    return shown(output)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "idx", "idx.gz", "dataset"])
def test_every_source_gives_the_same_images(
    form: str, folder: Path, source: Path, expected: dict[bytes, int], tmp_path: Path
) -> None:
    import datasets
    from PIL import Image

    files = sorted(folder.rglob("*.png"))
    rows = [{"image": str(path), "label": path.parent.name} for path in files]
    data = tmp_path / f"images.{form}"
    if form == "csv":
        with data.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["image", "label"])
            writer.writeheader()
            writer.writerows(rows)
    elif form == "jsonl":
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form in ("parquet", "dataset"):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
        table = datasets.Dataset.from_list(rows, features=features)
        if form == "parquet":
            table.to_parquet(data)
        else:
            table.save_to_disk(data)
    else:
        suffix = ".gz" if form.endswith("gz") else ""
        pixels = np.stack([np.asarray(Image.open(path)) for path in files])
        data = idx(tmp_path / f"some-images-idx3-ubyte{suffix}", pixels)
        labels = np.asarray([CLASSES.index(path.parent.name) for path in files], dtype=np.uint8)
        idx(tmp_path / f"some-labels-idx1-ubyte{suffix}", labels)
    names = list(CLASSES) if form.startswith(("idx", "parquet")) else None
    prepare(source, data, tmp_path / "prepared", label_names=names)
    assert shown(tmp_path / "prepared") == expected


def test_copies_are_dropped_and_so_is_what_has_two_labels(folder: Path, source: Path, tmp_path: Path) -> None:
    import shutil

    data = tmp_path / "images"
    shutil.copytree(folder, data)
    shutil.copy(data / "dots" / "000.png", data / "dots" / "again.png")
    shutil.copy(data / "dots" / "001.png", data / "waves" / "also.png")
    report = prepare(source, data, tmp_path / "prepared")
    assert report["dropped"] == {"duplicate image": 2, "same image with two labels": 1}
    assert report["used"] == 3 * EACH - 1


def test_prepared_images_outlive_the_users_files(folder: Path, source: Path, tmp_path: Path) -> None:
    """A cached preparation serves the same images from another place, or after they have been moved."""
    import shutil

    data = tmp_path / "images"
    shutil.copytree(folder, data)
    prepare(source, data, tmp_path / "prepared")
    before = shown(tmp_path / "prepared")
    shutil.rmtree(data)
    assert shown(tmp_path / "prepared") == before
    prepare(source, folder, tmp_path / "again")
    names = ("train.jsonl", "validation.jsonl", "eval.jsonl", "report.json")
    assert all((tmp_path / "prepared" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)


# What is refused


def test_corrupt_images_are_named_or_skipped(folder: Path, source: Path, tmp_path: Path) -> None:
    import shutil

    data = tmp_path / "images"
    shutil.copytree(folder, data)
    whole = (data / "dots" / "003.png").read_bytes()
    (data / "dots" / "003.png").write_bytes(whole[:200])
    (data / "waves" / "004.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        prepare(source, data, tmp_path / "refused")
    assert "2 of 210 images cannot be decoded" in str(caught.value)
    assert "dots/003.png" in str(caught.value) and "waves/004.png" in str(caught.value)
    assert "--option skip_corrupt=true" in str(caught.value)
    report = prepare(source, data, tmp_path / "skipped", skip_corrupt=True)
    assert report["dropped"] == {"corrupt image": 2}
    assert report["used"] == 208


def test_data_that_holds_no_images_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "classes" / "a").mkdir(parents=True)
    cases = {
        "away": "does not exist",
        "empty": "is empty",
        "flat": "has no folders; --data takes a folder with one folder of images per class",
        "classes": "holds no image",
    }
    for name, message in cases.items():
        with pytest.raises(InputError, match=message):
            TASK.check_data(tmp_path / name)
            prepare(source, tmp_path / name, tmp_path / f"{name}-out")
    alone = idx(tmp_path / "some-images-idx3-ubyte", np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(InputError, match=r"the labels that belong to it are not there \(some-labels-idx1-ubyte\)"):
        TASK.check_data(alone)
    alone.with_name("some-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x09ab")
    with pytest.raises(InputError, match="is damaged: 2 values, its header describes"):
        prepare(source, alone, tmp_path / "idx-out")


def test_a_model_without_preprocessing_must_be_told(folder: Path, source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="say how large the images are that it sees with --option size=224"):
        prepare(source, folder, tmp_path / "out", size=None)
    with pytest.raises(InputError, match="has no option 'colour'; it has: image_column"):
        TASK.preparation({"data": "x"}, {"colour": 1})


def test_random_pixels_are_refused_for_calibration(folder: Path, source: Path, tmp_path: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    noise = []
    for number in range(20):
        noise.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(generator.integers(0, 256, (24, 24)).astype(np.uint8)).save(noise[-1])
    real = [str(path) for path in sorted(folder.rglob("*.png"))[:60]]
    encoding = {"resize": {"height": 24, "width": 24}, "channels": 1}
    assert TASK.doubts(real[:30], real, source, encoding) == []
    with pytest.raises(InputError, match="look like random data: neighbouring pixels correlate by"):
        TASK.doubts(noise, real, source, encoding)


# The whole way


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A network of the user's, trained from nothing on 150 images, for this machine."""
    work = tmp_path_factory.mktemp("made")
    return toolkit.convert(
        f"{network_file(work)}:build", target="host", data=str(folder), task=TASK.NAME, output=str(work / "bundle"),
        epochs=6, learning_rate=1e-2, batch_size=16, min_score="90%", **OPTIONS,
    )  # fmt: skip


def test_a_users_network_becomes_a_bundle(made: Any, folder: Path) -> None:
    summary = made.summary
    assert summary["accepted"]
    assert summary["score"]["before"] > 0.9  # it learned
    assert {c["name"] for c in summary["candidates"]} == {
        f"{engine} {precision}" for engine in ("litert", "onnxruntime") for precision in ("fp32", "int8")
    }
    parity = [v for c in summary["candidates"] if "fp32" in c["name"] for v in c["verdicts"] if v["gate"] == "parity"]
    assert len(parity) == 2 and all(verdict["passed"] for verdict in parity)
    names = {path.name for path in made.path.iterdir()}
    assert {"preprocessor.json", "golden", "manifest.json"} <= names
    assert not any(path.suffix == ".py" for path in made.path.rglob("*"))  # bundles hold no code
    assert bundles.verify(made.path)["failures"] == []
    classify = toolkit.load(made.path)
    pixels = pattern("stripes", np.random.default_rng(99))
    assert classify(pixels)["label"] == "stripes"
    path = next((folder / "dots").iterdir())
    assert classify([path, path.read_bytes()])[0] == classify(path)
    classify.close()


def test_batch_norms_are_folded_and_int8_runs_through(made: Any, cache_folder: Path) -> None:
    """No norm is left in any artifact, and between the first and the last layer of an int8 one there is no float."""
    receipts = [json.loads(path.read_text()) for path in (made.path / "receipts").glob("*.json")]
    artifacts = {
        receipt["title"]: cache_folder / "stages" / receipt["key"] / "output"
        for receipt in receipts
        if receipt["stage"] in ("export", "quantize")
    }
    described = {title: json.loads((path / "artifact.json").read_text()) for title, path in artifacts.items()}
    assert len(described) == 4
    for title, artifact in described.items():
        assert not any("Norm" in name for name in artifact["operators"]), title
    by_litert = described["quantize LiteRT to int8"]
    assert by_litert["operators"]["QUANTIZE"] == by_litert["operators"]["DEQUANTIZE"] == 1
    assert by_litert["operator_versions"]["CONV_2D"] == by_litert["operator_versions"]["DEPTHWISE_CONV_2D"] == 3
    by_onnx = described["quantize fused ONNX to int8"]
    assert by_onnx["operators"]["QuantizeLinear"] >= by_onnx["operators"]["Conv"]
    assert by_onnx["size_bytes"] < 0.8 * described["export fused ONNX"]["size_bytes"]


def test_a_transformers_network_goes_the_same_way(folder: Path, tmp_path: Path) -> None:
    """A small ResNet from its config, with the processor that transformers writes."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    done = run_toolkit(
        "convert", tmp_path / "model", "--task", TASK.NAME, "--data", folder, "--finetune", "--epochs", "5",
        "--learning-rate", "3e-3", "--batch-size", "16", "--min-score", "90%", "-o", tmp_path / "bundle", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["score"]["before"] > 0.8
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["preprocessing"] == {"kind": "image", "path": "preprocessor.json"}
    spec = json.loads((tmp_path / "bundle" / "preprocessor.json").read_text())
    assert spec["resize"] == {"height": 32, "width": 32} and spec["mean"] == [0.5, 0.5, 0.5]
    benched = run_toolkit("bench", tmp_path / "bundle", "--seconds", "0.2", "--data", folder / "dots", "--json")
    assert benched.returncode == 0, benched.stderr
    assert json.loads(benched.stdout)["protocol"]["examples"] == min(EACH, 64)


def test_verbs_work_on_what_finetune_wrote(folder: Path, tmp_path: Path) -> None:
    """finetune → quantize, with a sensitivity table of convolutions."""
    code = network_file(tmp_path)
    tuned = run_toolkit(
        "finetune", f"{code}:build", "--task", TASK.NAME, "--data", folder, "--option", "size=24", "--option",
        "channels=1", "--epochs", "4", "--learning-rate", "1e-2", "--batch-size", "16", "-o", tmp_path / "tuned",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    done = run_toolkit(
        "quantize", tmp_path / "tuned", "--allow-code", "--data", folder, "--engine", "onnxruntime",
        "--method", "static-int8", "--sensitivity", "-o", tmp_path / "int8", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    layers = {row["layer"] for row in json.loads(done.stdout)["sensitivity"]["layers"]}
    assert {"model.net.blocks.0.mix", "model.net.blocks.1.mix"} <= layers
    artifact = json.loads((tmp_path / "int8" / "artifact.json").read_text())
    engine = engines.get("onnxruntime").load(tmp_path / "int8" / artifact["path"])
    encoder = TASK.encoder(tmp_path / "int8", {})
    answers = engine.run(encoder(pattern("waves", np.random.default_rng(5))))["output"]
    assert answers.shape == (1, 3)


@pytest.fixture(scope="module")
def untrained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network with a head for the classes, as `finetune` writes one."""
    from toolkit import modules, network

    work = tmp_path_factory.mktemp("untrained")
    spec = {"resize": {"height": 24, "width": 24}, "channels": 1}
    code = modules.imported(f"{network_file(work)}:build", None, work / "cache", False)
    (work / "model").mkdir()
    network.load(code, TASK, list(CLASSES), spec).save_pretrained(work / "model")
    (work / "model" / "preprocessor.json").write_text(json.dumps(spec))
    return work / "model"


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        *(("onnxruntime", method) for method in ("dynamic-int8", "static-int8", "weight-int8", "fp16", "bf16")),
        *(("litert", method) for method in METHODS["litert"] if method != "weight-int4"),
        *(("tensorrt", method) for method in ("static-int8", "weight-int8", "fp16", "bf16")),
    ],
)
def test_networks_are_quantized_by_every_method(
    engine: str, method: str, untrained: Path, folder: Path, tmp_path: Path
) -> None:
    import torch

    from toolkit import steps
    from toolkit.engines.torch import load_model

    options = {"data": str(folder), "allow_code": True}
    report = steps.quantize(str(untrained), str(tmp_path / "out"), method=method, engine=engine, options=options)
    assert report["size_after_bytes"] < report["size_before_bytes"]
    artifact = json.loads((tmp_path / "out" / "artifact.json").read_text())
    with warnings.catch_warnings(action="ignore"):  # TensorRT artifacts run on another engine here, and say so
        runs = engines.get(engine).load(tmp_path / "out" / artifact["path"])
    inputs = TASK.encoder(tmp_path / "out", {}, inputs=[artifact["inputs"][0]["name"]])(
        pattern("dots", np.random.default_rng(3))
    )
    (said,) = runs.run(inputs).values()
    images = torch.from_numpy(next(iter(inputs.values())))
    with torch.inference_mode():
        wanted = load_model(untrained, TASK)(pixel_values=images).numpy()
    assert said == pytest.approx(wanted, abs=0.02)


def test_linear_layers_beside_convolutions_can_be_balanced(untrained: Path, folder: Path, tmp_path: Path) -> None:
    from toolkit import steps

    options = {"data": str(folder), "allow_code": True}
    report = steps.quantize(
        str(untrained), str(tmp_path / "out"), method="static-int8", engine="onnxruntime", balance=0.7, options=options
    )
    assert report["size_after_bytes"] < report["size_before_bytes"]


def test_one_network_learns_from_another(untrained: Path, folder: Path, tmp_path: Path) -> None:
    from toolkit import steps

    options = {"model": str(untrained), "data": str(folder), "allow_code": True}
    report = steps.distill(str(tmp_path / "student"), options, student=str(untrained), parameters={"epochs": 1})
    assert report["history"][0]["validation_divergence"] < 0.01  # it began as its teacher
    with pytest.raises(InputError, match="need models whose layers are known"):
        steps.distill(str(tmp_path / "no"), options, student=str(untrained), hidden=1.0)
