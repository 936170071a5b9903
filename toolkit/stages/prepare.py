"""`prepare`: a data file → examples on disk, deduplicated, split, with their length statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import tasks
from toolkit.stages import Context
from toolkit.tasks.text_classification import Parameters as Parameters

VERSION = 2
LIBRARIES = ("datasets", "tokenizers")


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Let the task prepare the data; the tokenizer of the checkpoint `source` measures the lengths."""
    return tasks.get(context.task).prepare(source, output, parameters, context)
