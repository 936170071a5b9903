"""The bundle as an app uses it, and the engines underneath."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.engine_bundles import ENGINES, engine_bundle
from toolkit import engines
from toolkit.bundle import GOLDEN
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime import manifest as manifests
from toolkit.runtime.pipeline import softmax
from toolkit.storage import sha256_file

PACKAGE = {name: name for name in ENGINES} | {"litert": "ai-edge-litert"}


@pytest.fixture(params=ENGINES)
def folder(request: pytest.FixtureRequest, encoder: Path, reviews: Path) -> Path:
    """A bundle for each engine in turn. Read it only."""
    return engine_bundle(request.param, encoder, reviews)


def manifest_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return read


def changed(folder: Path, copy: Path, change: Callable[[dict[str, Any]], None], rehash: bool = True) -> Path:
    """A copy of a bundle with another manifest, its content hash made to fit again."""
    shutil.copytree(folder, copy)
    data = manifest_of(copy)
    change(data)
    if rehash:
        data["content_hash"] = manifests.content_hash(data)
    (copy / "manifest.json").write_text(json.dumps(data))
    return copy


# --- a bundle as a callable


def test_prediction_is_the_softmax_of_the_logits(folder: Path) -> None:
    classify = toolkit.load(folder)
    one = classify("a quiet, brilliant film")
    assert set(one) == {"label", "score", "scores"}
    assert list(one["scores"]) == manifest_of(folder)["labels"] == ["negative", "positive"]
    assert one["score"] == max(one["scores"].values()) == one["scores"][one["label"]]
    assert sum(one["scores"].values()) == pytest.approx(1, abs=1e-12)
    logits = classify.logits("a quiet, brilliant film")
    assert logits.dtype == np.float32
    assert logits.shape == (2,)
    assert list(one["scores"].values()) == softmax(logits).tolist()
    assert type(one["score"]) is float
    classify.close()


def test_list_is_answered_one_by_one_and_in_order(folder: Path, sentences: list[tuple[str, str]]) -> None:
    classify = toolkit.load(folder)
    texts = [text for text, _ in sentences[:12]]
    answers = classify(texts)
    assert answers == [classify(text) for text in texts]
    assert len({answer["score"] for answer in answers}) == len(texts)
    assert classify([]) == []
    classify.close()


def test_logits_are_the_golden_ones(folder: Path) -> None:
    classify = toolkit.load(folder)
    golden = json.loads((folder / GOLDEN).read_text())
    assert len(golden) == 8
    for example in golden:
        assert classify.encoder(example["input"])["input_ids"].tolist() == example["tensors"]["input_ids"]
        assert classify.answers(example["input"]) == pytest.approx(np.asarray(example["answers"]), abs=1e-5)
        assert classify(example["input"])["label"] == example["decision"]
    classify.close()


@pytest.mark.parametrize("text", ["", " ", "\0", "x" * 5000, "word " * 5000, "👩‍👩‍👧‍👦", "[PAD] [SEP]"])
def test_any_text_is_answered(folder: Path, text: str) -> None:
    classify = toolkit.load(folder)
    assert np.isfinite(classify.logits(text)).all()
    classify.close()


@pytest.mark.parametrize("value", [None, 1, b"bytes", ["fine", None], ("a", "b")])
def test_anything_else_is_refused(folder: Path, value: Any) -> None:
    classify = toolkit.load(folder)
    with pytest.raises(InputError, match="A text is a str"):
        classify(value)
    classify.close()


def test_threads_are_the_bundles_unless_given(folder: Path) -> None:
    assert manifest_of(folder)["engine"]["threads"] == 1
    for given, used in ((None, 1), (2, 2)):
        classify = toolkit.load(folder, threads=given)
        assert classify.engine.describe()["threads"] == used
        assert classify("bright")["label"] in ("negative", "positive")
        classify.close()


def test_bundle_object_loads_itself(converted: Any) -> None:
    classify = converted.load()
    assert classify("bright") == toolkit.load(str(converted.path))("bright")


# --- what is checked before anything is loaded


@pytest.mark.parametrize("name", ["model", "tokenizer.json", "golden/examples.json", "recipe.yaml", "report.html"])
def test_changed_file_is_refused_unless_verification_is_off(folder: Path, name: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    path = copy / (manifest_of(folder)["artifact"]["path"] if name == "model" else name)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(InputError, match=r"was changed: its SHA-256"):
        toolkit.load(copy)
    if name.startswith(("golden", "recipe", "report")):
        classify = toolkit.load(copy, verify=False)
        assert classify("bright")["label"] in ("negative", "positive")
        classify.close()


def test_changed_manifest_is_refused(folder: Path, tmp_path: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        data["labels"].reverse()

    copy = changed(folder, tmp_path / "copy", swap, rehash=False)
    with pytest.raises(InputError, match="content hash does not fit"):
        toolkit.load(copy)
    assert toolkit.load(copy, verify=False)("bright")["score"] == toolkit.load(folder)("bright")["score"]


def test_refused_bundle_loads_with_a_warning(folder: Path, tmp_path: Path) -> None:
    def refuse(data: dict[str, Any]) -> None:
        data.update(accepted=False, refusals=["score: 0.1 is below 0.9"])

    copy = changed(folder, tmp_path / "copy", refuse, rehash=False)  # a verdict is not content
    with pytest.warns(UserWarning, match=r"refused this bundle: score: 0\.1 is below 0\.9"):
        classify = toolkit.load(copy)
    assert classify("bright")["label"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        toolkit.load(folder)  # an accepted one does not warn


def test_too_old_runtime_is_refused_before_loading(folder: Path, tmp_path: Path) -> None:
    engine = manifest_of(folder)["engine"]["name"]

    def demand(data: dict[str, Any]) -> None:
        data["engine"]["minimum_versions"][PACKAGE[engine]] = "9999.0"

    copy = changed(folder, tmp_path / "copy", demand)
    with pytest.raises(MissingDependencyError, match=rf"needs {PACKAGE[engine]} >= 9999\.0"):
        toolkit.load(copy)
    for verb in ("verify", "bench"):
        done = run_toolkit(verb, copy)
        assert done.returncode == 3
        assert f"pip install '{PACKAGE[engine]}>=9999.0'" in done.stderr


@pytest.mark.parametrize(
    ("installed", "needed", "fits"),
    [
        ("1.9.0", "1.10.0", False),
        ("1.10.0", "1.9.0", True),
        ("2.3.0", "2.3", True),
        ("2.3", "2.3.0", True),
        ("1.20.0rc1", "1.20.0", True),
        ("1.31.1+cu12", "1.31.1", True),
        ("1.31.1", "1.31.2", False),
    ],
)
def test_versions_are_compared_as_numbers(folder: Path, installed: str, needed: str, fits: bool) -> None:
    data = manifest_of(folder)
    data["engine"]["minimum_versions"] = {"runtime": needed}
    manifest = manifests.Manifest(folder, data)
    if fits:
        manifests.check_engine_version(manifest, "runtime", installed)
    else:
        with pytest.raises(MissingDependencyError):
            manifests.check_engine_version(manifest, "runtime", installed)


def test_minimum_version_is_one_that_this_runtime_has(folder: Path) -> None:
    engine = manifest_of(folder)["engine"]
    assert PACKAGE[engine["name"]] in engine["minimum_versions"]


def test_content_hash_is_of_the_content_only(folder: Path) -> None:
    data = manifest_of(folder)
    same = manifests.content_hash(data)
    assert same == data["content_hash"]
    data["metrics"] = {"measured": "another day"}
    data["refusals"] = ["none"]
    for name in data["files"]:
        if name == "report.html" or name.startswith("receipts/"):
            data["files"][name]["sha256"] = "0" * 64
    assert manifests.content_hash(data) == same
    for change in (
        lambda d: d["labels"].reverse(),
        lambda d: d["preprocessing"].update(max_length=64),
        lambda d: d["engine"].update(threads=2),
        lambda d: d["files"][d["artifact"]["path"]].update(sha256="0" * 64),
        lambda d: d["files"]["tokenizer.json"].update(sha256="0" * 64),
        lambda d: d["files"][GOLDEN].update(sha256="0" * 64),
    ):
        other = manifest_of(folder)
        change(other)
        assert manifests.content_hash(other) != same


def test_every_file_is_listed(folder: Path) -> None:
    data = manifest_of(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {*data["files"], "manifest.json"}
    for name, entry in data["files"].items():
        assert entry == {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}


# --- engines


def feed(length: int, value: int = 1) -> dict[str, Any]:
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: np.ones((1, length), dtype=np.int64) for name in names}
    inputs["input_ids"][0, -1] = value
    return inputs


@pytest.fixture
def litert(encoder: Path, reviews: Path) -> Any:
    folder = engine_bundle("litert", encoder, reviews)
    return engines.get("litert").load(folder / "model.tflite")


@pytest.fixture
def onnx_file(encoder: Path, reviews: Path) -> Path:
    return engine_bundle("onnxruntime", encoder, reviews) / "model.onnx"


def lengths_of(engine: Any) -> list[int]:
    return sorted(int(name.removeprefix("length_")) for name in engine.describe()["signatures"])


def test_litert_narrows_int64_and_refuses_what_does_not_fit(litert: Any) -> None:
    length = lengths_of(litert)[0]
    wide = litert.run(feed(length, 2000))
    narrow = litert.run({name: array.astype(np.int32) for name, array in feed(length, 2000).items()})
    assert wide.keys() == narrow.keys()
    for name, value in wide.items():
        assert value.dtype == np.float32
        assert np.array_equal(value, narrow[name])
    for value in (2**31, -(2**31) - 1, 2**32 + 5):
        with pytest.raises(InputError, match=r"'input_ids' holds values that do not fit the model's int32"):
            litert.run(feed(length, value))


def test_litert_has_a_signature_per_length_and_no_other(litert: Any) -> None:
    lengths = lengths_of(litert)
    assert 1 < len(lengths) <= 4
    for length in lengths:
        assert next(iter(litert.run(feed(length)).values())).shape == (1, 2)
    with pytest.raises(InputError, match=rf"no signature 'length_9' \(it has .*length_{lengths[0]}"):
        litert.run(feed(9))


def test_litert_pads_without_changing_the_answer(encoder: Path, reviews: Path, litert: Any) -> None:
    """The same tokens in a longer signature: the mask keeps the padding out."""
    text = "a quiet, brilliant film"
    pipeline = toolkit.load(engine_bundle("litert", encoder, reviews))
    short = pipeline.encoder(text)
    for length in lengths_of(litert)[1:]:
        missing = length - short["input_ids"].shape[1]
        long = {name: np.pad(array, ((0, 0), (0, missing))) for name, array in short.items()}
        values = litert.run(long)
        assert next(iter(values.values()))[0] == pytest.approx(pipeline.logits(text), abs=0.1)  # int8 activations


def test_onnxruntime_takes_any_batch_and_length(onnx_file: Path) -> None:
    engine = engines.get("onnxruntime").load(onnx_file)
    for rows, length in ((1, 7), (3, 19)):
        inputs = {name: np.ones((rows, length), dtype=np.int64) for name in feed(1)}
        (value,) = engine.run(inputs).values()
        assert value.shape == (rows, 2)
        assert value.dtype == np.float32
    narrow = engine.run({name: array.astype(np.int32) for name, array in feed(7).items()})
    assert np.array_equal(narrow["logits"], engine.run(feed(7))["logits"])
    assert engine.describe()["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize("name", ["onnxruntime", "litert", "tensorrt", "openvino", "executorch"])
@pytest.mark.parametrize(
    "content", [b"", b"not a model at all", b"\x08\x07" + b"\xff" * 100], ids=["empty", "text", "bits"]
)
@pytest.mark.filterwarnings("ignore:This artifact is for TensorRT")
def test_corrupt_artifact_is_one_error(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"model{engines.KINDS[name].suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot load .*model\."):
        engines.get(name).load(path)


def test_cut_off_artifact_is_one_error(folder: Path, tmp_path: Path) -> None:
    data = manifest_of(folder)
    path = tmp_path / data["artifact"]["path"]
    content = (folder / data["artifact"]["path"]).read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="cannot load"):
        engines.get(data["engine"]["name"]).load(path)


def test_tensorrt_stands_in_with_a_warning_and_the_same_numbers(onnx_file: Path) -> None:
    module = engines.get("tensorrt")
    with pytest.warns(UserWarning, match="not the device's speed"):
        engine = module.load(onnx_file)
    assert np.array_equal(
        engine.run(feed(12))["logits"], engines.get("onnxruntime").load(onnx_file).run(feed(12))["logits"]
    )
    with pytest.warns(UserWarning, match="on ONNX Runtime's (CPU|CUDA) kernels"):  # an application is told which
        used = module.load_for_use(onnx_file)  # type: ignore[attr-defined]
    assert used.describe()["provider"].startswith(("CPU", "CUDA"))
    assert np.allclose(used.run(feed(12))["logits"], engine.run(feed(12))["logits"], atol=1e-4)
    assert module.NUMERICS_ONLY  # type: ignore[attr-defined]
    assert module.version() == engines.get("onnxruntime").version()


def test_unknown_engine_is_named_with_the_known_ones() -> None:
    known = r"known: onnxruntime, litert, tensorrt, openvino, executorch, torch\."
    with pytest.raises(InputError, match=rf"Unknown engine 'tvm'; {known}"):
        engines.get("tvm")
