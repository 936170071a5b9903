"""tflite-runtime 2.14.0, the last release of that package, in an environment of its own: files that this toolkit makes
for it load there and answer as they do here."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.version import Version

import toolkit
from tests import artifacts, other_runtimes
from tests.conftest import PICTURE_SIDE
from tests.networks import CLASSES, pattern
from toolkit import engines, stages, steps, tasks
from toolkit.export import litert
from toolkit.stages import export

TARGET = "raspberry-pi-4@tflite-runtime-2.14"
RUN = """
import sys, numpy as np
from pathlib import Path
from toolkit.engines import litert
given = np.load(sys.argv[2])
engine = litert.load(Path(sys.argv[1]))
rows = [engine.run({name: given[name][number] for name in given.files}) for number in range(len(given[given.files[0]]))]
np.save(sys.argv[3], np.concatenate([next(iter(row.values())) for row in rows]))
"""
LOAD = """
import json, sys
import toolkit
classify = toolkit.load(sys.argv[1])
print(json.dumps([classify(text) for text in json.loads(sys.argv[2])]))
unwanted = {"torch", "transformers", "onnxruntime", "ai_edge_litert", "scipy", "yaml", "pydantic"} & set(sys.modules)
assert not unwanted, unwanted
assert "tflite_runtime" in sys.modules
"""


@pytest.fixture(scope="module")
def python(cache_folder: Path) -> Path:
    return other_runtimes.tflite_runtime(cache_folder)


def run(python: Path, code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Code in the environment of the old runtime, with this toolkit beside it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)}
    command = [str(python), "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def both(python: Path, file: Path, inputs: list[dict[str, Any]], folder: Path) -> tuple[Any, Any]:
    """The answers of a file here and in the old runtime, float32[n, classes]."""
    engine = engines.get("litert").load(file)
    here = np.concatenate([next(iter(engine.run(arrays).values())) for arrays in inputs])
    np.savez(folder / "inputs.npz", **{name: np.stack([each[name] for each in inputs]) for name in inputs[0]})
    done = run(python, RUN, file, folder / "inputs.npz", folder / "there.npy")
    assert done.returncode == 0, done.stderr
    return here, np.load(folder / "there.npy")


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in sentences[:40]]


@pytest.fixture(scope="module")
def encoder_file(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tuned, tmp_path_factory.mktemp("encoder"), "litert")


@pytest.mark.parametrize(
    ("method", "tolerance"), [(None, 1e-5), ("dynamic-int8", 0.02), ("static-int8", 0.03), ("weight-int8", 1e-5)]
)
def test_an_encoder_answers_the_same_there(
    method: str | None, tolerance: float, python: Path, encoder_file: Path, texts: list[str],
    sentences: list[tuple[str, str]], tmp_path: Path,
) -> None:  # fmt: skip
    """Where activations are quantized at run time the two round in different places."""
    folder = encoder_file
    if method is not None:
        calibration = [text for text, _ in sentences[100:148]] if method == "static-int8" else []
        folder = artifacts.quantized(encoder_file, tmp_path / "out", calibration, method=method, scales="tensor")
        # What weight-int8 widens has a scale per channel, which is read everywhere; its table has one.
        minimum = artifacts.description(folder)["minimum_versions"]["tflite-runtime"]
        assert Version(minimum) <= Version("2.9.0")
    inputs = [each for each in artifacts.encode(folder, texts) if each["input_ids"].shape[1] == 32]
    assert len(inputs) >= 10
    here, there = both(python, folder / "model.tflite", inputs, tmp_path)
    assert here == pytest.approx(there, abs=tolerance * float(np.ptp(here)))
    assert np.ptp(here) > 1


@pytest.mark.parametrize(
    "method", [None, "dynamic-int8", "static-int8", "integer-int8", "int16-activations", "weight-int8", "fp16"]
)
def test_a_network_answers_the_same_there(
    method: str | None, python: Path, small_network: Path, pictures: Path, tmp_path: Path
) -> None:
    if method is None:
        steps.export(str(small_network), str(tmp_path / "out"), engine="litert", lengths=[1], allow_code=True)
    else:
        options = {"data": str(pictures), "allow_code": True}
        steps.quantize(
            str(small_network), str(tmp_path / "out"), method=method, engine="litert", options=options,
            parameters={"scales": "tensor"},
        )  # fmt: skip
    generator = np.random.default_rng(1)
    spec = {"channels": 1, "resize": {"height": PICTURE_SIDE, "width": PICTURE_SIDE}}
    encoder = tasks.get("image-classification").encoder(Path(), spec)
    inputs = [encoder(pattern(CLASSES[number % 3], generator)) for number in range(12)]
    here, there = both(python, tmp_path / "out" / "model.tflite", inputs, tmp_path)
    spread = float(np.ptp(here))
    step = artifacts.description(tmp_path / "out")["outputs"][0].get("scale", 0.0)  # of integer-int8: one may differ
    allowed = {"dynamic-int8": 5e-3 * spread, "static-int8": 0.01 * spread, "integer-int8": 1.01 * step}
    assert there == pytest.approx(here, abs=allowed.get(method or "", 1e-4 * spread))
    assert (here.argmax(1) == there.argmax(1)).all()


@pytest.mark.parametrize("architecture", ["modernbert", "gpt2"])
def test_masks_that_are_looked_up_load_there(architecture: str, python: Path, tuned: Path, tmp_path: Path) -> None:
    """The converter looks them up as booleans, by a kernel that came with 2.16."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model(architecture, vocab_size=30522, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_bytes((tuned / name).read_bytes())
    (tmp_path / "out").mkdir()
    parameters = export.Parameters(format="litert", lengths=[32], encoding={"max_length": 32})
    described = litert.export(
        tmp_path / "model", tmp_path / "out", parameters, stages.Context(task="text-classification")
    )
    assert described["operator_versions"]["GATHER_ND"] == 1
    assert Version(described["minimum_versions"]["tflite-runtime"]) <= Version("2.14")
    generator = np.random.default_rng(0)
    inputs = []
    for length in (32, 20, 9):  # with padding, which the mask is for
        arrays = {name: np.zeros((1, 32), np.int64) for name in (tensor["name"] for tensor in described["inputs"])}
        arrays["input_ids"][0, :length] = generator.integers(1000, 30000, length)
        arrays["attention_mask"][0, :length] = 1
        inputs.append(arrays)
    here, there = both(python, tmp_path / "out" / "model.tflite", inputs, tmp_path)
    with torch.inference_mode():
        wanted = [model(**{name: torch.from_numpy(v) for name, v in each.items()}).logits[0].numpy() for each in inputs]
    assert here == pytest.approx(np.asarray(wanted), abs=1e-4)
    assert there == pytest.approx(np.asarray(wanted), abs=1e-4)


def test_a_scale_per_channel_is_refused_there_and_not_answered_wrongly(
    python: Path, encoder_file: Path, texts: list[str], tmp_path: Path
) -> None:
    folder = artifacts.quantized(encoder_file, tmp_path / "out", method="dynamic-int8")
    assert artifacts.description(folder)["minimum_versions"]["tflite-runtime"] == "2.18.0"
    np.savez(tmp_path / "inputs.npz", **artifacts.encode(folder, texts[:1])[0])
    done = run(python, RUN, folder / "model.tflite", tmp_path / "inputs.npz", tmp_path / "out.npy")
    assert done.returncode != 0
    assert "tflite-runtime 2.14.0 cannot load" in done.stderr
    assert "builtin opcode 'EMBEDDING_LOOKUP' version '4'" in done.stderr


def test_a_bundle_for_it_runs_there(python: Path, tuned: Path, reviews: Path, texts: list[str], tmp_path: Path) -> None:
    """The whole way: a target with that runtime gets a file that it runs, with numpy and tokenizers alone."""
    made = toolkit.convert(tuned, target=TARGET, data=str(reviews), output=str(tmp_path / "bundle"), min_score="90%")
    summary = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["metrics"]
    judged = {c["name"]: c for c in summary["candidates"] if c["name"].startswith("litert")}
    for candidate in judged.values():
        (said,) = [v for v in candidate["verdicts"] if v["gate"] == "operators"]
        assert said["passed"], said
        assert "tflite-runtime 2.14 takes all" in said["reason"]
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["engine"]["name"] == "litert"
    assert manifest["engine"]["versions_on_target"] == "==2.14.*"
    done = run(python, LOAD, tmp_path / "bundle", json.dumps(texts))
    assert done.returncode == 0, done.stderr
    here, there = toolkit.load(made.path)(texts), json.loads(done.stdout)
    assert sum(a["label"] == b["label"] for a, b in zip(here, there, strict=True)) >= 0.95 * len(texts)
    assert [a["score"] for a in here] == pytest.approx([b["score"] for b in there], abs=0.1)
