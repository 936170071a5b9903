"""Self-training: a model's own answers to examples without labels become labels, where it is sure (Yarowsky, 1995; Lee,
2013)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputError
from toolkit.tasks.task import Example, Task


def check(task: Task) -> None:
    """Refuse a task whose examples have not one class each. Raises InputError."""
    if task.ANSWERS != "classes" or task.GROUP > 1 or type(task).truth is not Task.truth:
        raise InputError(f"--unlabeled: self-training takes tasks whose examples have one class; {task.NAME} has not.")


def taken(teaching: Path, task: Task, labelled: int, confidence: float) -> tuple[list[Example], dict[str, Any]]:
    """(the examples without labels of a `teach` output to which the model gave a class at least `confidence`, with that
    class; how many of how many). `labelled` examples come before them in the output.

    A probability is the softmax of the answers: a model that is always sure takes its mistakes for true.
    """
    with (teaching / "unlabeled.jsonl").open(encoding="utf-8") as stream:
        inputs = [json.loads(line) for line in stream]
    rows = np.load(teaching / "rows.npy")
    answers = np.load(teaching / "answers.npy", mmap_mode="r")[rows[labelled] :].astype(np.float64)
    weights = np.exp(answers - answers.max(axis=1, keepdims=True))
    shares = weights.max(axis=1) / weights.sum(axis=1)
    classes = answers.argmax(axis=1)
    chosen = np.flatnonzero(shares >= confidence)
    counts = np.bincount(classes[chosen], minlength=answers.shape[1])
    told = {"unlabeled": len(inputs), "pseudo_labelled": len(chosen), "of_class": counts.tolist()}
    return [Example(inputs[i], int(classes[i])) for i in chosen], told
