"""A model as exporters want it: its inputs by name, and the task's output as the one tensor that it gives.

Imports torch: import it inside functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from toolkit.tasks.task import Task


class Traceable(torch.nn.Module):  # type: ignore[misc]
    """A model whose forward is followed by what the task makes of its output; with `channels_last` it takes images
    [batch, height, width, channels]."""

    def __init__(self, model: Any, task: Task, channels_last: bool) -> None:
        super().__init__()
        self.model, self.task, self.channels_last = model, task, channels_last
        self.config = getattr(model, "config", None)

    def forward(self, **inputs: Any) -> Any:
        if self.channels_last:
            inputs = {name: each.permute(0, 3, 1, 2) if each.ndim == 4 else each for name, each in inputs.items()}
        return self.task.output(self.model(**inputs), inputs)


def traceable(model: Any, task: Task, names: Sequence[str], channels_last: bool = False) -> Any:
    """`model` in evaluation mode with inputs called `names`, by which exporters tell what is dynamic in which."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]

    class Named(Traceable):
        """With the names in the signature, for exporters look there."""

        def forward(self, **inputs: Any) -> Any:
            return super().forward(**inputs)

    Named.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Named(model, task, channels_last).eval()
