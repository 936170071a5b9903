"""`finetune`: a checkpoint learns the task's own data, by the loop of `toolkit.training`: all of its weights, or few of
them (`toolkit.adapters`). One that has learned other data before is kept from forgetting them, if they are given: by
rehearsal (`toolkit.training.rehearsal`), by elastic weight consolidation (`toolkit.training.ewc`), or by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from toolkit import adapters, training
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.stages import Context
from toolkit.tasks.task import Task
from toolkit.training import ewc, rehearsal
from toolkit.training.augmentation import Augmenter

VERSION = 4
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tokenizers")


class Continual(BaseModel):
    """What the source has learned before, and what keeps it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    old: list[str] = Field(min_length=1, description="Outputs of `prepare`, in the order in which they were learned")
    rehearsal: float = Field(0.5, ge=0, description="Old examples per new one in every epoch")
    ewc: float = Field(0.0, ge=0, description="Strength of elastic weight consolidation")
    ewc_examples: int = Field(256, ge=1, description="Old examples that say how important each weight is")


class Parameters(training.Hyperparameters):
    """Hyperparameters of the loop, which weights learn, and what keeps them from learning by heart."""

    adapt: adapters.Method = "full"
    rank: int = Field(8, ge=1, description="Of `lora`: the width of its matrices")
    alpha: int = Field(16, ge=1, description="Of `lora`: their product is multiplied by alpha / rank")
    adapter_dropout: float = Field(0.0, ge=0, lt=1)
    balanced: bool = Field(False, description="Whether rare classes count as much as frequent ones")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: dict[str, Any] = Field({}, description="Settings of the task's augmentation; off without any")
    r_drop: float = Field(0.0, ge=0, allow_inf_nan=False, description="Weight of the distance between two dropouts")
    adversarial: float = Field(0.0, ge=0, allow_inf_nan=False, description="How far embeddings are moved")
    continual: Continual | None = None


def check(parameters: Parameters, task: Task, source: Checkpoint) -> None:
    """Refuse, before anything is run, what such a model cannot learn by. Raises InputError."""
    if parameters.r_drop and task.ANSWERS != "classes":
        raise InputError(f"--training r_drop compares classes, and {task.NAME} has none. Leave it out.")
    if parameters.adversarial and source.config.get("model_type") == "module":
        raise InputError(
            "--training adversarial needs a transformers model; a network has no input embeddings. Leave it out."
        )


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Fine-tune the checkpoint `source`; write the best epoch as a Hugging Face folder to `output`."""
    with training.Interrupt() as stop:
        return _run(source, output, parameters, context, stop)


@dataclass(frozen=True)
class _Material:
    """What is learned and what judges it; `score` None: the task's own. `before` are old training examples, `told` is
    for the receipt."""

    train: training.Examples
    validation: training.Examples
    score: Callable[[Any], float] | None = None
    before: training.Examples | None = None
    told: dict[str, Any] = field(default_factory=dict)


def _material(
    task: Task, labels: Sequence[str], encoder: Encoder, names: Sequence[str], given: Continual | None, data: Path,
    augmenter: Augmenter | None,
) -> _Material:  # fmt: skip
    if given is None:
        train = training.encode(task, data, "train", encoder, names, augmenter)
        return _Material(train, training.encode(task, data, "validation", encoder, names))
    update = rehearsal.Update(task, data, [Path(folder) for folder in given.old])
    rehearsed = update.train(encoder, names, given.rehearsal, augmenter)
    validation, score = update.validation(encoder, names, labels)
    before = training.Examples(task, encoder, update.before(), names) if given.ewc else None
    told = {"left_out": update.left_out, "rehearsed": rehearsed.rehearsed}
    return _Material(rehearsed, validation, score, before, told)


def _run(
    source: Path, output: Path, parameters: Parameters, context: Context, stop: training.Interrupt
) -> dict[str, Any]:
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it trains
    context.progress(0, 1, "loading torch and the checkpoint")
    from toolkit.engines.torch import input_names, load_for_training

    task, labels = training.begin(context)
    model = load_for_training(source, task, labels, parameters.encoding)
    names = input_names(model, task)
    encoder = task.encoder(source, parameters.encoding, inputs=names)
    augmenter = training.augmenter(task, parameters.augment, labels, context.seed)
    material = _material(task, labels, encoder, names, parameters.continual, context.data, augmenter)
    model = adapters.adapt(
        model, parameters.adapt, rank=parameters.rank, alpha=parameters.alpha, dropout=parameters.adapter_dropout
    )
    counted = adapters.shares(model)
    merger = None
    if adapters.is_adapted(model):
        merger = adapters.Merger(material.validation)
    weights = training.balanced_weights(material.train, len(labels)) if parameters.balanced else None
    if parameters.r_drop:
        training.check_dropout(model, material.train.batch(range(min(2, len(material.train)))))
    loss = training.from_labels(task, weights=weights, smoothing=parameters.label_smoothing, r_drop=parameters.r_drop)
    if parameters.adversarial:
        loss = training.adversarial(loss, training.input_embeddings(model), parameters.adversarial)
    if material.before is not None and parameters.continual is not None:
        found = ewc.importance(model, material.before, parameters.continual.ewc_examples, context)
        loss = ewc.Consolidation(model, found, parameters.continual.ewc).added_to(loss)
    report = training.fit(
        model, parameters, context, stop, output,
        labels=labels, train=material.train, validation=material.validation, score=material.score, loss=loss,
        files=source, save=merger.save if merger else None,
    )  # fmt: skip
    return {**report, **counted, **material.told, **(merger.as_dict() if merger else {})}
