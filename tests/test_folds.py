"""Cross-validation: folds that share nothing, a score with its deviation, and a model that learned from all of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit
from tests.small_inputs import one_layer, prepare
from tests.stage_runs import KilledError, kill_at, run_stage, weights
from toolkit import tasks
from toolkit.errors import InputError
from toolkit.tasks.task import Example
from toolkit.training.material import fold_indices

FOLDS = 3
GIVEN: dict[str, Any] = {"encoding": {"max_length": 32}, "epochs": 2, "folds": FOLDS, "learning_rate": 1e-3}

pytestmark = pytest.mark.usefixtures("torch_as_before")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, few: Path) -> tuple[Path, Path]:
    """(a model of one layer, prepared data)."""
    folder = tmp_path_factory.mktemp("small")
    prepare(one_layer(folder / "model"), few, folder / "prepared")
    return folder / "model", folder / "prepared"


def test_folds_share_nothing_and_have_every_class_in_its_proportion() -> None:
    task = tasks.get("text-classification")
    examples = [Example(f"text {i}", int(i % 5 == 0)) for i in range(103)]
    folds = fold_indices(task, examples, 4, seed=0)
    assert sorted(index for fold in folds for index in fold) == list(range(103))
    assert {len(fold) for fold in folds} <= {25, 26}
    assert {sum(examples[i].label for i in fold) for fold in folds} <= {5, 6}
    assert folds == fold_indices(task, examples, 4, seed=0) != fold_indices(task, examples, 4, seed=1)


def test_pairs_stay_in_one_fold() -> None:
    task = tasks.get("sentence-similarity")
    folds = fold_indices(task, [Example(f"text {i}", i // 2) for i in range(20)], 3, seed=0)
    for fold in folds:
        assert {index // 2 for index in fold if index % 2} == {index // 2 for index in fold if not index % 2}
    with pytest.raises(InputError, match="folds=11: there are only 10 examples"):
        fold_indices(task, [Example(f"text {i}", i // 2) for i in range(20)], 11, seed=0)


@pytest.fixture(scope="module")
def validated(small: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("tuned")
    return output, run_stage("finetune", small[0], output, small[1], **GIVEN)


def test_the_score_is_that_of_the_folds(validated: tuple[Path, dict[str, Any]], small: tuple[Path, Path]) -> None:
    output, report = validated
    scores = [fold["validation_score"] for fold in report["folds"]]
    assert len(scores) == FOLDS
    assert report["validation_score"] == pytest.approx(np.mean(scores))
    assert report["validation_score_deviation"] == pytest.approx(np.std(scores, ddof=1))
    assert (
        report["epochs_run"]
        == report["best_epoch"]
        == max(1, round(np.mean([f["best_epoch"] for f in report["folds"]])))
    )
    splits = json.loads((small[1] / "report.json").read_text())["splits"]
    steps = -(-(splits["train"] + splits["validation"]) // 32)
    assert [entry["steps"] for entry in report["history"]] == [steps] * report["epochs_run"]
    assert {path.name for path in output.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    assert not (output / "fold").exists()


def test_a_killed_run_goes_on_with_the_same_numbers(
    validated: tuple[Path, dict[str, Any]], small: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(KilledError):
        run_stage(
            "finetune", small[0], tmp_path / "first", small[1], resume=tmp_path / "resume",
            progress=kill_at(f"fold 2 of {FOLDS}: epoch 2", 0), **GIVEN,
        )  # fmt: skip
    report = run_stage("finetune", small[0], tmp_path / "second", small[1], resume=tmp_path / "resume", **GIVEN)
    assert report["folds"] == validated[1]["folds"]
    assert weights(tmp_path / "second") == weights(validated[0])


def test_the_verb_says_what_the_score_is(small: tuple[Path, Path], few: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "finetune", small[0], "--data", few, "--epochs", "1", "--training", "folds=2", "-o", tmp_path / "tuned"
    )
    assert done.returncode == 0, done.stderr
    assert "The score is the mean of 2 folds" in done.stdout
    refused = run_toolkit(
        "finetune", small[0], "--data", few, "--training", "folds=2", "--unlabeled", few, "-o", tmp_path / "other"
    )
    assert refused.returncode == 2
    assert "--training folds does not go with --unlabeled" in refused.stderr
