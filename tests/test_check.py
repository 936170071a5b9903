"""`toolkit check`: the first step on which two builds part is named, from the raw example to the label."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import run_toolkit
from tests.networks import CLASSES, network_file, pattern
from tests.refusals import assert_refused, in_process
from toolkit import builds, modules, network, steps, tasks
from toolkit import check as checks
from toolkit.builds import Build
from toolkit.check import Checked
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.image import ImageEncoder

SPEC = {
    "resize": {"height": 24, "width": 24}, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]
}  # fmt: skip
Change = Callable[[Arrays], Arrays]


class Altered(Encoder):
    """What an app does wrong with the tensors of an encoder that is right."""

    def __init__(self, right: Encoder, change: Change) -> None:
        self._right, self._change = right, change

    def __call__(self, example: Any) -> Arrays:
        return self._change(self._right(example))

    def sample(self, rows: int, length: int | None = None) -> Arrays:
        return self._right.sample(rows, length)

    def axes(self) -> dict[str, list[str | int]]:
        return self._right.axes()


@pytest.fixture(scope="module")
def texts(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Path]:
    """The checkpoint, and the folder of its LiteRT artifact, which pads."""
    return builds.open_build(tuned), artifacts.export(tuned, tmp_path_factory.mktemp("exported"), "litert")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Build, Path]:
    """A small network, and the folder of its ONNX artifact."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("network")
    code = modules.imported(f"{network_file(folder)}:build", None, folder / "cache", False)
    (folder / "model").mkdir()
    task = tasks.get("image-classification")
    network.load(code, task, list(CLASSES), SPEC).save_pretrained(folder / "model")
    (folder / "model" / "preprocessor.json").write_text(json.dumps(SPEC))
    steps.export(str(folder / "model"), str(folder / "onnx"), engine="onnxruntime", lengths=[1], allow_code=True)
    return builds.open_build(folder / "model", allow_code=True), folder / "onnx"


@pytest.fixture(scope="module")
def photographs() -> list[Any]:
    """Pictures whose channels differ."""
    generator = np.random.default_rng(0)
    grey = [pattern(kind, generator, 40).astype(np.float64) for kind in CLASSES]
    return [np.stack([each, 255 - each, each / 2], axis=-1).astype(np.uint8) for each in grey]


@pytest.fixture(scope="module")
def sentences_of_all_lengths(sentences: list[tuple[str, str]]) -> list[str]:
    chosen = sorted((text for text, _ in sentences[:200]), key=len)
    return [chosen[0], chosen[100], "An Ärgerlich Film, with CAPITALS", chosen[170]]


def first(found: Checked) -> str | None:
    return found.first.name if found.first else None


def test_sound_builds_are_the_same(
    texts: tuple[Build, Path], images: tuple[Build, Path], sentences_of_all_lengths: list[str], photographs: list[Any]
) -> None:
    found = checks.check(texts[0], builds.open_build(texts[1]), sentences_of_all_lengths)
    assert [(step.name, step.differ) for step in found.steps] == [
        ("tokenize", 0), ("truncate", 0), ("inputs", 0), ("model", 0), ("labels", 0)
    ]  # fmt: skip
    assert found.model is not None
    assert found.model.max_abs < 1e-4
    found = checks.check(images[0], builds.open_build(images[1]), photographs)
    assert [step.name for step in found.steps] == ["decode", "resize", "crop", "inputs", "model", "labels"]
    assert first(found) is None
    assert found.changed == 0


@pytest.mark.parametrize(
    ("settings", "step", "words"),
    [
        ({"mean": [0.5, 0.5, 0.5]}, "inputs", "scale, mean or std"),
        ({"std": [1.0, 1.0, 1.0]}, "inputs", "scale, mean or std"),
        ({"scale": 1.0}, "inputs", "scale, mean or std"),
        ({"resample": "nearest"}, "resize", "values differ"),
        ({"resize": {"height": 28, "width": 28}, "crop": {"height": 24, "width": 24}}, "resize", "[28, 28, 3]"),
    ],
)
def test_a_wrong_setting_of_images_is_named(
    settings: Mapping[str, Any], step: str, words: str, images: tuple[Build, Path], photographs: list[Any]
) -> None:
    second = replace(builds.open_build(images[1]), encoder=ImageEncoder({**SPEC, **settings}))
    found = checks.check(images[0], second, photographs)
    assert first(found) == step
    assert found.first is not None
    assert words in found.first.what
    assert found.first.differ == len(photographs)


def _reversed(arrays: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(array[:, ::-1]) for name, array in arrays.items()}


def _left(arrays: Arrays) -> Arrays:
    count = int(arrays["attention_mask"].sum())
    return {name: np.roll(array, array.shape[1] - count, axis=1) for name, array in arrays.items()}


def _unmasked(arrays: Arrays) -> Arrays:
    return {**arrays, "attention_mask": np.ones_like(arrays["attention_mask"])}


def _second_sentence(arrays: Arrays) -> Arrays:
    return {**arrays, "token_type_ids": arrays["attention_mask"]}


def _wrapped(arrays: Arrays) -> Arrays:
    return {**arrays, "input_ids": arrays["input_ids"].astype(np.int8).astype(np.int64)}


def test_channels_in_the_other_order_are_named(images: tuple[Build, Path], photographs: list[Any]) -> None:
    sound = builds.open_build(images[1])
    found = checks.check(images[0], replace(sound, encoder=Altered(sound.encoder, _reversed)), photographs)
    assert first(found) == "inputs"
    assert found.first is not None
    assert "RGB, BGR" in found.first.what
    assert [step.differ for step in found.steps if step.name == "model"] == [0]  # the fault is not counted again


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_left, "padding side"),
        (_unmasked, "'attention_mask'"),
        (_second_sentence, "'token_type_ids'"),
        (_wrapped, "'input_ids'"),
    ],
)
def test_wrong_tensors_of_texts_are_named(
    change: Change, words: str, texts: tuple[Build, Path], sentences_of_all_lengths: list[str]
) -> None:
    sound = builds.open_build(texts[1])
    found = checks.check(texts[0], replace(sound, encoder=Altered(sound.encoder, change)), sentences_of_all_lengths)
    assert first(found) == "inputs", found.first
    assert found.first is not None
    assert words in found.first.what
    assert [step.differ for step in found.steps if step.name == "model"] == [0]


@pytest.mark.parametrize(
    ("part", "value", "step"),
    [
        ("normalizer", None, "tokenize"),  # capitals and accents stay
        ("post_processor", None, "tokenize"),  # no special tokens
    ],
)
def test_another_tokenizer_is_named(
    part: str, value: Any, step: str, texts: tuple[Build, Path], sentences_of_all_lengths: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "artifact"
    shutil.copytree(texts[1], folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    assert tokenizer[part] is not None
    (folder / "tokenizer.json").write_text(json.dumps({**tokenizer, part: value}))
    found = checks.check(texts[0], builds.open_build(folder), sentences_of_all_lengths)
    assert first(found) == step


def test_texts_that_are_cut_are_named(
    texts: tuple[Build, Path], sentences_of_all_lengths: list[str], tmp_path: Path
) -> None:
    sound = builds.open_build(texts[1])
    cut = {}
    for side in ("right", "left"):
        shutil.copytree(texts[1], tmp_path / side)
        config = json.loads((tmp_path / side / "tokenizer_config.json").read_text())
        (tmp_path / side / "tokenizer_config.json").write_text(json.dumps({**config, "truncation_side": side}))
        encoder = tasks.get("text-classification").encoder(
            tmp_path / side, {}, inputs=list(sound.encoder.axes()), lengths=[16]
        )
        cut[side] = replace(sound, encoder=encoder)
    found = checks.check(texts[0], cut["right"], sentences_of_all_lengths)
    assert first(found) == "truncate"
    assert found.first is not None
    assert found.first.first in (1, 3)  # the long ones
    assert "shape [16]" in found.first.what
    assert [step.differ for step in found.steps if step.name == "model"] == [0]
    other_side = checks.check(cut["right"], cut["left"], sentences_of_all_lengths)
    assert first(other_side) == "truncate"
    assert other_side.first is not None
    assert "values differ" in other_side.first.what


def test_labels_in_another_order_are_named(texts: tuple[Build, Path]) -> None:
    second = builds.open_build(texts[1])
    found = checks.check(texts[0], replace(second, labels=second.labels[::-1]), ["a film"])
    assert first(found) == "labels"
    assert found.first is not None
    assert "another order" in found.first.what
    assert first(checks.check(texts[0], replace(second, labels=["bad", "good"]), ["a film"])) == "labels"


def test_a_softmax_too_many_is_named(texts: tuple[Build, Path], tuned: Path, tmp_path: Path) -> None:
    import onnx

    source = artifacts.export(tuned, tmp_path, "tensorrt")
    model = onnx.load(str(source / "model.onnx"))
    output = model.graph.output[0]
    model.graph.node.append(onnx.helper.make_node("Softmax", [output.name], ["probabilities"], axis=-1))
    output.name = "probabilities"
    onnx.save(model, str(tmp_path / "softmax.onnx"))
    found = checks.check(texts[0], builds.open_build(tmp_path / "softmax.onnx", like=texts[0]), ["a fine film"])
    assert first(found) == "model"
    assert found.first is not None
    assert "a softmax too many" in found.first.what


def test_quantized_builds_may_differ_a_little(texts: tuple[Build, Path], reviews: Path, tmp_path: Path) -> None:
    examples = builds.examples_for(texts[0], texts[0], reviews, None, 40)
    for method in ("dynamic-int8", "fp16"):
        made = artifacts.quantized(texts[1], tmp_path / method, method=method)
        found = checks.check(texts[0], builds.open_build(made), examples)
        assert first(found) is None, (method, found.first)
        assert found.model is not None
        assert found.model.max_abs > 0


def test_columns_of_a_table_are_named() -> None:
    from toolkit.runtime.tabular import RowEncoder

    spec = {
        "numeric": {"age": {"median": 40, "mean": 41.0, "std": 9.0, "indicator": True}, "income": {
            "median": 3.0, "mean": 3.5, "std": 1.5}},
        "categorical": {"city": ["Bonn", "Ulm"]},
    }  # fmt: skip
    row = {"age": None, "income": 2.0, "city": "Ulm"}
    right = RowEncoder(spec).steps(row)
    assert {name: len(part) for name, part in right.items()} == {
        "column age": 2, "column income": 1, "column city": 2
    }  # fmt: skip
    wrong = RowEncoder({**spec, "categorical": {"city": ["Ulm", "Bonn"]}}).steps(row)
    assert [name for name in right if not np.array_equal(right[name], wrong[name])] == ["column city"]


def test_the_verb(bundle: Path, tuned: Path, reviews: Path, tmp_path: Path) -> None:
    same = run_toolkit("check", tuned, bundle, "--data", reviews, "--examples", 5, "--json")
    assert same.returncode == 0, same.stderr
    said = json.loads(same.stdout)
    assert said["first"] is None
    assert said["examples"] == 5
    assert said["answers_changed"] <= 1
    golden = run_toolkit("check", tuned, bundle)  # without data: the bundle's own examples
    assert golden.returncode == 0, golden.stderr
    assert "of 8 answers change" in golden.stdout
    other = tmp_path / "ein Ordner ü"
    shutil.copytree(tuned, other)
    config = json.loads((other / "config.json").read_text())
    config["id2label"] = {"0": config["id2label"]["1"], "1": config["id2label"]["0"]}
    (other / "config.json").write_text(json.dumps(config))
    swapped = run_toolkit("check", other, bundle, "--data", reviews, "--examples", 5)
    assert swapped.returncode == 1
    assert "the step 'labels'" in swapped.stderr


def test_what_cannot_be_compared_is_refused(
    texts: tuple[Build, Path], tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "none.csv").write_text("text,label\n")
    for data, words in (("empty.csv", "empty"), ("none.csv", "none.csv"), ("absent.csv", "does not exist")):
        arguments = ["check", str(tuned), str(texts[1]), "--data", str(tmp_path / data)]
        assert_refused(in_process(arguments, capsys), words)
    assert_refused(in_process(["check", str(tuned), str(texts[1])], capsys), "--data")
    assert_refused(in_process(["check", str(texts[1] / "model.tflite"), str(tuned)], capsys), "name it second")
    with pytest.raises(InputError, match="no examples"):
        checks.check(texts[0], texts[0], [])
