"""`finetune`: a checkpoint learns the task's own data, by the loop of `toolkit.training`: all of its weights, or few of
them (`toolkit.adapters`)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from toolkit import training
from toolkit.adapters import PROMPTS, Method, adalora, merge, methods
from toolkit.stages import Context

VERSION = 4
LIBRARIES = ("torch", "transformers", "accelerate", "peft", "tokenizers")


class Parameters(training.Hyperparameters):
    """Hyperparameters of the loop, and which weights learn."""

    adapt: Method = "full"
    rank: int = Field(8, ge=1, description="Of `lora`: the width of its matrices; of `adalora`: on average in the end")
    alpha: int = Field(16, ge=1, description="Of both: their product is multiplied by alpha / rank")
    adapter_dropout: float = Field(0.0, ge=0, lt=1)
    prompt_tokens: int = Field(16, ge=1, description="Of `prompt` and `prefix`")
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
    weights = training.balanced_weights(train, len(labels)) if parameters.balanced else None
    loss = training.from_labels(task, weights=weights, smoothing=parameters.label_smoothing)
    witness = merge.Witness(training.encode(task, context.data, "validation", encoder, names))
    learner = _learner(model, train, loss, witness, parameters, context)
    counted = methods.shares(learner.model)
    report = training.fit(
        learner.model, parameters, context, stop, output,
        labels=labels, train=train, loss=learner.loss, files=source, follower=learner.follower, save=learner.save,
    )  # fmt: skip
    return {**report, **counted}


@dataclass(frozen=True)
class _Learner:
    """A model of which all or few weights learn, by which loss, what follows the training, and how it is saved."""

    model: Any
    loss: training.Loss
    follower: training.Follower | None = None
    save: training.Save | None = None


def _learner(
    model: Any,
    train: training.Examples,
    loss: training.Loss,
    witness: merge.Witness,
    parameters: Parameters,
    context: Context,
) -> _Learner:
    """The learner that the parameters ask for. Raises InputError for a model that cannot be one."""
    method = parameters.adapt
    if method in PROMPTS:
        from toolkit.adapters import prompts
        from toolkit.engines.torch import load_model

        ids = prompts.drawn(train, parameters.prompt_tokens, context.seed)
        prompted = prompts.begin(model, method, ids, train.names)
        keeper = prompts.Keeper(prompted, witness, functools.partial(load_model, task=train.task))
        return _Learner(prompted, loss, save=keeper.save)
    model = methods.adapt(
        model, method, rank=parameters.rank, alpha=parameters.alpha, dropout=parameters.adapter_dropout
    )
    if not methods.is_adapted(model):
        return _Learner(model, loss)
    if method != "adalora":
        return _Learner(model, loss, save=functools.partial(merge.save, answers=witness))
    allocation = adalora.Allocation(model)

    def save(model: Any, folder: Path) -> dict[str, Any]:
        return {**merge.save(model, folder, witness), **allocation.ranks()}

    return _Learner(model, allocation.regularized(loss), allocation, save)
