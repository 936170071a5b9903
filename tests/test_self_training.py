"""Self-training: confident answers become labels, the better model is kept, and what cannot be done is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit, write_csv
from toolkit import tasks
from toolkit.errors import InputError
from toolkit.training import pseudo_labels

TASK = tasks.get("text-classification")


def teaching(folder: Path, answers: list[list[float]], texts: list[str]) -> Path:
    """What `teach` would have written for some labelled examples and `texts`."""
    folder.mkdir()
    np.save(folder / "answers.npy", np.asarray(answers, dtype=np.float32))
    np.save(folder / "rows.npy", np.arange(len(answers) + 1))
    (folder / "unlabeled.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    return folder


def test_only_confident_answers_become_labels(tmp_path: Path) -> None:
    sure, half_sure = np.log(0.95 / 0.05), np.log(0.85 / 0.15)
    answers = [[0, 9], [9, 0], [0, sure], [half_sure, 0], [sure, 0], [0, half_sure], [1000, 0]]
    texts = ["good", "not so bad", "bad", "not so good", "awful"]
    found, told = pseudo_labels.taken(teaching(tmp_path / "said", answers, texts), TASK, 2, 0.9)
    assert [(example.input, example.label) for example in found] == [("good", 1), ("bad", 0), ("awful", 0)]
    assert told == {"unlabeled": 5, "pseudo_labelled": 3, "of_class": [2, 1]}


@pytest.mark.parametrize("name", ["token-classification", "sentence-similarity"])
def test_tasks_without_one_class_per_example_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"examples have one class; {name} has not"):
        pseudo_labels.check(tasks.get(name))


@pytest.mark.parametrize("name", ["text-classification", "image-classification", "tabular"])
def test_classifiers_are_not(name: str) -> None:
    assert tasks.get(name).ANSWERS == "classes"
    pseudo_labels.check(tasks.get(name))


def finetuned(encoder: Path, folder: Path, sentences: list[tuple[str, str]], *more: str) -> dict[str, Any]:
    data = write_csv(folder / "labelled.csv", sentences[:160])
    (folder / "more.txt").write_text("".join(f"{text}\n" for text, _ in sentences[1000:1400]))
    done = run_toolkit(
        "finetune", encoder, "--data", data, "--unlabeled", folder / "more.txt", "--epochs", "2", "--learning-rate",
        "5e-4", "--training", "confidence=0.51", *more, "-o", folder / "tuned", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_better_model_is_kept(encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path) -> None:
    result = finetuned(encoder, tmp_path, sentences)
    found = result["self_training"]
    assert found["unlabeled"] == 400
    assert 0 < found["pseudo_labelled"] == sum(found["of_class"]) <= 400
    assert found["kept"] == (found["score_after"] > found["score_before"])
    assert result["validation_score"] == max(found["score_before"], found["score_after"])
    receipt = json.loads((tmp_path / "tuned" / "receipt.json").read_text())
    assert receipt["self_training"] == found
    assert (receipt["report"].get("pseudo_labelled") is not None) == found["kept"]


def test_what_cannot_be_done_is_said_before_anything_runs(encoder: Path, few: Path, tmp_path: Path) -> None:
    for options, message in [
        (["--unlabeled", tmp_path / "no.txt"], "no.txt"),
        (["--unlabeled", few, "--continue-from", tmp_path], "--unlabeled does not go with --continue-from"),
    ]:
        done = run_toolkit("finetune", encoder, "--data", few, *options, "-o", tmp_path / "tuned")
        assert done.returncode == 2
        assert message in done.stderr
        assert not (tmp_path / "tuned").exists()
