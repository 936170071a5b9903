"""Stages: one step of a conversion each. One file per stage, with the same few names.

    VERSION          raised whenever the same inputs would give another output: part of the cache key
    LIBRARIES        distributions whose version is part of the cache key
    Parameters       everything that the stage can be told, a strict pydantic model
    run(source, output, parameters, context) -> dict      what it did and measured, for the receipt

A stage reads `source` (a checkpoint or an artifact folder), writes into the empty folder `output`, and knows
nothing of the stages before and after it. It runs in a process of its own (`toolkit.stages.process`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from toolkit.errors import InputError


def _ignore(done: int, total: int, text: str) -> None:
    """The progress callback of a stage that nobody watches."""


@dataclass(frozen=True)
class Context:
    """What a stage may know about the run around it."""

    task: str
    seed: int = 0
    threads: int = 1
    data: Path | None = None  # prepared examples
    resume: Path | None = None  # survives a killed run; removed when the stage is finished
    progress: Callable[[int, int, str], None] = field(default=_ignore)


class StageModule(Protocol):
    """What every file of this folder offers."""

    VERSION: int
    LIBRARIES: tuple[str, ...]
    Parameters: type[BaseModel]

    def run(self, source: Path, output: Path, parameters: Any, context: Context) -> dict[str, Any]: ...


# Adding a stage: one file in this folder and one line here.
_MODULES = {
    "prepare": "toolkit.stages.prepare",
    "finetune": "toolkit.stages.finetune",
    "teach": "toolkit.stages.teach",
    "distill": "toolkit.stages.distill",
    "prune": "toolkit.stages.prune",
    "export": "toolkit.stages.export",
    "balance": "toolkit.stages.balance",
    "qat": "toolkit.stages.qat",
    "sensitivity": "toolkit.stages.sensitivity",
    "quantize": "toolkit.stages.quantize",
    "preflight": "toolkit.stages.preflight",
    "coverage": "toolkit.stages.coverage",
    "build": "toolkit.stages.build",
    "evaluate": "toolkit.stages.evaluate",
    "measure": "toolkit.stages.measure",
}


def get(name: str) -> StageModule:
    """The stage module called `name`. Raises InputError for an unknown name."""
    if name not in _MODULES:
        raise InputError(f"Unknown stage '{name}'; known: {', '.join(_MODULES)}.")
    return cast(StageModule, importlib.import_module(_MODULES[name]))
