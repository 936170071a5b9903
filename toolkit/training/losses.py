"""What a training makes small: losses of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.tasks.task import Task
from toolkit.training.examples import Batch, Examples, answer

# The loss of a batch: (model, batch) → scalar tensor.
Loss = Callable[[Any, Batch], Any]


def from_labels(task: Task, *, weights: Any = None, smoothing: float = 0.0) -> Loss:
    """The task's own loss to the labels; see `Task.loss`."""

    def loss(model: Any, batch: Batch) -> Any:
        own = None if weights is None else weights.to(batch.labels.device)
        return task.loss(answer(task, model, batch)[0], batch.labels, weights=own, smoothing=smoothing)

    return loss


def balanced_weights(examples: Examples, classes: int) -> Any:
    """float32[classes]: how much each class must count for all of them to count as much together; 1 on average over the
    rows."""
    import torch

    labels = np.concatenate([examples.labels[i] for i in examples.of_epoch(0, 0)])
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    weights = counts.sum() / (classes * np.maximum(counts, 1))
    return torch.from_numpy(weights.astype(np.float32))
