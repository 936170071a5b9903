"""`prune`: parts of a checkpoint go, those that real examples need least, and what is left recovers by training.

Of a network of convolutions, channels. Of an encoder, in this order: positions beyond the truncation length, tokens
that the data does not need, layers, feed-forward units, heads with their share of the width, and half of the weights
that are left, in the pattern of `toolkit.sparsity`. Sizes are rounded to the multiple that the target's kernels work
on. The output is a plain checkpoint folder whose config says what is in it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toolkit import architecture, importance, sparsity, training, vocabulary
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError
from toolkit.importance import Method
from toolkit.recipe import CHANNEL_MULTIPLE
from toolkit.runtime.text import TextEncoder
from toolkit.stages import Context, distill
from toolkit.storage import write_json
from toolkit.tasks.task import SPLITS, Task
from toolkit.tasks.text import TextTask, max_length

VERSION = 5
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers", "torch-pruning")
_FFN_MULTIPLE = 32


class Parameters(training.Hyperparameters):
    """What goes, how it is chosen, and how the rest recovers."""

    epochs: int = Field(2, ge=0, description="Of recovery; 0: none")
    patience: int | None = Field(None, ge=1)  # the learning rate falls to zero in the last epoch, mostly the best one
    learning_rate: float = Field(5e-5, gt=0)
    layers: int | None = Field(None, ge=1, description="How many stay")
    ffn: float = Field(0.0, ge=0, lt=1, description="Share of the feed-forward units that goes")
    heads: float = Field(0.0, ge=0, lt=1, description="Share of the heads that goes, and of the width with them")
    multiple: int | None = Field(
        None, ge=1, description="What the feed-forward width (None: 32) or the channels (None: 8) are rounded to"
    )
    coverage: float | None = Field(None, ge=0, le=1, description="Share of the data's tokens that keep their own")
    vocabulary: int | None = Field(None, ge=1, description="The most tokens that stay")
    positions: bool = Field(False, description="Whether positions beyond max_length go")
    channels: float = Field(0.0, ge=0, lt=1, description="Share of every convolution's channels that goes")
    sparsity: Literal["2:4"] | None = Field(None, description="Which weights of the encoder's linear layers are zero")
    importance: Method = "taylor"
    importance_examples: int = Field(512, ge=1)
    teaching: list[str] = Field([], description="Outputs of `teach` to recover by; none: recover by the labels")
    temperature: float = Field(2.0, gt=0)


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Prune the checkpoint `source`, let it recover, write it to `output`. Raises InputError."""
    with training.Interrupt() as stop:
        return _run(source, output, parameters, context, stop)


def _run(
    source: Path, output: Path, parameters: Parameters, context: Context, stop: training.Interrupt
) -> dict[str, Any]:
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it prunes
    context.progress(0, 1, "loading torch and the checkpoint")
    from toolkit.engines.torch import input_names, load_for_training

    task, labels = training.begin(context)
    model = load_for_training(source, task, labels, parameters.encoding)
    before = _shape(model, parameters)
    model, trimmed = _trim(source, output, model, parameters, task, context)
    model.config.save_pretrained(output)  # the task's encoder reads it; training writes the one that holds
    names = input_names(model, task)
    encoder = task.encoder(output, parameters.encoding, inputs=names)
    train = training.encode(task, context.data, "train", encoder, names)
    if parameters.layers is not None:
        kept = architecture.evenly(before["layers"], parameters.layers)
        model = architecture.cut(model, architecture.Cut(layers=kept))
    if parameters.ffn or parameters.heads:
        model = _narrow(model, train, parameters, context)
    if parameters.channels:
        _narrow_channels(model, train, parameters, context)
    report: dict[str, Any] = {
        "shape_before": before,
        "shape": _shape(model, parameters),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": trimmed,
        "sparsity": _thin(model, train, parameters, context) if parameters.sparsity else None,
    }
    if not parameters.epochs:
        model.save_pretrained(output)
    else:
        loss, divergence = training.from_labels(task), None
        if parameters.teaching:
            train, lesson = distill.taught(parameters.teaching, parameters.temperature, train, context)
            loss, divergence = distill.answers_loss(lesson, task, parameters.temperature), lesson.divergence
        report |= training.fit(
            model, parameters, context, stop, output, labels=labels, train=train, loss=loss, divergence=divergence
        )
    if parameters.sparsity:
        sparsity.check_written(output, sparsity.weight_names(model))
    return report


def _trim(
    source: Path, output: Path, model: Any, parameters: Parameters, task: Task, context: Context
) -> tuple[Any, dict[str, Any] | None]:
    """Positions and tokens that are not needed go; the tokenizer goes to `output`, rewritten if need be."""
    task.copy_files(source, output, parameters.encoding)
    if not parameters.positions and parameters.coverage is None and parameters.vocabulary is None:
        return model, None
    if not isinstance(task, TextTask):
        raise InputError(f"The task {task.NAME} has no vocabulary and no positions to prune.")
    longest = max_length(parameters.encoding)
    if parameters.positions and longest < architecture.shape(model.config)["positions"]:
        model = architecture.cut(model, architecture.Cut(positions=longest))
    if parameters.coverage is None and parameters.vocabulary is None:
        return model, None
    tokenizer = vocabulary.read(source)
    encoder = task.tokenizer(source, longest)
    inputs = _inputs(task, context)
    counts = vocabulary.count(encoder.ids, inputs["train"])
    coverage = 1.0 if parameters.coverage is None else parameters.coverage
    kept = vocabulary.choose(tokenizer, counts, coverage, parameters.vocabulary)
    kept = [index for index in kept if index < architecture.shape(model.config)["vocabulary"]]
    model = architecture.cut(model, architecture.Cut(vocabulary=kept))
    write_json(output / "tokenizer.json", vocabulary.rewrite(tokenizer, kept))
    config = output / "tokenizer_config.json"
    if config.exists():
        write_json(config, vocabulary.rewrite_config(json.loads(config.read_text(encoding="utf-8")), kept))
    for name in vocabulary.OTHER_FILES:
        (output / name).unlink(missing_ok=True)
    after = task.tokenizer(output, longest)
    return model, {
        "tokens_before": len(vocabulary.tokens(tokenizer)),
        "tokens": len(kept),
        "coverage": {split: _coverage(encoder, after, part, kept) for split, part in inputs.items() if part},
    }


def _inputs(task: Task, context: Context) -> dict[str, list[Any]]:
    assert context.data is not None  # noqa: S101
    return {split: [example.input for example in task.read_examples(context.data, split)] for split in SPLITS}


def _coverage(before: TextEncoder, after: TextEncoder, inputs: Sequence[Any], kept: list[int]) -> dict[str, float]:
    """What the smaller vocabulary costs: the share of tokens that stayed, and how much longer the texts got."""
    stays = set(kept)
    old = [before.ids(each) for each in inputs]
    total = sum(map(len, old))
    return {
        "tokens_kept": sum(index in stays for ids in old for index in ids) / total,
        "texts_unchanged": sum(all(index in stays for index in ids) for ids in old) / len(old),
        "length_ratio": sum(len(after.ids(each)) for each in inputs) / total,
    }


def _narrow(model: Any, train: training.Examples, parameters: Parameters, context: Context) -> Any:
    """Feed-forward units, and heads with their share of the width, go by importance."""
    sizes = architecture.shape(model.config)
    multiple = parameters.multiple or _FFN_MULTIPLE
    batches = training.sampled(train, parameters.importance_examples, context)
    return importance.narrowed(
        model,
        importance.measure(model, parameters.importance, batches, training.from_labels(train.task)),
        ffn=importance.rounded(sizes["ffn"], parameters.ffn, multiple) if parameters.ffn else None,
        heads=max(1, round(sizes["heads"] * (1 - parameters.heads))) if parameters.heads else None,
    )


def _shape(model: Any, parameters: Parameters) -> dict[str, int]:
    """The sizes of what the pruning is about."""
    if parameters.channels:
        from toolkit import channels

        return channels.shape(model)
    return architecture.shape(model.config)


def _narrow_channels(model: Any, train: training.Examples, parameters: Parameters, context: Context) -> None:
    """Channels of convolutions go by importance, in place."""
    from toolkit import channels

    channels.narrow(
        model,
        parameters.channels,
        parameters.multiple or CHANNEL_MULTIPLE,
        parameters.importance,
        training.sampled(train, parameters.importance_examples, context),
        training.from_labels(train.task),
        train.batch([0]).inputs,
    )


def _thin(model: Any, train: training.Examples, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Half of the weights of the encoder's linear layers become zero by importance, and stay zero."""
    batches = training.sampled(train, parameters.importance_examples, context)
    names = sparsity.weight_names(model)
    loss = training.from_labels(train.task)
    return sparsity.thin(model, importance.of_weights(model, parameters.importance, names, batches, loss))


def check(parameters: Parameters, source: Checkpoint, task: Task) -> None:
    """Refuse, before anything is run, a pruning that prunes nothing or cannot be done. Raises InputError."""
    if not (
        parameters.layers is not None
        or parameters.ffn
        or parameters.heads
        or parameters.positions
        or parameters.coverage is not None
        or parameters.vocabulary is not None
        or parameters.sparsity is not None
        or parameters.channels
    ):
        raise InputError(
            "Nothing to prune: name layers, a share of the ffn or of the heads, a vocabulary, positions or a sparsity; "
            "or a share of the channels of a network of convolutions."
        )
    if parameters.channels:
        _check_channels(parameters, source, task)
        return
    architecture.refuse_prompt(source.config)
    architecture.family(str(source.config["model_type"]))
    if parameters.layers is not None:
        architecture.evenly(source.layers, parameters.layers)
    if parameters.coverage is not None or parameters.vocabulary is not None:
        vocabulary.check(vocabulary.read(source.folder), parameters.vocabulary)


def _check_channels(parameters: Parameters, source: Checkpoint, task: Task) -> None:
    if not task.is_convolutional(source):
        raise InputError(f"--channels: {source.folder} is no network of convolutions.")
    if parameters.ffn or parameters.heads or parameters.layers is not None or parameters.sparsity is not None:
        raise InputError("--channels goes with no other pruning: a network of convolutions has no heads and no ffn.")
