"""The training loop, run by the stage `finetune` on the two-layer encoder and a few hundred sentences: what it writes,
that a seed means the same bytes, and that neither a kill nor Ctrl-C costs more than the epoch at hand."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.stage_runs import KilledError, digest, kill_at, run_stage, saved, weights
from toolkit import planning, training
from toolkit.devices import local
from toolkit.errors import InputError
from toolkit.training.examples import grouped_batches
from toolkit.training.rates import learning_rate_factor

pytestmark = pytest.mark.usefixtures("torch_as_before")

EPOCHS = 3


def test_every_example_is_in_one_batch_per_epoch() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=333).tolist()
    batches = grouped_batches(lengths, 16, np.random.default_rng(1))
    assert sorted(index for batch in batches for index in batch) == list(range(333))
    assert sorted(map(len, batches))[-20:] == [16] * 20
    assert len(batches) == 21


def test_batches_hold_similar_lengths() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=800).tolist()

    def padding(batches: list[list[int]]) -> int:
        return sum(max(lengths[i] for i in batch) * len(batch) - sum(lengths[i] for i in batch) for batch in batches)

    unsorted = [list(range(start, start + 16)) for start in range(0, 800, 16)]
    assert padding(grouped_batches(lengths, 16, np.random.default_rng(1))) < 0.1 * padding(unsorted)


def test_batches_follow_the_seed_and_are_shuffled() -> None:
    lengths = list(range(5, 165))
    first = grouped_batches(lengths, 8, np.random.default_rng([0, 1]))
    assert first == grouped_batches(lengths, 8, np.random.default_rng([0, 1]))
    assert first != grouped_batches(lengths, 8, np.random.default_rng([0, 2]))
    assert first != sorted(first)


def test_learning_rate_warms_up_and_decays() -> None:
    factors = [learning_rate_factor(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.02
    assert learning_rate_factor(100, 100, 10) == 0
    assert learning_rate_factor(0, 5, 0) == 1.0


Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(encoder: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """The stage, run in this process."""

    def run(**given: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp("tuned")
        return output, run_stage(
            "finetune", encoder, output, prepared, **{"encoding": {"max_length": 64}, "epochs": EPOCHS, **given}
        )

    return run


@pytest.fixture(scope="module")
def undisturbed(train: Train) -> tuple[Path, dict[str, Any]]:
    return train()


def test_output_is_a_plain_hugging_face_folder(undisturbed: tuple[Path, dict[str, Any]], encoder: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder, report = undisturbed
    names = {path.name for path in folder.rglob("*")}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert all(path.stat().st_mode & 0o044 for path in folder.iterdir())
    model, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.label2id == {"negative": 0, "positive": 1}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = model(**tokenizer("a film", return_tensors="pt")).logits
    assert answer.shape == (1, 2)
    assert weights(folder) != weights(encoder)
    assert [entry["epoch"] for entry in report["history"]] == [1, 2, 3]
    assert all(entry["steps"] == 7 and entry["loss"] > 0 for entry in report["history"])
    scores = [entry["validation_score"] for entry in report["history"]]
    assert report["validation_score"] == max(scores)
    assert report["best_epoch"] == scores.index(max(scores)) + 1
    assert (report["interrupted"], report["processes"], report["bf16"]) == (False, 1, False)


def test_training_learns(train: Train) -> None:
    _, report = train(epochs=5, learning_rate=5e-4, batch_size=8, patience=5)
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.5 * losses[0]
    assert report["validation_score"] > 0.6


def test_same_seed_same_bytes_and_another_seed_others(train: Train, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    again, report = train()
    other, _ = train(seed=1)
    assert weights(again) == weights(undisturbed[0])
    assert report == undisturbed[1]
    assert weights(other) != weights(again)


@pytest.mark.parametrize("during", [2, 3])
def test_a_resumed_run_ends_with_the_same_bytes(
    train: Train, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path, during: int
) -> None:
    with pytest.raises(KilledError):
        train(progress=kill_at(f"epoch {during} of", (during - 1) * 7 + 4), resume=tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))
    seen: list[str] = []
    output, report = train(progress=lambda done, total, text: seen.append(text), resume=tmp_path)
    assert not any(text.startswith("epoch 1") for text in seen)
    assert any(text.startswith(f"epoch {during}") for text in seen)
    assert weights(output) == weights(undisturbed[0])
    assert report == undisturbed[1]


def scripted(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> list[str]:
    """Let validation give these scores; returns the list that fills with the weights' hashes at each."""
    seen: list[str] = []
    remaining = iter(scores)

    def validate(self: Any) -> tuple[float, None]:
        seen.append(digest(self.model))
        return next(remaining), None

    monkeypatch.setattr(training.Trainer, "validate", validate)
    return seen


def test_training_stops_early_and_keeps_the_best_epoch(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = scripted(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.9])
    output, report = train(epochs=5, patience=2)
    assert report["epochs_run"] == 4
    assert report["best_epoch"] == 2
    assert saved(output) == seen[1] != seen[3]


def test_with_teachers_the_epoch_that_diverges_least_is_the_best() -> None:
    progress = training.Progress()
    found = [progress.add(10, 0.1, score, divergence) for score, divergence in ((0.8, 0.3), (0.7, 0.2), (0.9, 0.25))]
    assert found == [True, True, False]
    assert progress.best is not None
    assert (progress.best["epoch"], progress.best["validation_score"]) == (2, 0.7)


def test_patience_ends_a_training_that_gets_no_better_and_none_lets_it_go_on() -> None:
    progress, given = training.Progress(), training.Hyperparameters(epochs=4, patience=2)
    endless = given.model_copy(update={"patience": None})
    for score, goes_on in ((0.8, True), (0.7, True), (0.7, False)):
        progress.add(10, 0.1, score, None)
        assert progress.goes_on(given) is goes_on
        assert progress.goes_on(endless)
    progress.add(10, 0.1, 0.7, None)
    assert not progress.goes_on(endless)


def test_a_hopeless_training_ends() -> None:
    progress, given = training.Progress(), training.Hyperparameters(epochs=5, give_up_below=0.75)
    assert progress.goes_on(given)
    progress.add(10, 0.1, 0.74, None)
    assert progress.gave_up(given)
    assert not progress.goes_on(given)
    progress.add(10, 0.1, 0.76, None)
    assert progress.goes_on(given)


def interrupt_at(start: str) -> Callable[[int, int, str], None]:
    """Ctrl-C, as the training takes it: by the handler that it has set. That the system's signal gets there is in
    tests/test_finetune.py, on a process of its own; this one is every other test's, too."""
    sent = []

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith(start) and not sent:
            sent.append(text)
            handler = signal.getsignal(signal.SIGINT)
            assert callable(handler) and handler is not signal.default_int_handler
            handler(signal.SIGINT, None)

    return progress


def test_an_interrupted_epoch_does_not_replace_the_best_whole_one(
    train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = scripted(monkeypatch, [0.8, 0.9, 0.5, 0.5])
    before = signal.getsignal(signal.SIGINT)
    early, report = train(progress=interrupt_at("epoch 2"), resume=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    assert report["interrupted"]
    assert report["history"][1]["steps"] == 1
    assert saved(early) == seen[1]  # the better score, and all that the user waited for
    whole, report = train(resume=tmp_path)
    assert not report["interrupted"]
    assert len(seen) == 4
    assert saved(whole) == seen[0]


def test_an_interrupted_run_goes_on_to_the_same_bytes(
    train: Train, undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    _, report = train(progress=interrupt_at("epoch 2"), resume=tmp_path)
    assert report["interrupted"]
    output, report = train(resume=tmp_path)
    assert weights(output) == weights(undisturbed[0])
    assert report == undisturbed[1]


def test_ctrl_c_while_loading_still_gives_a_checkpoint(train: Train) -> None:
    output, report = train(progress=interrupt_at("loading"))
    assert report["interrupted"]
    assert report["history"][0]["steps"] == 1
    assert len(saved(output)) == 64


@pytest.mark.parametrize(("isa", "expected"), [([], False), (["avx512_bf16"], True), (["amx_bf16"], True)])
def test_bf16_is_chosen_by_the_cpu(
    encoder: Path, few: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, isa: list[str], expected: bool
) -> None:
    monkeypatch.setattr(local, "isa", lambda: isa)
    options = planning.Options(model=str(encoder), data=str(few), target="raspberry-pi-5", output=str(tmp_path / "o"))
    made = planning.plan(options)
    assert made.recipe.finetune.parameters is not None
    assert made.recipe.finetune.parameters["bf16"] is expected


def test_bf16_is_recorded_and_weights_stay_float32(train: Train, undisturbed: tuple[Path, dict[str, Any]]) -> None:
    from safetensors.numpy import load_file

    output, report = train(epochs=1, bf16=True)
    assert report["bf16"]
    tensors = load_file(output / "model.safetensors")
    assert {str(value.dtype) for value in tensors.values()} == {"float32"}
    assert weights(output) != weights(undisturbed[0])


def test_tensorboard_gets_loss_and_score(train: Train, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, report = train(epochs=2, tensorboard=str(tmp_path / "logs"))
    logs = EventAccumulator(str(tmp_path / "logs"))
    logs.Reload()
    assert set(logs.Tags()["scalars"]) == {"train/loss", "validation/score"}
    written = [event.value for event in logs.Scalars("validation/score")]
    assert written == pytest.approx([entry["validation_score"] for entry in report["history"]])


def test_layers_learn_at_falling_rates() -> None:
    names = [
        "bert.embeddings.word_embeddings.weight", "bert.encoder.layer.0.output.dense.weight",
        "bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.weight", "classifier.weight",
    ]  # fmt: skip
    assert list(training.rate_shares(names, 0.5).values()) == [0.125, 0.25, 0.5, 1.0, 1.0]
    assert set(training.rate_shares(names, 1.0).values()) == {1.0}
    assert set(training.rate_shares(["a.weight", "b.bias"], 0.5).values()) == {1.0}


def test_a_low_layer_moves_less_if_rates_decay(train: Train, encoder: Path) -> None:
    from safetensors.numpy import load_file

    def moved(folder: Path, layer: int) -> float:
        name = f"encoder.layer.{layer}.output.dense.weight"
        before = load_file(encoder / "model.safetensors")[name]
        return float(np.abs(load_file(folder / "model.safetensors")[f"bert.{name}"] - before).mean())

    even, falling = (train(epochs=1, layer_decay=decay)[0] for decay in (1.0, 0.1))
    assert moved(falling, 0) < 0.2 * moved(even, 0)
    assert moved(falling, 0) < 0.2 * moved(falling, 1)


def test_gradients_of_several_batches_make_one_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    steps: list[int] = []
    plain = torch.optim.AdamW.step

    def counted(self: Any, *given: Any, **options: Any) -> Any:
        steps.append(1)
        return plain(self, *given, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    _, report = train(epochs=1, batch_size=8, accumulate=4)
    assert report["history"][0]["steps"] == 27
    assert len(steps) == 7  # six times four batches, and the three that are left


def test_balanced_weights_let_every_class_count_as_much(prepared: Path, encoder: Path) -> None:
    import torch

    from toolkit import tasks
    from toolkit.tasks.task import Example

    task = tasks.get("text-classification")
    examples = training.Examples(
        task,
        task.encoder(encoder, {"max_length": 16}),
        [Example("a", 0)] * 9 + [Example("b", 1), Example("c", None)],
        (),
    )
    weights = training.balanced_weights(examples, 2)
    assert weights.tolist() == pytest.approx([10 / 18, 5.0])
    labels = torch.tensor([0] * 9 + [1])
    answers = torch.zeros(10, 2)
    answers[:, 0] = 2.0  # always the frequent class
    plain, balanced = (float(task.loss(answers, labels, weights=given)) for given in (None, weights))
    assert balanced == pytest.approx((0.126928 + 2.126928) / 2, abs=1e-4)
    assert plain < 0.4 < balanced


def test_smoothing_bounds_certainty() -> None:
    import torch

    from toolkit import tasks

    task = tasks.get("text-classification")
    labels = torch.tensor([0])
    sure = torch.tensor([[20.0, 0.0]])
    assert float(task.loss(sure, labels)) < 1e-6
    assert float(task.loss(sure, labels, smoothing=0.1)) == pytest.approx(0.05 * 20, abs=1e-3)


def test_further_parameters_are_checked_beforehand(encoder: Path, few: Path, tmp_path: Path) -> None:
    def plan(**given: Any) -> Any:
        return planning.plan(
            planning.options(
                model=str(encoder), data=str(few), target="raspberry-pi-5", output=str(tmp_path / "o"), training=given
            )
        )

    found = plan(label_smoothing=0.1, layer_decay=0.9).recipe.finetune.parameters
    assert found is not None and found["label_smoothing"] == 0.1 and found["layer_decay"] == 0.9
    with pytest.raises(InputError, match="Fine-tuning has no parameter 'smoothing'; it has: accumulate, adapt"):
        plan(smoothing=0.1)
    with pytest.raises(InputError, match="--training label_smoothing: Input should be less than 1"):
        plan(label_smoothing=2)
