"""Fine-tuning of few weights: what learns, that a merge is the model with its adapter, and faults that are caught."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit
from tests.stage_runs import KilledError, kill_at, run_stage, weights
from toolkit import training
from toolkit.adapters import Method, adalora, merge, methods
from toolkit.errors import InputError, ToolkitError

pytestmark = pytest.mark.usefixtures("torch_as_before")

GIVEN = {"encoding": {"max_length": 64}, "epochs": 2, "learning_rate": 3e-3, "batch_size": 16}

Train = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def train(encoder: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    def run(adapt: Method, **given: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp(adapt)
        return output, run_stage("finetune", encoder, output, prepared, **{**GIVEN, "adapt": adapt, **given})

    return run


def changed(before: Path, after: Path) -> dict[str, bool]:
    """Which weights of the body are others; the trained model puts its own prefix before their names."""
    from safetensors.numpy import load_file

    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    found = {name.removeprefix("bert."): value for name, value in new.items()}
    return {name: not np.array_equal(value, found[name]) for name, value in old.items() if name in found}


@pytest.mark.parametrize(("adapt", "most"), [("frozen", 0.001), ("lora", 0.02), ("adalora", 0.03), ("ia3", 0.002)])
def test_few_weights_learn_and_the_output_is_a_plain_folder(
    train: Train, encoder: Path, adapt: Method, most: float
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder, report = train(adapt)
    assert 0 < report["trainable"] < most * report["parameters"]
    names = {path.name for path in folder.rglob("*")}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    _, loading = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values()), loading
    others = {name for name, is_other in changed(encoder, folder).items() if is_other}
    if adapt == "frozen":
        assert not others and "merge" not in report
    else:
        assert report["merge"]["answer_difference"] <= merge.TOLERANCE
        assert report["merge"]["weight_change"] > 0
        assert report["merge"]["changed"] == len([name for name in others if name.endswith("weight")]) > 0
        assert all(".dense" in name or ".self." in name for name in others), others  # no norm, no embedding


def test_an_adapter_learns_and_a_kill_costs_nothing(train: Train, tmp_path: Path) -> None:
    learning: dict[str, Any] = {"epochs": 6, "learning_rate": 3e-3, "batch_size": 8, "patience": 6}
    folder, report = train("lora", **learning)
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(KilledError):
        train("lora", **learning, progress=kill_at("epoch 2", 35), resume=tmp_path)
    again, resumed = train("lora", **learning, resume=tmp_path)
    assert weights(again) == weights(folder)
    assert resumed["history"] == report["history"]


def test_a_merge_is_proved_in_float32_though_training_was_not(train: Train) -> None:
    _, report = train("lora", epochs=1, bf16=True)
    assert report["bf16"] and report["merge"]["answer_difference"] < 1e-4


# Ranks that fall


def test_ranks_fall_to_what_was_asked_for_and_differ_between_layers(train: Train) -> None:
    _, report = train("adalora", epochs=1, rank=4)  # its best epoch is its last, when all has been shared out
    ranks = report["ranks"]
    assert ranks["mean"] == 4
    assert ranks["least"] < 4 < ranks["most"] <= 6
    assert report["merge"]["changed"] == 13 - ranks["without"]


def test_a_long_warmup_keeps_all_ranks(train: Train) -> None:
    _, report = train("adalora", epochs=20, rank=4, patience=1, give_up_below=1.0)  # ends behind its first epoch
    assert report["epochs_run"] == 1
    assert report["ranks"] == {"mean": 6, "least": 6, "most": 6, "without": 0}


@pytest.mark.parametrize("after", [20, 50])
def test_ranks_are_shared_out_as_if_nothing_had_happened(train: Train, tmp_path: Path, after: int) -> None:
    """Killed in the second of four epochs, while ranks fall, and in the last, when they have fallen."""
    learning: dict[str, Any] = {"epochs": 4, "rank": 4, "patience": None, "accumulate": 2}
    folder, report = train("adalora", **learning)
    with pytest.raises(KilledError):
        train("adalora", **learning, progress=kill_at("epoch", after), resume=tmp_path)
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))
    again, resumed = train("adalora", **learning, resume=tmp_path)
    assert weights(again) == weights(folder)
    assert resumed == report  # the proof and the ranks of the best epoch, too, whichever run saved it


def test_the_loss_is_that_of_peft(tuned: Path, prepared: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    from toolkit import tasks

    task = tasks.get("text-classification")
    names = ["input_ids", "attention_mask", "token_type_ids"]
    examples = training.encode(task, prepared, "train", task.encoder(tuned, {"max_length": 64}), names)
    model = AutoModelForSequenceClassification.from_pretrained(tuned)
    wrapped = methods.adapt(model, "adalora", rank=4, alpha=8, dropout=0.0).eval()
    batch = examples.batch(range(8))
    with torch.no_grad():
        own = adalora.Allocation(wrapped).regularized(training.from_labels(task))(wrapped, batch)
        theirs = wrapped.base_model(**batch.inputs, labels=batch.labels).loss
        plain = training.from_labels(task)(wrapped, batch)
    assert float(own) == pytest.approx(float(theirs), abs=1e-5)
    assert float(own) > float(plain) + 0.1


def test_one_step_is_too_few_for_ranks_to_fall(train: Train) -> None:
    with pytest.raises(InputError, match="--adapt adalora: one step is too few"):
        train("adalora", epochs=1, batch_size=1000)


# Merges


@pytest.fixture
def adapted(tuned: Path) -> Any:
    """The trained model with a LoRA adapter that does something."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    wrapped = methods.adapt(model, "lora", rank=4, alpha=8, dropout=0.0).eval()
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return wrapped


def answers(model: Any) -> Any:
    import torch

    ids = torch.arange(1000, 1160).reshape(8, 20)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.numpy()


def test_a_good_merge_is_proved(adapted: Any) -> None:
    proof = merge.prove(adapted, copy.deepcopy(adapted).merge_and_unload(), answers)
    assert proof.answer_difference < 1e-4 < proof.weight_change
    assert proof.changed == proof.adapted == 13  # six layers in each of two, and the pooler


def test_a_merge_that_changes_nothing_is_refused(tuned: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tuned).eval()
    idle = methods.adapt(model, "lora", rank=4, alpha=8, dropout=0.0).eval()  # its second matrix is zero
    with pytest.raises(ToolkitError, match="changed none of the 13 matrices"):
        merge.prove(idle, copy.deepcopy(idle).merge_and_unload(), answers)


def test_wrong_merges_are_caught(adapted: Any) -> None:
    """Merged twice, with another scale, into one matrix too few, and into a table that another layer shares."""
    import torch

    def twice(plain: Any) -> None:
        for name, before in merge._adapted_layers(adapted):
            layer = plain.get_submodule(name)
            layer.weight.add_(layer.weight - before)

    def scaled(plain: Any) -> None:
        for name, before in merge._adapted_layers(adapted):
            layer = plain.get_submodule(name)
            layer.weight.copy_(before + 0.5 * (layer.weight - before))

    def one_too_few(plain: Any) -> None:
        name, before = next(merge._adapted_layers(adapted))
        plain.get_submodule(name).weight.copy_(before)

    def tied(plain: Any) -> None:
        plain.get_input_embeddings().weight[1000:1160] *= 1.5

    for spoil in (twice, scaled, one_too_few, tied):
        plain = copy.deepcopy(adapted).merge_and_unload()
        with torch.no_grad():
            spoil(plain)
        with pytest.raises(ToolkitError, match="does not answer like the one with its adapter"):
            merge.prove(adapted, plain, answers)


def test_an_answer_that_is_no_number_is_no_proof(adapted: Any) -> None:
    import torch

    plain = copy.deepcopy(adapted).merge_and_unload()
    with torch.no_grad():
        plain.classifier.bias[0] = float("nan")
    with pytest.raises(ToolkitError, match="differ by nan"):
        merge.prove(adapted, plain, answers)


# The verb


def test_the_verb_says_how_few_learned(encoder: Path, few: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "finetune", encoder, "--data", few, "--adapt", "lora", "--rank", "2", "--epochs", "1", "--learning-rate",
        "3e-3", "-o", tmp_path / "tuned",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "of 15.6 million weights learned" in done.stdout
    receipt = json.loads((tmp_path / "tuned" / "receipt.json").read_text())
    assert receipt["parameters"]["adapt"] == "lora" and receipt["parameters"]["rank"] == 2
    assert receipt["report"]["merge"]["changed"] > 0


def test_a_model_without_a_body_has_no_adapter() -> None:
    from types import SimpleNamespace

    bare = SimpleNamespace(base_model_prefix="bert", config=SimpleNamespace(model_type="bert"))
    with pytest.raises(InputError, match="--adapt lora needs a transformers model with a body and a head"):
        methods.adapt(bare, "lora", rank=2, alpha=4, dropout=0.0)
