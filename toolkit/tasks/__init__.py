"""Tasks: what a model does. One file each, with a class that fills in `toolkit.tasks.task.Task`, and its instance.

Importing this package imports no task: the runtime asks it what there is.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.errors import InputError

if TYPE_CHECKING:
    from toolkit.tasks.task import Task

# Adding a task: one file here, one of the same name in `toolkit.runtime`, and one line here.
_MODULES = {
    "text-classification": "text_classification",
    "image-classification": "image_classification",
    "token-classification": "token_classification",
    "sentence-similarity": "sentence_similarity",
    "tabular": "tabular",
    "tensors": "tensors",
}


def names() -> list[str]:
    """Names of all tasks."""
    return list(_MODULES)


def module(name: str) -> str:
    """The name of a task's file. Raises InputError for an unknown task."""
    if name not in _MODULES:
        raise InputError(f"Unknown task '{name}'; known: {', '.join(_MODULES)}.")
    return _MODULES[name]


def of(config: Mapping[str, Any]) -> Task:
    """The task that a checkpoint's config says it was trained for; else text classification."""
    if config.get("task") in _MODULES:  # a network of the user's
        return get(str(config["task"]))
    architecture = str((config.get("architectures") or [""])[0])
    for task in map(get, _MODULES):
        if task.HEAD and task.HEAD in architecture:
            return task
    return get("text-classification")


def get(name: str) -> Task:
    """The task called `name`. Raises InputError for an unknown one."""
    task: Any = importlib.import_module(f"toolkit.tasks.{module(name)}").TASK
    return task  # type: ignore[no-any-return]
