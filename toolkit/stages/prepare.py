"""`prepare`: data → examples on disk, deduplicated, split, with what the encoder needs to know of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from toolkit import tasks
from toolkit.stages import Context

VERSION = 4
LIBRARIES = ("datasets", "tokenizers")


class Parameters(BaseModel):
    """Those of the task (`Task.Preparation`), which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True)


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Let the task prepare the data. Raises InputError."""
    task = tasks.get(context.task)
    return task.prepare(source, output, task.Preparation.model_validate(parameters.model_dump()), context)
