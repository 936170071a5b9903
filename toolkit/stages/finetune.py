"""`finetune`: all weights of a checkpoint on the task's own data, by the loop of `toolkit.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import training
from toolkit.stages import Context

VERSION = 3
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers")


class Parameters(training.Hyperparameters):
    """Hyperparameters of the loop; fine-tuning has none of its own."""


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
    return training.fit(
        model, parameters, context, stop, output,
        labels=labels, train=train, loss=training.from_labels(task), files=source,
    )  # fmt: skip
