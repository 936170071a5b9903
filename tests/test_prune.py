"""Pruning for real, on the two-layer encoder: plain checkpoints, tokenizers that take any text, and recovery."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit
from tests.stage_runs import run_stage
from tests.unicode_texts import random_texts
from toolkit import tasks
from toolkit.engines import onnxruntime
from toolkit.runtime.text import TextEncoder

pytestmark = pytest.mark.usefixtures("torch_as_before")

STRINGS = 10_000
SMALL = {"encoding": {"max_length": 64}, "batch_size": 8}

Prune = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def pruned(tuned: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Prune:
    """The stage, run in this process."""

    def run(source: Path = tuned, **parameters: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp("pruned")
        return output, run_stage("prune", source, output, prepared, **{**SMALL, "epochs": 0, **parameters})

    return run


@pytest.fixture(scope="module")
def trimmed(pruned: Prune) -> tuple[Path, dict[str, Any]]:
    """Vocabulary and positions cut, nothing trained."""
    return pruned(coverage=0.97, positions=True)


def logits(folder: Path, texts: list[str]) -> Any:
    """What transformers' own classes answer, one text at a time."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = []
    with torch.inference_mode():
        for text in texts:
            rows.append(model.eval()(**tokenizer(text, return_tensors="pt", truncation=True, max_length=64)).logits[0])
    return np.stack(rows)


def test_a_trimmed_checkpoint_answers_alike_where_the_tokens_stayed(
    trimmed: tuple[Path, dict[str, Any]], tuned: Path, prepared: Path
) -> None:
    from tokenizers import Tokenizer

    folder, report = trimmed
    assert report["shape"]["vocabulary"] == report["vocabulary"]["tokens"] < 0.3 * report["shape_before"]["vocabulary"]
    assert report["shape"]["positions"] == 64
    before, after = (Tokenizer.from_file(str(each / "tokenizer.json")) for each in (tuned, folder))
    before.no_padding()
    before.no_truncation()
    examples = tasks.get("text-classification").read_examples(prepared, "train")
    texts = [e.input for e in examples if after.encode(e.input).tokens == before.encode(e.input).tokens][:40]
    assert len(texts) == 40
    assert logits(folder, texts) == pytest.approx(logits(tuned, texts), abs=1e-4)


def test_what_the_vocabulary_costs_is_counted(trimmed: tuple[Path, dict[str, Any]]) -> None:
    coverage = trimmed[1]["vocabulary"]["coverage"]
    assert set(coverage) == {"train", "validation", "eval"}
    assert 0.97 <= coverage["train"]["tokens_kept"] < 1
    for split in coverage.values():
        assert split["length_ratio"] >= 1
        assert 0 <= split["texts_unchanged"] <= 1
    assert coverage["eval"]["tokens_kept"] < coverage["train"]["tokens_kept"]  # it was chosen on the latter
    assert coverage["eval"]["length_ratio"] > coverage["train"]["length_ratio"]


def test_any_text_tokenizes_in_training_and_on_the_device_alike(
    trimmed: tuple[Path, dict[str, Any]], sentences: list[tuple[str, str]]
) -> None:
    from transformers import AutoTokenizer

    folder, _ = trimmed
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextEncoder(folder / "tokenizer.json", max_length=10**9, inputs=())
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert len(theirs) == ours.size == size
    assert not {"vocab.txt", "merges.txt", "sentencepiece.bpe.model"} & {path.name for path in folder.iterdir()}
    words = " ".join(text for text, _ in sentences).split()
    texts = [*random_texts(STRINGS, words), " ".join(words)[:100_000]]
    assert "" in texts
    seen = set()
    for text in texts:
        ids = ours.ids(text)
        assert ids == theirs(text)["input_ids"], ascii(text[:200])
        seen |= set(ids)
    assert 0.5 * size < len(seen) and max(seen) < size


def test_units_heads_and_layers_go_and_the_config_says_so(pruned: Prune) -> None:
    folder, report = pruned(ffn=0.5, heads=0.34, layers=1, multiple=64)
    shape = report["shape"]
    assert (shape["ffn"], shape["heads"], shape["width"], shape["layers"]) == (768, 8, 256, 1)
    config = json.loads((folder / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"], config["hidden_size"]) == (768, 8, 256)
    assert np.isfinite(logits(folder, ["a quiet, brilliant film"])).all()
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".txt"}  # no pickle


def test_what_goes_is_what_matters_least(pruned: Prune, prepared: Path, tuned: Path) -> None:
    """A third of the units chosen by importance costs less than the other units would."""
    examples = tasks.get("text-classification").read_examples(prepared, "train")[:60]
    texts = [example.input for example in examples]
    whole = logits(tuned, texts)
    far = {
        method: np.abs(logits(pruned(ffn=0.5, importance=method)[0], texts) - whole).mean()
        for method in ("taylor", "fisher", "magnitude")
    }
    random_choice = _randomly_narrowed(tuned, texts, whole)
    assert far["taylor"] < random_choice
    assert far["fisher"] < random_choice


def _randomly_narrowed(tuned: Path, texts: list[str], whole: Any) -> float:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from toolkit import architecture

    model = AutoModelForSequenceClassification.from_pretrained(tuned)
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    draw = random.Random(0)
    kept = [sorted(draw.sample(range(1536), 768)) for _ in range(2)]
    smaller = architecture.cut(model, architecture.Cut(ffn=kept))
    with torch.inference_mode():
        rows = [smaller(**tokenizer(t, return_tensors="pt", truncation=True, max_length=64)).logits[0] for t in texts]
    return float(np.abs(np.stack(rows) - whole).mean())


@pytest.mark.parametrize("by", ["answers", "labels"])
def test_what_is_left_recovers(pruned: Prune, tuned: Path, prepared: Path, tmp_path: Path, by: str) -> None:
    lessons = []
    if by == "answers":
        run_stage("teach", tuned, tmp_path, prepared, encoding={"max_length": 64})
        lessons = [str(tmp_path)]
    given = {"ffn": 0.75, "heads": 0.5, "teaching": lessons, "learning_rate": 3e-4}
    examples = tasks.get("text-classification").read_examples(prepared, "train")
    texts, truth = [e.input for e in examples], np.asarray([e.label for e in examples])
    whole = logits(tuned, texts)
    raw = logits(pruned(**given)[0], texts)
    folder, report = pruned(**given, epochs=3)
    recovered = logits(folder, texts)
    assert report["epochs_run"] >= 1
    if by == "answers":
        assert np.abs(recovered - whole).mean() < 0.5 * np.abs(raw - whole).mean()
    else:
        assert (recovered.argmax(axis=1) == truth).mean() > (raw.argmax(axis=1) == truth).mean() + 0.1


FRESH = """
import json, sys, torch
from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T
model, tokenizer = M.from_pretrained(sys.argv[1]).eval(), T.from_pretrained(sys.argv[1])
with torch.inference_mode():
    print(json.dumps([model(**tokenizer(t, return_tensors="pt", truncation=True, max_length=64)).logits[0].tolist()
                      for t in json.load(sys.stdin)]))
"""


def test_a_distilled_and_pruned_checkpoint_answers_as_its_artifact(
    tuned: Path, few: Path, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    """By the verbs; a fresh process without the toolkit loads the checkpoint, the artifact runs as on a device."""
    cache = ("--cache-dir", tmp_path / "cache", "--data", few, "--epochs", "1", "--max-length", "64")
    done = run_toolkit("distill", tuned, "--layers", "1", "--width", "192", "-o", tmp_path / "student", *cache)
    assert done.returncode == 0, done.stderr
    done = run_toolkit(
        "prune", tmp_path / "student", "--ffn", "0.5", "--coverage", "0.98", "--positions", "--sparsity", "2:4",
        "-o", tmp_path / "small", *cache,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "768" in done.stdout and "384" in done.stdout
    assert "0.1 of 0.3 million weights in 6 matrices are zero, in the pattern 2:4" in done.stdout
    texts = [text for text, _ in sentences[-60:]] + ["", "a quiet, brilliant film", "word " * 100]
    command = [sys.executable, "-c", FRESH, str(tmp_path / "small")]
    fresh = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=True)
    said = np.asarray(json.loads(fresh.stdout.strip().splitlines()[-1]))
    run_stage("export", tmp_path / "small", tmp_path / "artifact", tmp_path, format="onnx", ort_fusions=True)
    engine = onnxruntime.load(tmp_path / "artifact" / "model.onnx")
    inputs = ("input_ids", "attention_mask", "token_type_ids")
    encoder = TextEncoder(tmp_path / "artifact" / "tokenizer.json", max_length=64, inputs=inputs)
    ran = np.concatenate([engine.run(encoder(text))["logits"] for text in texts])
    assert ran == pytest.approx(said, abs=1e-3)
    assert np.ptp(said[:, 0]) > 0.01  # not one answer to everything
