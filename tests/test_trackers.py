"""Trackers get a training's numbers, where their own settings say; without being asked nothing is tracked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_toolkit
from tests.stage_runs import run_stage
from toolkit import training
from toolkit.errors import InputError, MissingDependencyError
from toolkit.training import trackers

pytestmark = pytest.mark.usefixtures("torch_as_before")


def parameters(**given: Any) -> training.Hyperparameters:
    return training.Hyperparameters(**given)


@pytest.fixture
def by_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow with a store in a folder, and its client."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "reviews")
    import mlflow

    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
    return mlflow.MlflowClient()


def test_mlflow_gets_every_epoch(by_mlflow: Any, encoder: Path, prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned").mkdir()
    given = {"encoding": {"max_length": 64}, "epochs": 2, "track": ["mlflow"]}
    report = run_stage("finetune", encoder, tmp_path / "tuned", prepared, **given)
    experiment = by_mlflow.get_experiment_by_name("reviews")
    (run,) = by_mlflow.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["epochs"] == "2" and run.data.params["adapt"] == "full"
    history = by_mlflow.get_metric_history(run.info.run_id, "validation/score")
    assert [(each.step, each.value) for each in history] == [
        (entry["epoch"], pytest.approx(entry["validation_score"])) for entry in report["history"]
    ]


def test_wandb_stays_offline_where_it_was_told_to(
    encoder: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the verb: what the training's process has said must be on disk when it is gone."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    done = run_toolkit(
        "finetune", encoder, "--data", few, "--epochs", "1", "--learning-rate", "0.000123", "--track", "wandb",
        "--cache-dir", tmp_path / "cache", "-o", tmp_path / "tuned", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    records = written.read_bytes()  # protobuf, not compressed
    for expected in (b"train/loss", b"validation/score", b"learning_rate", b"0.000123"):
        assert expected in records


def test_a_tracker_that_cannot_begin_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import PartialState

    PartialState()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nowhere://at-all")
    import mlflow

    mlflow.set_tracking_uri("nowhere://at-all")
    with pytest.raises(InputError, match="--track mlflow: "):
        trackers.open_tracker(parameters(track=["mlflow"]))


def test_a_package_that_is_missing_is_named_before_anything_runs(
    encoder: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from toolkit import planning

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "wandb" else found(name, *more)
    )
    options = planning.options(model=str(encoder), data=str(few), output=str(tmp_path / "out"), track=["wandb"])
    with pytest.raises(MissingDependencyError, match=r"--track wandb needs .* pip install .*\[wandb\]'"):
        planning.plan(options)


def test_an_unknown_tracker_is_refused(encoder: Path, few: Path, tmp_path: Path) -> None:
    done = run_toolkit("finetune", encoder, "--data", few, "--track", "abacus", "-o", tmp_path / "tuned")
    assert done.returncode == 2
    assert "'abacus' is not one of 'wandb', 'mlflow'" in done.stderr


def test_nothing_is_tracked_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither package is even imported."""
    import sys

    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would fail
    tracker = trackers.open_tracker(parameters())
    assert isinstance(tracker, trackers.Several)
    assert list(tracker._trackers) == []
    tracker.log({"train/loss": 1.0}, 1)
    tracker.close()
