"""`finetune`: a checkpoint learns the task's own data, by the loop of `toolkit.training`: all of its weights, or few of
them (`toolkit.adapters`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from toolkit import adapters, training
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError
from toolkit.stages import Context
from toolkit.tasks.task import Task

VERSION = 4
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tokenizers")


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
    train = training.encode(task, context.data, "train", encoder, names, augmenter)
    model = adapters.adapt(
        model, parameters.adapt, rank=parameters.rank, alpha=parameters.alpha, dropout=parameters.adapter_dropout
    )
    counted = adapters.shares(model)
    merger = None
    if adapters.is_adapted(model):
        merger = adapters.Merger(training.encode(task, context.data, "validation", encoder, names))
    weights = training.balanced_weights(train, len(labels)) if parameters.balanced else None
    if parameters.r_drop:
        training.check_dropout(model, train.batch(range(min(2, len(train)))))
    loss = training.from_labels(task, weights=weights, smoothing=parameters.label_smoothing, r_drop=parameters.r_drop)
    if parameters.adversarial:
        loss = training.adversarial(loss, training.input_embeddings(model), parameters.adversarial)
    report = training.fit(
        model, parameters, context, stop, output,
        labels=labels, train=train, loss=loss, files=source,
        save=merger.save if merger else None,
    )  # fmt: skip
    return {**report, **counted, **(merger.as_dict() if merger else {})}
