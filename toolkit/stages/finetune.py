"""`finetune`: a checkpoint learns the task's own data, by the loop of `toolkit.training`: all of its weights, or few of
them (`toolkit.adapters`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from toolkit import adapters, training
from toolkit.stages import Context

VERSION = 4
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tokenizers")


class Parameters(training.Hyperparameters):
    """Hyperparameters of the loop, and which weights learn."""

    adapt: adapters.Method = "full"
    rank: int = Field(8, ge=1, description="Of `lora`: the width of its matrices")
    alpha: int = Field(16, ge=1, description="Of `lora`: their product is multiplied by alpha / rank")
    adapter_dropout: float = Field(0.0, ge=0, lt=1)
    balanced: bool = Field(False, description="Whether rare classes count as much as frequent ones")
    label_smoothing: float = Field(0.0, ge=0, lt=1)


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
    train = training.encode(task, context.data, "train", encoder, names)
    model = adapters.adapt(
        model, parameters.adapt, rank=parameters.rank, alpha=parameters.alpha, dropout=parameters.adapter_dropout
    )
    counted = adapters.shares(model)
    merger = None
    if adapters.is_adapted(model):
        merger = adapters.Merger(training.encode(task, context.data, "validation", encoder, names))
    weights = training.balanced_weights(train, len(labels)) if parameters.balanced else None
    loss = training.from_labels(task, weights=weights, smoothing=parameters.label_smoothing)
    report = training.fit(
        model, parameters, context, stop, output,
        labels=labels, train=train, loss=loss, files=source,
        save=merger.save if merger else None,
    )  # fmt: skip
    return {**report, **counted, **(merger.as_dict() if merger else {})}
