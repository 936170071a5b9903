"""Calibration examples: which ones are taken, and what is wrong with those that a user brings.

Ranges of activations hold for inputs like those that they were taken from. Random data gives ranges of nothing, and
no later gate can tell; so it is refused. What makes ranges worse is warned of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from toolkit import data as tables
from toolkit.errors import InputError
from toolkit.tasks.task import Task

FEWEST = 100  # below it the extremes of an activation still move with every further example
UNSTABLE = 0.5  # a range that is so much wider by one half of the examples than by the other


class Source(BaseModel):
    """Where calibration examples come from: a file of the user's, or the training part of the prepared data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(256, ge=1)
    encoding: dict[str, Any] = Field({}, description="Settings of the task's encoder")
    file: str | None = None
    options: dict[str, Any] = Field({}, description="The task's settings for reading the file")


def choose(labels: Sequence[int], lengths: Sequence[int], count: int, seed: int) -> list[int]:
    """Indices of at most `count` examples: each class in its proportion, and within a class one of every part of its
    range of lengths. Ascending."""
    if count >= len(labels):
        return list(range(len(labels)))
    generator = np.random.default_rng(seed)
    classes = {label: [i for i, own in enumerate(labels) if own == label] for label in sorted(set(labels))}
    wanted = {label: max(1, count * len(members) // len(labels)) for label, members in classes.items()}
    largest = sorted(classes, key=lambda label: -len(classes[label]))
    for label in (largest * count)[: max(0, count - sum(wanted.values()))]:
        wanted[label] = min(wanted[label] + 1, len(classes[label]))
    chosen: list[int] = []
    for label, members in classes.items():
        ordered = [members[i] for i in generator.permutation(len(members))]
        ordered.sort(key=lambda i: lengths[i])
        parts = np.array_split(ordered, min(wanted[label], len(ordered)))
        chosen += [int(generator.choice(part)) for part in parts]
    return sorted(chosen)[:count]


def duplicates(given: Sequence[Any], evaluation: Sequence[Any]) -> list[str]:
    """Warn of calibration examples that the gates measure on; both as `Task.identity` gives them."""
    held_out = set(evaluation)
    count = sum(each in held_out for each in given)
    if not count:
        return []
    return [
        f"{count} of the {len(given)} calibration examples are also in the evaluation set: the measured score will be "
        "better than it is."
    ]


def too_few(given: Sequence[Any]) -> list[str]:
    """Warn of fewer different examples than ranges settle with."""
    different = len(set(given))
    if different >= FEWEST:
        return []
    return [f"Only {different} different calibration examples; ranges settle with {FEWEST} or more."]


def missing_classes(labels: Sequence[int] | None, names: Sequence[str]) -> list[str]:
    """Warn of classes without a calibration example."""
    if labels is None:
        return []
    missing = [name for index, name in enumerate(names) if index not in set(labels)]
    return [f"No calibration example of the class {', '.join(missing)}."] if missing else []


def unstable(ranges: Mapping[str, float]) -> list[str]:
    """Warn of layers whose range differs between the halves of the examples (`toolkit.ranges.instability`)."""
    wide = sorted((name for name, value in ranges.items() if value > UNSTABLE), key=lambda name: -ranges[name])
    if not wide:
        return []
    return [
        f"The activation range of {len(wide)} of {len(ranges)} layers is not stable: by one half of the calibration "
        f"examples it is {1 + ranges[wide[0]]:.1f} times as wide as by the other in {wide[0]}. Use more examples, or a "
        "calibration that clips."
    ]


def collect(source: Source, folder: Path, task: Task, data: Path | None, seed: int) -> tuple[list[Any], list[str]]:
    """(the calibration inputs, warnings). `folder` is the checkpoint or artifact, `data` the prepared examples.

    Raises InputError if there are none, or if they are random.
    """
    if data is None:
        raise InputError("This needs examples of the task; name labelled data with --data.")
    names: list[str] = json.loads((data / "labels.json").read_text(encoding="utf-8"))
    train = task.read_examples(data, "train")
    held_out = task.read_examples(data, "eval")
    labels: list[int] | None
    if source.file is not None:
        check_file(Path(source.file), task)
        inputs, labels = task.read_calibration(Path(source.file), source.options, names)
    elif train:
        inputs, labels = [example.input for example in train], _classes(task, train)
    else:
        raise InputError(
            "The prepared data is for evaluation only: it has no training part to take calibration examples from, and "
            "the gates measure on the rest. Name a file of other texts with --calibration-data."
        )
    sizes = task.sizes(inputs, folder, source.encoding)
    chosen = choose(labels or [0] * len(inputs), sizes, source.samples, seed)
    given = [inputs[i] for i in chosen]
    identities = [task.identity(each) for each in given]
    warnings = [
        *task.doubts(given, [example.input for example in train or held_out], folder, source.encoding),
        *duplicates(identities, [task.identity(example.input) for example in held_out]),
        *too_few(identities),
        *missing_classes([labels[i] for i in chosen] if labels else None, names),
    ]
    return given, warnings


def _classes(task: Task, examples: Sequence[Any]) -> list[int] | None:
    """One class per example, if examples have one."""
    truth = task.truth(examples).tolist()
    return truth if len(truth) == len(examples) else None


def check_file(path: Path, task: Task) -> None:
    """Refuse what can be seen beforehand to be no file of calibration examples. Raises InputError."""
    if path.suffix.lower() == ".txt":
        tables.check_texts(path)
    else:
        task.check_data(path)
