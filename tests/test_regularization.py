"""R-Drop and adversarial embeddings: the losses by hand, their gradients, and trainings with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.small_inputs import one_layer, random_encoder
from tests.stage_runs import KilledError, kill_at, run_stage, weights
from toolkit import adapters, planning, tasks, training
from toolkit.adapters import methods
from toolkit.errors import InputError
from toolkit.training.losses import disagreement

pytestmark = pytest.mark.usefixtures("torch_as_before")

TASK = tasks.get("text-classification")
WEIGHTS = torch.tensor([0.5, 1.0, 2.0])


class Bag(torch.nn.Module):
    """Words without order: the mean of their embeddings, dropout, one layer."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(20, 6), torch.nn.Linear(6, 3)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, input_ids: Any) -> Any:
        return self.head(self.dropout(self.table(input_ids).mean(1)))

    def get_input_embeddings(self) -> Any:
        return self.table


@pytest.fixture
def bag() -> Callable[..., Bag]:
    def make(dropout: float = 0.0) -> Bag:
        torch.manual_seed(1)
        return Bag(dropout).double()

    return make


@pytest.fixture
def batch() -> training.Batch:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 20, (4, 5)))
    return training.Batch([0, 1, 2, 3], {"input_ids": ids.numpy()}, {"input_ids": ids}, torch.tensor([0, 2, 1, -1]))


def gradients(model: Any, loss: Any) -> dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return set(first) == set(second) and all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


# R-Drop


def test_disagreement_is_the_mean_divergence_in_both_directions() -> None:
    rows = np.random.default_rng(0).normal(size=(10, 4))
    chances = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    p, q = chances[:5], chances[5:]
    wanted = 0.5 * ((p * np.log(p / q)).sum(1) + (q * np.log(q / p)).sum(1)).mean()
    assert float(disagreement(torch.from_numpy(rows))) == pytest.approx(wanted, rel=1e-5)
    assert float(disagreement(torch.from_numpy(np.concatenate([rows, rows])))) == pytest.approx(0, abs=1e-7)


def test_r_drop_is_the_mean_of_two_losses_and_their_distance(bag: Any, batch: training.Batch) -> None:
    """Against two passes by hand, whose dropouts are drawn as one pass over both draws them."""
    model, alpha = bag(0.5), 3.0
    loss = training.from_labels(TASK, weights=WEIGHTS, smoothing=0.1, r_drop=alpha)
    torch.manual_seed(5)
    said = loss(model, batch)
    found = gradients(model, said)

    torch.manual_seed(5)
    kept = functional.dropout(torch.ones(8, 6, dtype=torch.float64), 0.5)
    means = model.table(batch.inputs["input_ids"]).mean(1)
    first, second = (model.head(means * part).float() for part in kept.chunk(2))
    losses = [
        functional.cross_entropy(each, batch.labels, weight=WEIGHTS, ignore_index=-1, label_smoothing=0.1)
        for each in (first, second)
    ]
    p, q = first.log_softmax(1), second.log_softmax(1)
    apart = 0.5 * ((p.exp() * (p - q)).sum(1) + (q.exp() * (q - p)).sum(1)).mean()
    assert float(apart.detach()) > 1e-3
    wanted = 0.5 * sum(losses) + alpha * apart
    assert float(said.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert same(found, gradients(model, wanted))


def test_examples_of_mixed_labels_and_of_words_come_twice() -> None:
    arrays = {"words": np.arange(6).reshape(2, 3)}
    once = training.Batch([4, 7], arrays, {"input_ids": torch.arange(4).reshape(2, 2)}, torch.tensor([[0.2, 0.8]] * 2))
    twice = once.twice()
    assert twice.indices == [4, 7, 4, 7]
    assert twice.arrays["words"].tolist() == arrays["words"].tolist() * 2
    assert twice.inputs["input_ids"].tolist() == [[0, 1], [2, 3]] * 2
    assert twice.labels.shape == (4, 2)


def test_without_dropout_r_drop_is_refused_and_nothing_was_touched(batch: training.Batch) -> None:
    model = random_encoder("bert")
    model.eval()
    before = torch.get_rng_state()
    training.check_dropout(model, batch)
    assert torch.equal(before, torch.get_rng_state()) and not model.training
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with pytest.raises(InputError, match="--training r_drop compares two dropouts, and this model has none"):
        training.check_dropout(model, batch)

    norms = torch.nn.Sequential(torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    norms.forward = lambda input_ids: norms[1](norms[0](input_ids.float()))  # type: ignore[method-assign]
    with pytest.raises(InputError):
        training.check_dropout(norms, batch)
    assert float(norms[0].running_mean.abs().sum()) == 0 and int(norms[0].num_batches_tracked) == 0


# Adversarial embeddings


def by_hand(model: Any, batch: training.Batch, epsilon: float, loss: Callable[[Any], Any]) -> tuple[Any, Any]:
    """(clean loss plus the one of the moved embeddings, by how much each example's were moved)."""
    rows = model.table(batch.inputs["input_ids"])
    clean = loss(model.head(rows.mean(1)))
    gradient = torch.autograd.grad(clean, rows, retain_graph=True)[0]
    step = torch.zeros_like(gradient)
    for row in range(len(gradient)):
        length = gradient[row].pow(2).sum().sqrt()
        if length > 0:
            step[row] = epsilon * gradient[row] / length
    return clean + loss(model.head((rows + step).mean(1))), step


def test_adversarial_is_the_loss_where_it_grows_fastest(bag: Any, batch: training.Batch) -> None:
    model = bag()
    plain = training.from_labels(TASK, weights=WEIGHTS, smoothing=0.1)
    loss = training.adversarial(plain, model.table, 0.7)
    said = loss(model, batch)
    found = gradients(model, said)
    wanted, step = by_hand(
        model, batch, 0.7, lambda answers: TASK.loss(answers, batch.labels, weights=WEIGHTS, smoothing=0.1)
    )
    assert float(said.detach()) == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert same(found, gradients(model, wanted))
    lengths = step.flatten(1).norm(dim=1).tolist()
    assert lengths == pytest.approx([0.7, 0.7, 0.7, 0])  # nobody knows the last one's label
    clean = float(plain(model, batch).detach())
    assert float(said.detach()) > 2 * clean  # the second loss is the greater one
    assert not model.table._forward_hooks


def test_frozen_embeddings_are_moved_all_the_same(bag: Any, batch: training.Batch) -> None:
    model = bag()
    plain = training.from_labels(TASK)
    free = training.adversarial(plain, model.table, 0.7)(model, batch)
    wanted = gradients(model, free)
    model.table.requires_grad_(False)
    said = training.adversarial(plain, model.table, 0.7)(model, batch)
    found = gradients(model, said)
    assert torch.allclose(said, free, rtol=1e-9)
    assert set(found) == {"head.weight", "head.bias"} and model.table.weight.grad is None
    assert all(torch.allclose(found[name], wanted[name]) for name in found)


def test_both_together_are_one_in_the_other(bag: Any, batch: training.Batch) -> None:
    model = bag(0.5)
    inner = training.from_labels(TASK, r_drop=2.0)
    torch.manual_seed(3)
    said = training.adversarial(inner, model.table, 0.5)(model, batch)
    torch.manual_seed(3)
    first = float(inner(model, batch).detach())
    assert float(said.detach()) > first > 0
    assert torch.isfinite(torch.stack([g.abs().sum() for g in gradients(model, said).values()])).all()


def test_hooks_go_even_if_the_loss_fails(bag: Any, batch: training.Batch) -> None:
    model = bag()

    def broken(given: Any, _: Any) -> Any:
        given(**batch.inputs)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        training.adversarial(broken, model.table, 1.0)(model, batch)
    assert not model.table._forward_hooks


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "distilbert"])
@pytest.mark.parametrize("adapt", ["full", "frozen", "lora"])
def test_embeddings_of_every_family_are_found_and_stay_if_they_must(
    kind: str, adapt: adapters.Method, batch: training.Batch
) -> None:
    model = methods.adapt(random_encoder(kind), adapt, rank=2, alpha=4, dropout=0.0).eval()
    table = training.input_embeddings(model)
    plain = training.from_labels(TASK)
    said = training.adversarial(plain, table, 0.5)(model, batch)
    assert float(said.detach()) > 2 * float(plain(model, batch).detach()) + 1e-4
    said.backward()
    assert (table.weight.grad is not None) == (adapt == "full")
    learning = [p for p in model.parameters() if p.requires_grad]
    assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in learning)


def test_under_autocast_the_gradient_stays_close(batch: training.Batch) -> None:
    model = random_encoder("bert")
    loss = training.adversarial(training.from_labels(TASK), training.input_embeddings(model), 0.5)
    wanted = gradients(model, loss(model, batch))
    with torch.autocast("cpu", torch.bfloat16):
        said = loss(model, batch)
    found = gradients(model, said)
    assert set(found) == set(wanted)
    for name in ("classifier.weight", "bert.embeddings.word_embeddings.weight"):
        cosine = functional.cosine_similarity(found[name].flatten(), wanted[name].flatten(), dim=0)
        assert float(cosine) > 0.99


def test_models_without_embeddings_are_refused(batch: training.Batch) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    for model in (ResNetForImageClassification(config), torch.nn.Linear(2, 2)):
        with pytest.raises(InputError, match="moves input embeddings, and this model has none"):
            training.input_embeddings(model)
    model = Bag(0.0)
    with pytest.raises(InputError, match="does not read its input embeddings"):
        training.adversarial(training.from_labels(TASK), torch.nn.Embedding(2, 2), 1.0)(model, batch)


# Trainings

Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The stage finetune of a narrow encoder, in this process."""
    model = one_layer(tmp_path_factory.mktemp("model"))

    def run(**given: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp("tuned")
        common = {"encoding": {"max_length": 32}, "epochs": 2, "batch_size": 16, "learning_rate": 1e-3}
        return output, run_stage("finetune", model, output, prepared, **{**common, **given})

    return run


@pytest.mark.parametrize("given", [{"r_drop": 4.0}, {"adversarial": 1.0}])
def test_trainings_repeat_and_go_on_to_the_same_weights(train: Train, tmp_path: Path, given: dict[str, float]) -> None:
    plain, _ = train()
    first, report = train(**given)
    second, _ = train(**given)
    assert weights(first) == weights(second) != weights(plain)
    steps = report["history"][0]["steps"]
    with pytest.raises(KilledError):
        train(**given, progress=kill_at("epoch 2 of", steps + 2), resume=tmp_path)
    resumed, again = train(**given, resume=tmp_path)
    assert weights(resumed) == weights(first)
    assert again == report


def test_everything_at_once_learns(train: Train) -> None:
    _, report = train(
        r_drop=0.2, adversarial=0.02, augment={"word_dropout": 0.05}, accumulate=2, label_smoothing=0.1, balanced=True,
        bf16=True, batch_size=4, epochs=6, learning_rate=3e-3, patience=6,
    )  # fmt: skip
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.6 * losses[0]


def test_an_adapter_learns_from_moved_embeddings_that_stay(train: Train) -> None:
    from safetensors.numpy import load_file

    name = "bert.embeddings.word_embeddings.weight"
    plain, _ = train(adapt="lora", learning_rate=1e-2)
    moved, report = train(adapt="lora", learning_rate=1e-2, adversarial=1.0)
    assert report["merge"]["changed"] > 0
    before, after = (load_file(folder / "model.safetensors") for folder in (plain, moved))
    assert np.array_equal(before[name], after[name])
    assert any(not np.array_equal(before[key], after[key]) for key in before)


def test_a_training_without_dropout_is_refused(prepared: Path, tmp_path: Path) -> None:
    model = one_layer(tmp_path / "model", dropout=0.0)
    with pytest.raises(InputError, match="r_drop compares two dropouts"):
        run_stage("finetune", model, tmp_path / "out", prepared, encoding={"max_length": 32}, r_drop=1.0)


def test_what_cannot_be_is_refused_before_anything_runs(encoder: Path, few: Path, tmp_path: Path) -> None:
    def plan(model: str, **given: Any) -> Any:
        return planning.plan(
            planning.options(model=model, target="raspberry-pi-5", output=str(tmp_path / "o"), finetune=True, **given)
        )

    pairs = tmp_path / "pairs.csv"
    pairs.write_text("query,passage\n" + "".join(f"q{i},p{i}\n" for i in range(20)))
    with pytest.raises(InputError, match="r_drop compares classes, and sentence-similarity has none"):
        plan(str(encoder), data=str(pairs), task="sentence-similarity", training={"r_drop": 1.0})
    table = tmp_path / "table.csv"
    table.write_text("age,label\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    with pytest.raises(InputError, match="adversarial needs a transformers model"):
        plan("mlp", data=str(table), task="tabular", training={"adversarial": 1.0})
    with pytest.raises(InputError, match="--training r_drop: Input should be greater than or equal to 0"):
        plan(str(encoder), data=str(few), training={"r_drop": -1})
    with pytest.raises(InputError, match="Fine-tuning has no parameter 'augment'"):
        plan(str(encoder), data=str(few), training={"augment": {"typos": 1}})
    found = plan(str(encoder), data=str(few), training={"r_drop": 1, "adversarial": 0.5}).recipe.finetune.parameters
    assert (found["r_drop"], found["adversarial"]) == (1, 0.5)
