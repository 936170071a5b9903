"""Continual update: a trained model learns new data and keeps what it knew. `toolkit finetune --continue-from` runs it.

    a model and its old data → prepare the new ones → evaluate → finetune → evaluate → gates → checkpoint

The new data take over the model's labels and its encoding. The old evaluation examples are those from when it was
trained: what it forgot is measured on what it was measured on.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import checkpoint as checkpoints
from toolkit import conversion, planning, provenance, recovery, steps
from toolkit.answers.classes import class_changes
from toolkit.cache import Cache, open_cache
from toolkit.checkpoint import Checkpoint
from toolkit.devices import local
from toolkit.errors import InputError, RefusedError
from toolkit.gates import Verdict, classes, forgetting
from toolkit.planning import Options
from toolkit.provenance import RECEIPT, Origin, TrainedOn
from toolkit.runner import Finished, Reporter, Runner, Silent
from toolkit.storage import check_output
from toolkit.training.rehearsal import Update

REHEARSAL = 0.5  # old examples per new one


@dataclass(frozen=True)
class _Data:
    """The old data and the new ones, prepared, and how all of them are encoded."""

    old: list[Finished]
    new: Finished
    trained_on: list[TrainedOn]  # the old ones, then the new ones
    encoding: dict[str, Any]


@dataclass(frozen=True)
class _Answers:
    """A model's answers to the old and the new evaluation examples, float[rows, width]; None: there are no new ones."""

    old: NDArray[Any]
    new: NDArray[Any] | None


def update(
    output: str,
    options: Mapping[str, Any],
    *,
    continue_from: str,
    old_data: Sequence[str] = (),
    rehearsal: float | None = None,
    ewc: float | None = None,
    max_forgetting: str | None = None,
    reporter: Reporter | None = None,
    around: Callable[[Runner], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, Any]:
    """Let the model behind `continue_from`, a bundle or a checkpoint folder, learn the data that `options` name.

    `options` are fields of `toolkit.planning.Options`; `old_data` are files that the model was trained on, where
    nothing says which they were, or where they lie now. `rehearsal` is how many old examples come with each new one,
    `ewc` the strength of elastic weight consolidation, `max_forgetting` what the score on the old data may lose ("1%":
    one point). Writes a checkpoint folder. Raises InputError, and RefusedError after writing it if the model forgot too
    much.
    """
    kept = {"rehearsal": float(REHEARSAL if rehearsal is None else rehearsal), "ewc": float(ewc or 0)}
    limit = forgetting.parse(max_forgetting or forgetting.DEFAULT)
    given = planning.options(**{**options, "output": output})
    _check(given)
    check_output(Path(output), given.overwrite, RECEIPT)
    cache = open_cache(Path(given.cache_dir) if given.cache_dir else None)
    origin = provenance.find(Path(continue_from), given, cache)
    _check_origin(origin, given)
    said = reporter or Silent()

    def of_then(seed: int) -> Runner:
        return Runner(cache, origin.task.NAME, seed, said)

    runner = Runner(cache, origin.task.NAME, given.seed, said, given.force)
    with around(runner):
        data = _prepared(origin, old_data, given, cache, runner, of_then)
        learned = Update(origin.task, data.new.output, [each.output for each in data.old])
        if kept["rehearsal"]:
            learned.rehearsable()
        if kept["ewc"]:
            learned.before()
    again = of_then(data.trained_on[0].seed)
    with around(again), again.warmed():
        checkpoint = recovery.checkpoint_of(origin, data.old, given, cache, again)
    with around(runner), runner.warmed():
        before = _answers(runner, checkpoint, data, learned, "before")
        finished = _finetune(runner, origin, checkpoint, data, kept, given)
        after = _answers(runner, checkpoints.inspect(finished.output, origin.task), data, learned, "after")
    found, verdicts = _judged(origin, learned, before, after, limit, given.seed)
    refusals = [f"{verdict.gate}: {verdict.reason}" for verdict in verdicts if not verdict.passed]
    facts = {
        "accepted": not refusals,
        "refusals": refusals,
        "continual": {
            "continued_from": str(origin.path),
            "checkpoint": checkpoint.sha256,
            **kept,
            **found,
            "gates": [verdict.as_dict() for verdict in verdicts],
            "notes": origin.notes,
        },
    }
    trained_on = [each.model_dump(mode="json") for each in data.trained_on]
    result = {**steps.publish(finished, Path(output), given.overwrite, **facts, trained_on=trained_on), **facts}
    if refusals:
        raise RefusedError(
            f"The update loses too much of what the model knew; it was kept in {output}, marked as refused. It was "
            f"refused by {refusals[0]}. Rehearse more (--rehearsal), hold the weights (--ewc) or learn less.",
            bundle=result,
        )
    return result


# Checks


def _check(given: Options) -> None:
    """Refuse what cannot go together, before anything is read. Raises InputError."""
    if given.model:
        raise InputError(f"Both MODEL ({given.model}) and --continue-from name what to train; leave one of them out.")
    if given.data is None:
        raise InputError("Name the new labelled examples with --data.")
    if given.weights is not None:
        raise InputError(f"--weights {given.weights}: --continue-from brings weights of its own.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("--continue-from trains in one process; start it without `accelerate launch`.")
    if planning.further(given.training).get("folds"):
        raise InputError("--training folds does not go with --continue-from: old examples judge as they did before.")


def _check_origin(origin: Origin, given: Options) -> None:
    assert given.data is not None  # noqa: S101 - checked before
    if given.task not in (None, origin.task.NAME):
        raise InputError(f"--task {given.task}: {origin.path} was trained for {origin.task.NAME}.")
    if given.labels is not None and list(given.labels) != origin.labels:
        raise InputError(
            f"--labels {','.join(given.labels)}: {origin.path} has labels of its own ({', '.join(origin.labels)})."
        )
    origin.task.check_data(Path(given.data))


# Data


def _prepared(
    origin: Origin,
    files: Sequence[str],
    given: Options,
    cache: Cache,
    runner: Runner,
    of_then: Callable[[int], Runner],
) -> _Data:
    """The old data split as they were then, and the new ones by the same labels and encoding. Raises InputError."""
    entries = origin.data or [_untold(origin, file, given) for file in files]
    if not entries:
        raise InputError(f"Nothing in {origin.path} says what it was trained on; name the file with --old-data.")
    old = []
    for entry, place in zip(entries, _places(origin, entries, files), strict=True):
        old.append(recovery.prepared(origin, entry, place, given, cache, of_then(entry.seed)))
        labels = json.loads((old[-1].output / "labels.json").read_text(encoding="utf-8"))
        if labels != origin.labels:
            raise InputError(
                f"{origin.path} was not trained on {place or entry.parameters['data']}: it knows the labels "
                f"{', '.join(origin.labels)}, the data have {', '.join(labels)}."
            )
    encoding = origin.encoding or old[0].report["encoding"]
    parameters = _parameters(origin, str(given.data), given, origin.task.settings_that_keep(encoding))
    sha256 = origin.task.data_sha256(parameters)
    new = conversion.prepare_data(runner, origin.encoder, parameters, sha256)
    if new.report["encoding"] != encoding:
        raise InputError(
            f"{given.data} would be read in another way than what {origin.path} was trained on; leave out --max-length "
            "and what else says how examples are encoded."
        )
    return _Data(old, new, [*entries, provenance.trained_on(parameters, sha256, given.seed, new)], encoding)


def _parameters(origin: Origin, file: str, given: Options, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of `prepare` for a user's file, by the model's labels and `kept` settings. Raises InputError."""
    shared = {
        "data": file,
        "where": [list(pair) for pair in given.where],
        "drop_missing": given.drop_missing,
        "known_labels": origin.labels,
        **kept,
    }
    return origin.task.preparation(shared, given.options)


def _untold(origin: Origin, file: str, given: Options) -> TrainedOn:
    """Data of which the user alone says that the model was trained on them. Raises InputError."""
    assert origin.checkpoint is not None  # noqa: S101 - a bundle says what it was trained on
    origin.task.check_data(Path(file))
    parameters = _parameters(origin, file, given, origin.task.settings_of(origin.checkpoint))
    return TrainedOn(parameters=parameters, data_sha256=origin.task.data_sha256(parameters), seed=given.seed)


def _places(origin: Origin, entries: Sequence[TrainedOn], files: Sequence[str]) -> list[str | None]:
    """Where each of the old data lie by what the user says, told by their content; None: where they were then. Raises
    InputError for a file that is none of several."""
    if len(entries) == len(files) == 1:
        return list(files)
    places: list[str | None] = [None] * len(entries)
    for file in files:
        origin.task.check_data(Path(file))
        place = next((i for i, entry in enumerate(entries) if _is_same(origin, entry, file)), None)
        if place is None:
            raise InputError(
                f"--old-data {file} is none of the {len(entries)} files that {origin.path} was trained on: "
                f"{', '.join(str(entry.parameters['data']) for entry in entries)}."
            )
        places[place] = file
    return places


def _is_same(origin: Origin, entry: TrainedOn, file: str) -> bool:
    try:
        return origin.task.data_sha256({**entry.parameters, "data": file}) == entry.data_sha256
    except InputError:  # it cannot be read as those were
        return False


# Stages


def _finetune(
    runner: Runner,
    origin: Origin,
    checkpoint: Checkpoint,
    data: _Data,
    kept: Mapping[str, float],
    given: Options,
) -> Finished:
    parameters = {**planning.hyperparameters(given, origin.task, checkpoint), "encoding": data.encoding}
    return runner.run(
        "finetune",
        checkpoint.folder,
        {**parameters, "continual": {**kept, "old": [str(each.output) for each in data.old]}},
        title="finetune",
        reason=f"{origin.path} learns new data",
        inputs={"source": checkpoint.sha256, **{f"old {i}": each.sha256 for i, each in enumerate(data.old)}},
        data=data.new,
        threads=local.cores(),
        key_parameters={**parameters, "tensorboard": None, "track": [], "continual": kept},
        resumable=True,
        with_torch=True,
    )


def _answers(runner: Runner, checkpoint: Checkpoint, data: _Data, learned: Update, when: str) -> _Answers:
    """Run the evaluation examples through a checkpoint, and keep the answers to those that count."""

    def answers(prepared: Finished, kept: Sequence[int], what: str) -> list[NDArray[Any]]:
        finished = runner.run(
            "evaluate", checkpoint.folder, {"engine": "torch", "encoding": data.encoding},
            title=f"evaluate on {what}, {when}", reason="what is forgotten and learned shows on examples held out",
            inputs={"source": checkpoint.sha256}, data=prepared, with_torch=True,
        )  # fmt: skip
        counts = [len(learned.task.truth([e])) for e in learned.task.read_examples(prepared.output, "eval")]
        rows = np.split(np.load(finished.output / "answers.npy", allow_pickle=False), np.cumsum(counts)[:-1])
        return [rows[i] for i in kept]

    old = [
        each
        for number, (prepared, kept) in enumerate(zip(data.old, learned.kept_old, strict=True), start=1)
        for each in answers(prepared, kept["eval"], "old data" if len(data.old) == 1 else f"old data {number}")
    ]
    new = answers(data.new, learned.kept_new["eval"], "new data") if learned.new["eval"] else []
    return _Answers(np.concatenate(old), np.concatenate(new) if new else None)


# Judgement


def _judged(
    origin: Origin, learned: Update, before: _Answers, after: _Answers, limit: float, seed: int
) -> tuple[dict[str, Any], list[Verdict]]:
    """What was forgotten and what was learned, and what the gates say of it."""
    task, labels = origin.task, origin.labels
    examples, fresh = learned.past.examples["eval"], learned.new["eval"]
    first, second = (float(task.metrics(each.old, examples, labels)["score"]) for each in (before, after))
    verdicts = [forgetting.check(first, second, limit, task.SCORE_NAME, len(examples))]
    old: dict[str, Any] = {"examples": len(examples), "before": first, "after": second}
    old["forgetting_points"] = forgetting.points(first, second)
    if task.ANSWERS == "classes":
        old["classes"] = class_changes(before.old, after.old, task.truth(examples), labels, seed)
        verdicts.append(classes.check(old["classes"], limit))
    new = None
    if before.new is not None and after.new is not None:
        scores = [float(task.metrics(answers, fresh, labels)["score"]) for answers in (before.new, after.new)]
        new = {"examples": len(fresh), "before": scores[0], "after": scores[1]}
    return {"score_name": task.SCORE_NAME, "old": old, "new": new}, verdicts
