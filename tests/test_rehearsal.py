"""What keeps a model from forgetting, piece by piece: the sides of the split, what is rehearsed, and weights that are
held by their importance, against numbers computed by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stage_runs import KilledError, kill_at, run_stage, weights
from toolkit import tasks, training
from toolkit.errors import InputError
from toolkit.gates import forgetting
from toolkit.stages import Context
from toolkit.tasks.task import SPLITS, Example
from toolkit.training import ewc
from toolkit.training.rehearsal import Past, Rehearsed, Update

pytestmark = pytest.mark.usefixtures("torch_as_before")

TEXT = tasks.get("text-classification")
PAIRS = tasks.get("sentence-similarity")
TABLE = tasks.get("tabular")


def splits(train: Sequence[Any] = (), validation: Sequence[Any] = (), held: Sequence[Any] = ()) -> dict[str, Any]:
    """Examples of label 0 by split."""
    parts = (train, validation, held)
    return {split: [Example(each, 0) for each in part] for split, part in zip(SPLITS, parts, strict=True)}


def written(folder: Path, parts: dict[str, list[Example]]) -> Path:
    """Prepared data."""
    folder.mkdir()
    for split, examples in parts.items():
        lines = (json.dumps({"input": each.input, "label": each.label}) for each in examples)
        (folder / f"{split}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    (folder / "labels.json").write_text('["no", "yes"]')
    return folder


# The sides of the split


def test_what_was_held_out_is_never_trained_on_and_what_was_trained_on_measures_nothing() -> None:
    past = Past(TEXT)
    past.add(splits(["a", "b"], ["c"], ["d", "e"]))
    fresh = splits(["D ", "x", "a", "c"], ["e", "y", "b"], ["a", "z", "d"])
    kept = past.kept(fresh)
    assert {split: [fresh[split][i].input for i in indices] for split, indices in kept.items()} == {
        "train": ["x", "a"],
        "validation": ["y"],
        "eval": ["z", "d"],
    }


def test_a_row_is_the_same_whatever_its_file_made_of_its_numbers() -> None:
    past = Past(TABLE)
    past.add(splits(held=[{"age": 5, "job": "cook", "income": None}, {"age": 6.5, "job": "", "income": 1}]))
    fresh = [
        {"income": "", "age": 5.0, "job": "cook"},
        {"age": 6.5, "job": None, "income": 1.0},
        {"age": 5, "job": "b"},
    ]
    assert past.kept(splits(fresh))["train"] == [2]


def test_texts_of_a_pair_stay_or_go_together() -> None:
    past = Past(PAIRS)
    past.add(splits(["q1", "p1"], held=["q2", "p2"]))
    assert past.kept(splits(["q3", "p2", "q4", "p4"]))["train"] == [2, 3]
    assert [e.input for e in past.rehearsable([Example("q9", 0), Example("P1", 0)])] == []


def test_a_third_set_is_kept_apart_from_both_before() -> None:
    past = Past(TEXT)
    past.add(splits(["a"], held=["b"]))
    assert past.add(splits(["b", "c"], held=["a", "d"])) == {"train": [1], "validation": [], "eval": [1]}
    assert [example.input for example in past.examples["eval"]] == ["b", "d"]
    assert past.kept(splits(["d", "c", "e"], held=["c", "b", "f"])) == {
        "train": [1, 2],
        "validation": [],
        "eval": [1, 2],
    }


def test_a_corrected_label_is_not_rehearsed_wrong(tmp_path: Path) -> None:
    old = written(tmp_path / "old", splits(["a", "b"], ["v"], ["e"]))
    corrected = splits(["B"], ["w"], ["f"])
    corrected["train"] = [Example("B", 1)]
    update = Update(TEXT, written(tmp_path / "new", corrected), [old])
    assert [example.input for example in update.rehearsable()] == ["a"]
    known = written(tmp_path / "known", splits(["a", "b"], ["w"], ["f"]))
    assert Update(TEXT, known, [old]).rehearsable() == []  # all of them are there as new ones


def test_an_update_that_has_nothing_to_do_says_so(tmp_path: Path) -> None:
    old = written(tmp_path / "old", splits(["a"], [], ["e"]))
    new = written(tmp_path / "new", splits(["e"], ["v"], ["f"]))
    with pytest.raises(InputError, match="nothing new to learn: the old data hold out every new training example"):
        Update(TEXT, new, [old])
    blind = written(tmp_path / "blind", splits(["b"], ["a"], ["f"]))
    with pytest.raises(InputError, match="example left to choose the best epoch by"):
        Update(TEXT, blind, [old])
    untaught = written(tmp_path / "untaught", splits(held=["x"]))
    update = Update(TEXT, written(tmp_path / "other", splits(["b"], ["v"], ["f"])), [untaught])
    with pytest.raises(InputError, match=r"no old training example to rehearse.* --rehearsal 0"):
        update.rehearsable()
    with pytest.raises(InputError, match="--ewc: no old training example"):
        update.before()


# Rehearsal


def rehearsed(task: Any, new: int, old: int, share: float) -> Rehearsed:
    encoder: Any = None  # nothing is encoded here
    examples = [[Example(f"{kind} {i}", 0) for i in range(count)] for kind, count in (("new", new), ("old", old))]
    return Rehearsed(task, encoder, *examples, (), share)


def test_every_epoch_shows_all_new_examples_and_others_of_the_old_ones() -> None:
    examples = rehearsed(TEXT, 40, 100, 0.5)
    epochs = [examples.of_epoch(0, number) for number in range(12)]
    assert all(shown[:40] == list(range(40)) and len(shown) == 60 for shown in epochs)
    assert all(len(set(shown)) == 60 and max(shown) < 140 for shown in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[1] == examples.of_epoch(0, 1) != examples.of_epoch(1, 1)
    assert len({index for shown in epochs for index in shown}) > 130  # most of the old ones have their turn
    assert examples.rehearsed == 20


@pytest.mark.parametrize(("share", "drawn"), [(0.0, 0), (0.001, 1), (0.25, 10), (2.5, 100), (9.0, 100)])
def test_a_share_is_of_the_new_examples_and_ends_with_the_old_ones(share: float, drawn: int) -> None:
    assert rehearsed(TEXT, 40, 100, share).rehearsed == drawn


def test_pairs_are_rehearsed_whole() -> None:
    shown = rehearsed(PAIRS, 8, 20, 0.5).of_epoch(3, 1)[8:]
    assert len(shown) == 4
    assert all(first % 2 == 0 and second == first + 1 for first, second in zip(shown[::2], shown[1::2], strict=True))


def test_balanced_weights_are_those_of_what_an_epoch_shows() -> None:
    encoder: Any = None
    examples = Rehearsed(TEXT, encoder, [Example("a", 0)] * 10, [Example("b", 1)] * 90, (), 1.0)
    assert training.balanced_weights(examples, 2).tolist() == [1.0, 1.0]


def test_epochs_are_judged_by_old_and_new_examples_alike(tmp_path: Path) -> None:
    old = written(tmp_path / "old", splits(["a"], [f"o{i}" for i in range(8)], ["e"]))
    update = Update(TEXT, written(tmp_path / "new", splits(["b"], ["n1", "n2"], ["f"])), [old])
    encoder: Any = None
    examples, score = update.validation(encoder, (), ["no", "yes"])
    assert [example.input for example in examples.examples][-2:] == ["n1", "n2"]
    answers = np.tile([1.0, 0.0], (10, 1))  # all right
    assert score(answers) == 1.0
    answers[8:] = [0.0, 1.0]  # the two new ones wrong
    assert score(answers) == 0.5


# Elastic weight consolidation


def linear(rows: Any, labels: Sequence[int]) -> tuple[Any, training.Examples]:
    """A linear classifier of three numbers with two classes, and examples for it."""
    import torch

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(3, 2)

        def forward(self, features: Any) -> Any:
            return self.layer(features)

    names = ["a", "b", "c"]
    spec = {"numeric": {name: {"median": 0.0, "mean": 0.0, "std": 1.0} for name in names}, "categorical": {}}
    examples = [Example(dict(zip(names, row, strict=True)), label) for row, label in zip(rows, labels, strict=True)]
    torch.manual_seed(0)
    return Linear(), training.Examples(TABLE, TABLE.encoder(Path(), spec), examples, ("features",))


ROWS = [[1.0, 0.0, -2.0], [0.5, 0.0, 1.0], [-1.0, 0.0, 3.0], [2.0, 0.0, 0.1], [0.0, 0.0, 1.5]]
LABELS = [0, 1, 1, 0, 1]


def test_importance_is_the_mean_square_of_each_examples_gradient() -> None:
    model, examples = linear(ROWS, LABELS)
    found = ewc.importance(model, examples, 100, Context(task="tabular"))
    weight, bias = (value.detach().numpy().astype(np.float64) for value in (model.layer.weight, model.layer.bias))
    x, y = np.asarray(ROWS), np.eye(2)[LABELS]
    logits = x @ weight.T + bias
    wrong = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - y
    squares = {"layer.weight": np.mean((wrong[:, :, None] * x[:, None]) ** 2, axis=0), "layer.bias": (wrong**2).mean(0)}
    mean = sum(each.sum() for each in squares.values()) / 8
    for name, square in squares.items():
        assert found[name].numpy() == pytest.approx(square / mean, rel=1e-4)
    assert found["layer.weight"][:, 1].tolist() == [0, 0]  # no example needs what is multiplied by nothing
    assert sum(float(each.sum()) for each in found.values()) == pytest.approx(8)
    assert model.layer.weight.grad is None


def test_importance_is_drawn_by_the_seed_and_of_what_learns() -> None:
    model, examples = linear(ROWS, LABELS)
    model.layer.bias.requires_grad_(False)
    found = [ewc.importance(model, examples, 2, Context(task="tabular", seed=seed)) for seed in (0, 0, 1)]
    assert set(found[0]) == {"layer.weight"}
    assert found[0]["layer.weight"].tolist() == found[1]["layer.weight"].tolist() != found[2]["layer.weight"].tolist()


def test_weights_are_drawn_back_by_strength_times_importance_times_distance() -> None:
    import torch

    model, examples = linear(ROWS, LABELS)
    importance = ewc.importance(model, examples, 100, Context(task="tabular"))
    held = ewc.Consolidation(model, importance, strength=3.0)
    assert float(held.penalty().detach()) == 0
    moves = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += moves[name]
    penalty = held.penalty()
    assert float(penalty.detach()) == pytest.approx(
        sum(1.5 * float((importance[name] * move**2).sum()) for name, move in moves.items()), rel=1e-5
    )
    penalty.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.numpy() == pytest.approx((3.0 * importance[name] * moves[name]).numpy(), rel=1e-4)


def test_the_penalty_comes_on_top_of_the_loss() -> None:
    model, examples = linear(ROWS, LABELS)
    importance = ewc.importance(model, examples, 100, Context(task="tabular"))
    plain = training.from_labels(TABLE)
    held = ewc.Consolidation(model, importance, 0.5)
    model.layer.weight.data += 1.0
    batch = examples.batch([0, 1, 2])
    assert float(held.added_to(plain)(model, batch).detach()) == pytest.approx(
        float((plain(model, batch) + held.penalty()).detach())
    )


def test_old_examples_without_a_gradient_hold_nothing() -> None:
    model, examples = linear([[0.0, 0.0, 0.0]], [0])
    model.layer.bias.requires_grad_(False)
    with pytest.raises(InputError, match="--ewc: the old examples give no gradient"):
        ewc.importance(model, examples, 8, Context(task="tabular"))


# The gate


@pytest.mark.parametrize(("text", "limit"), [("1%", 0.01), (" 0.5% ", 0.005), ("0%", 0.0), ("100%", 1.0)])
def test_limits_are_points_of_the_score(text: str, limit: float) -> None:
    assert forgetting.parse(text) == pytest.approx(limit)


@pytest.mark.parametrize("text", ["1", "0.01", "-1%", "101%", "nan%", "much%", ""])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--max-forgetting '.*' is not a share like 1%"):
        forgetting.parse(text)


def test_the_gate_refuses_beyond_its_limit() -> None:
    assert forgetting.check(0.85, 0.84, 0.01, "accuracy", 500).passed  # a point is a point, whatever floats make of it
    refused = forgetting.check(0.85, 0.839, 0.01, "accuracy", 500)
    assert not refused.passed
    assert (
        refused.reason == "accuracy on 500 old evaluation examples 0.8500 → 0.8390 (-1.10 points; --max-forgetting 1%)"
    )
    assert forgetting.check(0.85, 0.9, 0.0, "accuracy", 500).passed


# The stage


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, encoder: Path, sentences: list[tuple[str, str]]) -> Path:
    """Prepared sentences that are not those of the fixture `prepared`."""
    from tests.conftest import write_csv
    from tests.small_inputs import prepare

    folder = tmp_path_factory.mktemp("other")
    prepare(encoder, write_csv(folder / "other.csv", sentences[300:420]), folder / "prepared")
    return folder / "prepared"


def learn(source: Path, output: Path, other: Path, prepared: Path, **given: Any) -> dict[str, Any]:
    kept = {"old": [str(prepared)], "ewc_examples": 12, **given.pop("continual", {})}
    settings = {"encoding": {"max_length": 64}, "epochs": 2, "batch_size": 16, "learning_rate": 3e-4, **given}
    return run_stage("finetune", source, output, other, continual=kept, **settings)


def drift(before: Path, after: Path, prepared: Path) -> float:
    """How far the weights of a checkpoint went that old examples need."""
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(before)
    examples = training.encode(TEXT, prepared, "train", TEXT.encoder(before, {"max_length": 64}), TEXT.INPUT_NAMES)
    importance = ewc.importance(model, examples, 12, Context(task=TEXT.NAME))
    held = ewc.Consolidation(model, importance, 1.0)
    model.load_state_dict(load_file(after / "model.safetensors"))
    return float(held.penalty().detach())


def test_the_stage_rehearses_holds_and_resumes_with_the_same_numbers(
    tuned: Path, other: Path, prepared: Path, tmp_path: Path
) -> None:
    both = {"rehearsal": 0.5, "ewc": 1.0}
    report = learn(tuned, tmp_path / "whole", other, prepared, continual=both)
    assert report["left_out"] == {"train": 0, "validation": 0, "eval": 0}
    assert report["rehearsed"] == 43  # half of 86
    assert [entry["steps"] for entry in report["history"]] == [9, 9]  # 129 examples in batches of 16
    with pytest.raises(KilledError):
        learn(
            tuned, tmp_path / "killed", other, prepared, continual=both,
            resume=tmp_path / "resume", progress=kill_at("epoch 2", 12),
        )  # fmt: skip
    again = learn(tuned, tmp_path / "again", other, prepared, continual=both, resume=tmp_path / "resume")
    assert again["history"] == report["history"]
    assert weights(tmp_path / "again") == weights(tmp_path / "whole")


def test_an_adapter_is_held_and_merged(tuned: Path, other: Path, prepared: Path, tmp_path: Path) -> None:
    def run(name: str, strength: float) -> dict[str, Any]:
        return learn(
            tuned, tmp_path / name, other, prepared, continual={"ewc": strength}, adapt="lora", learning_rate=3e-3
        )

    free, held = run("free", 0.0), run("held", 1000.0)
    assert held["merge"]["changed"] > 0 and held["trainable"] < 0.02 * held["parameters"]
    assert drift(tuned, tmp_path / "held", prepared) < 0.5 * drift(tuned, tmp_path / "free", prepared)
    assert held["history"] != free["history"]


def test_pairs_learn_more(encoder: Path, sentences: list[tuple[str, str]], tmp_path: Path) -> None:
    """Each text of a pair is one half of a sentence."""
    from toolkit import stages

    folders = []
    for name, part in (("old", sentences[:60]), ("new", sentences[60:100])):
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(["query", "passage"])
            rows.writerows([(text[: len(text) // 2], text[len(text) // 2 :]) for text, _ in part])
        module = stages.get("prepare")
        folders.append(tmp_path / f"prepared-{name}")
        folders[-1].mkdir()
        parameters = module.Parameters.model_validate({"data": str(tmp_path / f"{name}.csv")})
        module.run(encoder, folders[-1], parameters, Context(task=PAIRS.NAME))
    report = run_stage(
        "finetune", encoder, tmp_path / "out", folders[1], task=PAIRS.NAME, encoding={"max_length": 32}, epochs=1,
        batch_size=16, continual={"old": [str(folders[0])], "ewc": 0.1, "ewc_examples": 16},
    )  # fmt: skip
    assert report["rehearsed"] % 2 == 0 and report["rehearsed"] > 20
    assert 0 < report["validation_score"] <= 1
