"""The learning-rate range test: a rate between too small and too large, and a model that is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small_inputs import one_layer, prepare
from tests.stage_runs import run_stage, weights
from toolkit import stages, tasks, training
from toolkit.errors import InputError
from toolkit.tasks.task import Example
from toolkit.training import range_test

pytestmark = pytest.mark.usefixtures("torch_as_before")


class Numbers:
    """An encoder of lists of numbers."""

    def __call__(self, given: list[float]) -> dict[str, Any]:
        return {"features": np.asarray([given], dtype=np.float32)}

    def length(self, arrays: dict[str, Any]) -> int:
        return 1

    def batch(self, encoded: list[dict[str, Any]], step: int = 1) -> dict[str, Any]:
        return {"features": np.concatenate([each["features"] for each in encoded])}


def some_examples() -> training.Examples:
    """What they are does not matter: the losses here look at the model alone."""
    examples = [Example([float(i)], i % 2) for i in range(64)]
    return training.Examples(tasks.get("tabular"), Numbers(), examples, ["features"])  # type: ignore[arg-type]


def a_weight() -> Any:
    """A model of one weight, which is zero."""
    import torch

    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    return model


def found(model: Any, loss: Any) -> tuple[float, list[dict[str, float]]]:
    return range_test.find(model, some_examples(), loss, training.Hyperparameters(), stages.Context(task="tabular"))


def test_the_rate_suits_how_far_the_weights_have_to_go() -> None:
    """A weight that is right at 0.01 takes steps a hundred times as long as one that is right at 0.0001."""
    import torch

    rates = {}
    for goal in (0.0001, 0.01):
        model = a_weight()
        rates[goal], tried = found(model, lambda model, batch, goal=goal: ((model.weight - goal) ** 2).sum() / goal**2)
        assert torch.equal(model.weight, torch.zeros(1, 1))
        losses = {each["rate"]: each["loss"] for each in tried}
        best = min(losses, key=lambda rate: losses[rate])
        assert rates[goal] == pytest.approx(best / 10, rel=0.05)
        assert list(losses) == sorted(losses) and min(losses) == range_test.LOWEST
    assert 30 < rates[0.01] / rates[0.0001] < 300


def test_a_loss_that_never_falls_is_said() -> None:
    with pytest.raises(InputError, match="The loss fell at no learning rate"):
        found(a_weight(), lambda model, batch: 1.0 - (model.weight * 0).sum())


def test_a_training_takes_the_rate_that_was_found(few: Path, tmp_path: Path) -> None:
    """And comes to what it would have come to, had that rate been named."""
    model = one_layer(tmp_path / "model")
    prepare(model, few, tmp_path / "prepared")
    given: dict[str, Any] = {"encoding": {"max_length": 32}, "epochs": 1}
    report = run_stage(
        "finetune",
        model,
        tmp_path / "found",
        tmp_path / "prepared",
        **given,
        find_learning_rate=True,
        learning_rate=9.0,
    )
    assert 1e-6 < report["learning_rate"] < 1
    assert len(report["range_test"]) > 10
    run_stage(
        "finetune", model, tmp_path / "named", tmp_path / "prepared", **given, learning_rate=report["learning_rate"]
    )
    assert weights(tmp_path / "found") == weights(tmp_path / "named")
