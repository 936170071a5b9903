"""Pruning for real, on the two-layer encoder: plain checkpoints, tokenizers that take any text, and recovery."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit, write_csv
from tests.small_inputs import prepare
from toolkit import stages, steps, tasks
from toolkit.errors import InputError
from toolkit.stages import prune, teach

pytestmark = pytest.mark.usefixtures("torch_as_before")

TEXTS = 300
STRINGS = 10_000

Prune = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    return write_csv(tmp_path_factory.mktemp("prune") / "some.csv", sentences[:TEXTS])


@pytest.fixture(scope="module")
def prepared(tuned: Path, csv_file: Path) -> Path:
    folder = csv_file.parent / "prepared"
    prepare(tuned, csv_file, folder, known_labels=["negative", "positive"])
    return folder


@pytest.fixture(scope="module")
def pruned(tuned: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Prune:
    """The stage, run in this process."""

    def run(source: Path = tuned, **parameters: Any) -> tuple[Path, dict[str, Any]]:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)  # a process of the stage's own has none
        output = tmp_path_factory.mktemp("pruned")
        given = prune.Parameters(**{"epochs": 0, "max_length": 64, "batch_size": 8, **parameters})
        return output, prune.run(source, output, given, stages.Context(task="text-classification", data=prepared))

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
    texts = [e.text for e in examples if after.encode(e.text).tokens == before.encode(e.text).tokens][:40]
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


def test_any_text_tokenizes_in_training_and_on_the_device_alike(trimmed: tuple[Path, dict[str, Any]]) -> None:
    from transformers import AutoTokenizer

    from toolkit.runtime.text import TextEncoder

    folder, _ = trimmed
    theirs = AutoTokenizer.from_pretrained(folder)
    ours = TextEncoder(folder / "tokenizer.json", max_length=10**9, inputs=())
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    assert len(theirs) == size
    assert not {"vocab.txt", "merges.txt", "sentencepiece.bpe.model"} & {path.name for path in folder.iterdir()}
    draw = random.Random(0)
    ranges = [
        (0x20, 0x7E),
        (0xA0, 0x24F),
        (0x300, 0x36F),
        (0x400, 0x4FF),
        (0x4E00, 0x9FFF),
        (0x1F300, 0x1FAFF),
        (0, 0x1F),
    ]
    for _ in range(STRINGS):
        low, high = draw.choice(ranges)
        text = "".join(chr(draw.randint(low, high)) for _ in range(draw.randint(0, 40)))
        ids = ours.ids(text)
        assert ids == theirs(text)["input_ids"]
        assert all(0 <= index < size for index in ids)


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
    texts = [example.text for example in examples]
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
        context = stages.Context(task="text-classification", data=prepared)
        teach.run(tuned, tmp_path, teach.Parameters(max_length=64), context)
        lessons = [str(tmp_path)]
    given = {"ffn": 0.75, "heads": 0.5, "teaching": lessons, "learning_rate": 3e-4}
    examples = tasks.get("text-classification").read_examples(prepared, "train")
    texts, truth = [e.text for e in examples], np.asarray([e.label for e in examples])
    whole = logits(tuned, texts)
    raw = logits(pruned(**given)[0], texts)
    folder, report = pruned(**given, epochs=3)
    recovered = logits(folder, texts)
    assert report["epochs_run"] >= 1
    if by == "answers":
        assert np.abs(recovered - whole).mean() < 0.5 * np.abs(raw - whole).mean()
    else:
        assert (recovered.argmax(axis=1) == truth).mean() > (raw.argmax(axis=1) == truth).mean() + 0.1


def test_the_verb_prunes_and_its_output_converts(tuned: Path, csv_file: Path, tmp_path: Path) -> None:
    """The float artifacts give the pruned checkpoint's logits, and a fresh process without the toolkit the same."""
    cache = ("--cache-dir", tmp_path / "cache")
    given = ("prune", tuned, "--data", csv_file, "--ffn", "0.5", "--coverage", "0.98", "--positions", "--epochs", "1")
    done = run_toolkit(*given, "-o", tmp_path / "small", *cache)
    assert done.returncode == 0, done.stderr
    assert "1536" in done.stdout and "768" in done.stdout
    bundle = toolkit.convert(
        tmp_path / "small", data=str(csv_file), output=str(tmp_path / "bundle"), cache_dir=str(tmp_path / "cache"),
        min_score="50%",
    )  # fmt: skip
    floats = [c for c in bundle.summary["candidates"] if c["precision"] == "fp32"]
    assert floats and all(c["agreement"]["max_abs_logit_difference"] < 1e-3 for c in floats)
    script = (
        "import sys, torch; from transformers import AutoModelForSequenceClassification as M, AutoTokenizer as T\n"
        "m = M.from_pretrained(sys.argv[1]).eval(); t = T.from_pretrained(sys.argv[1])\n"
        "print(m(**t('a quiet, brilliant film', return_tensors='pt')).logits.tolist())"
    )
    import subprocess

    fresh = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "small")], capture_output=True, text=True, check=True
    )
    said = json.loads(fresh.stdout.strip().splitlines()[-1])[0]
    assert said == pytest.approx(logits(tmp_path / "small", ["a quiet, brilliant film"])[0], abs=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Nothing to prune"),
        ({"layers": 3, "epochs": 0}, "A student of 3 layers cannot be made from a model with 2"),
        ({"coverage": 1.0, "vocabulary": 10, "epochs": 0}, "characters and marks must stay"),
    ],
)
def test_what_cannot_be_pruned_is_refused(
    tuned: Path, csv_file: Path, tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    options = {"model": str(tuned), "data": str(csv_file), "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(InputError, match=message):
        steps.prune(str(tmp_path / "out"), options, parameters=given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [("--ffn", "1"), ("--heads", "1.5"), ("--vocabulary", "0"), ("--coverage", "2")])
def test_shares_and_counts_out_of_range_are_refused(option: tuple[str, str], tuned: Path, csv_file: Path) -> None:
    done = run_toolkit("prune", tuned, "--data", csv_file, "-o", "out", *option)
    assert done.returncode == 2
    assert f"Invalid value for '{option[0]}'" in done.stderr
