"""`finetune`: a checkpoint learns the task's own data, by the loop of `toolkit.training`: all of its weights, or few of
them (`toolkit.adapters`). One that has learned other data before is kept from forgetting them, if they are given: by
rehearsal (`toolkit.training.rehearsal`), by elastic weight consolidation (`toolkit.training.ewc`), or by both."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from toolkit import training
from toolkit.adapters import Method, learner, methods
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError, ToolkitError
from toolkit.stages import Context
from toolkit.tasks.task import Task
from toolkit.training import ewc, pseudo_labels, range_test
from toolkit.training.material import Material, Materials

VERSION = 5
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

    adapt: Method = "full"
    rank: int = Field(8, ge=1, description="Of `lora`: the width of its matrices; of `adalora`: on average in the end")
    alpha: int = Field(16, ge=1, description="Of both: their product is multiplied by alpha / rank")
    adapter_dropout: float = Field(0.0, ge=0, lt=1)
    prompt_tokens: int = Field(16, ge=1, description="Of `prompt` and `prefix`")
    balanced: bool = Field(False, description="Whether rare classes count as much as frequent ones")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    augment: dict[str, Any] = Field({}, description="Settings of the task's augmentation; off without any")
    r_drop: float = Field(0.0, ge=0, allow_inf_nan=False, description="Weight of the distance between two dropouts")
    adversarial: float = Field(0.0, ge=0, allow_inf_nan=False, description="How far embeddings are moved")
    find_learning_rate: bool = Field(False, description="Whether a range test finds it, whatever it was set to")
    folds: int | None = Field(None, ge=2, description="Cross-validate, then learn from training and validation part")
    continual: Continual | None = None
    pseudo: str | None = Field(None, description="Output of `teach` whose confident answers are labels, too")
    confidence: float = Field(0.9, gt=0, le=1, description="Of an answer that becomes a label")


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
    if parameters.folds is None:
        return _learn(source, output, parameters, context, stop, lambda materials: _chosen(materials, parameters))
    reports = []
    for number in range(parameters.folds):
        report = _fold(source, output / "fold", parameters, context, stop, number)
        if report["interrupted"]:
            raise ToolkitError(f"Interrupted in fold {number + 1} of {parameters.folds}. The same command goes on.")
        reports.append(report)
    # As long as was best for models that learned a little less; nothing is left to judge its epochs.
    epochs = max(1, round(float(np.mean([report["best_epoch"] for report in reports]))))
    given = parameters.model_copy(update={"epochs": epochs, "patience": None})
    final = _learn(source, output, given, context, stop, Materials.everything, keep_last=True)
    scores = [report["validation_score"] for report in reports]
    return {
        **final,
        "validation_score": float(np.mean(scores)),
        "validation_score_deviation": float(np.std(scores, ddof=1)),
        "folds": [{name: report[name] for name in ("validation_score", "best_epoch", "history")} for report in reports],
    }


def _fold(
    source: Path, output: Path, parameters: Parameters, context: Context, stop: training.Interrupt, number: int
) -> dict[str, Any]:
    """What a model answers to one fold that learned from the others; it is thrown away."""
    count = parameters.folds or 0
    own = replace(
        context,
        resume=context.resume / f"fold-{number}" if context.resume else None,
        progress=lambda done, total, text: context.progress(done, total, f"fold {number + 1} of {count}: {text}"),
    )
    output.mkdir()
    try:
        return _learn(source, output, parameters, own, stop, lambda m: m.folds(count, context.seed)[number])
    finally:
        shutil.rmtree(output)


def _chosen(materials: Materials, parameters: Parameters) -> Material:
    """What the parameters say to learn from."""
    given = parameters.continual
    if given is not None:
        return materials.updated([Path(folder) for folder in given.old], given.rehearsal, bool(given.ewc))
    if parameters.pseudo is None:
        return materials.split()
    labelled = len(materials.task.read_examples(materials.data, "train"))
    further, told = pseudo_labels.taken(Path(parameters.pseudo), materials.task, labelled, parameters.confidence)
    return replace(materials.split(further), told=told)


def _learn(
    source: Path,
    output: Path,
    parameters: Parameters,
    context: Context,
    stop: training.Interrupt,
    choose: Callable[[Materials], Material],
    *,
    keep_last: bool = False,
) -> dict[str, Any]:
    """Train what `source` holds on the material that is chosen, and write the best epoch, or the last one."""
    assert context.data is not None  # noqa: S101
    from toolkit.engines.torch import input_names, load_for_training

    task, labels = training.begin(context)
    model = load_for_training(source, task, labels, parameters.encoding)
    names = input_names(model, task)
    encoder = task.encoder(source, parameters.encoding, inputs=names)
    augmenter = training.augmenter(task, parameters.augment, labels, context.seed)
    material = choose(Materials(task, encoder, names, labels, context.data, augmenter))
    made = learner.make(
        model, parameters.adapt, train=material.train, validation=material.validation, rank=parameters.rank,
        alpha=parameters.alpha, dropout=parameters.adapter_dropout, prompt_tokens=parameters.prompt_tokens,
        seed=context.seed,
    )  # fmt: skip
    counted = methods.shares(made.model)
    loss = _loss(made.model, task, len(labels), material, parameters, context)
    if made.regularized is not None:
        loss = made.regularized(loss)
    found: dict[str, Any] = {}
    if parameters.find_learning_rate:
        rate, tried = range_test.find(made.model, material.train, loss, parameters, context)
        parameters = parameters.model_copy(update={"learning_rate": rate})
        found = {"learning_rate": rate, "range_test": tried}
    report = training.fit(
        made.model, parameters, context, stop, output,
        labels=labels, train=material.train, validation=material.validation, score=material.score, loss=loss,
        files=source, follower=made.follower, save=made.save, keep_last=keep_last,
    )  # fmt: skip
    return {**report, **counted, **material.told, **found}


def _loss(
    model: Any, task: Task, classes: int, material: Material, parameters: Parameters, context: Context
) -> training.Loss:
    """What the training makes small."""
    weights = training.balanced_weights(material.train, classes) if parameters.balanced else None
    if parameters.r_drop:
        training.check_dropout(model, material.train.batch(range(min(2, len(material.train)))))
    loss = training.from_labels(task, weights=weights, smoothing=parameters.label_smoothing, r_drop=parameters.r_drop)
    if parameters.adversarial:
        loss = training.adversarial(loss, training.input_embeddings(model), parameters.adversarial)
    if material.before is not None and parameters.continual is not None:
        needed = ewc.importance(model, material.before, parameters.continual.ewc_examples, context)
        loss = ewc.Consolidation(model, needed, parameters.continual.ewc).added_to(loss)
    return loss
