"""Tasks: what a model does. One file each, with the same few names.

NAME                          as users write it
MODEL_CLASS                   the transformers auto class of its checkpoints
prepare(...)                  a data file → train/validation/eval examples on disk, and a report
read_examples(folder, split)  the prepared examples
encoder(...)                  raw example → input arrays
metrics(logits, labels, names) the scores, `score` being the one that gates use
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, Protocol, cast

from toolkit.errors import InputError


class TaskModule(Protocol):
    """What every file of this folder offers."""

    NAME: str
    MODEL_CLASS: str
    INPUT_NAMES: tuple[str, ...]
    SCORE_NAME: str

    def prepare(self, source: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]: ...

    def read_examples(self, folder: Path, split: str) -> list[Any]: ...

    def encoder(self, checkpoint: Path, *, inputs: Any, max_length: int, lengths: Any = None) -> Any: ...

    def preprocessing(self, checkpoint: Path, max_length: int) -> dict[str, Any]: ...

    def metrics(self, logits: Any, labels: Any, names: list[str]) -> dict[str, Any]: ...


# Adding a task: one file here, one in toolkit/runtime, and one line in each registry.
_MODULES = {"text-classification": "toolkit.tasks.text_classification"}


def names() -> list[str]:
    """Names of all tasks."""
    return list(_MODULES)


def get(name: str) -> TaskModule:
    """The task module called `name`. Raises InputError for an unknown name."""
    if name not in _MODULES:
        raise InputError(f"Unknown task '{name}'; known: {', '.join(_MODULES)}.")
    return cast(TaskModule, importlib.import_module(_MODULES[name]))
