"""What a training makes small: losses of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from toolkit.tasks.task import Task
from toolkit.training.examples import Batch, Examples, answer

# The loss of a batch: (model, batch) → scalar tensor.
Loss = Callable[[Any, Batch], Any]


def from_labels(task: Task, *, weights: Any = None, smoothing: float = 0.0, r_drop: float = 0.0) -> Loss:
    """The task's own loss to the labels; see `Task.loss`.

    With `r_drop` every example is answered twice, with different dropout: the loss is the mean of both, and `r_drop`
    times how far they are from each other (Liang et al., 2021).
    """

    def loss(model: Any, batch: Batch) -> Any:
        if r_drop:
            batch = batch.twice()  # one forward pass: every row has a dropout of its own
        said, _ = answer(task, model, batch)
        own = None if weights is None else weights.to(batch.labels.device)
        wrong = task.loss(said, batch.labels, weights=own, smoothing=smoothing)
        return wrong + r_drop * disagreement(said) if r_drop else wrong

    return loss


def disagreement(answers: Any) -> Any:
    """How far the first half of logits [2 * rows, classes] is from the second one: the mean of the Kullback-Leibler
    divergences in both directions, in nats per row."""
    from torch.nn import functional

    first, second = (half.log_softmax(1) for half in answers.float().chunk(2))
    there = functional.kl_div(first, second, reduction="batchmean", log_target=True)
    back = functional.kl_div(second, first, reduction="batchmean", log_target=True)
    return (there + back) / 2


def balanced_weights(examples: Examples, classes: int) -> Any:
    """float32[classes]: how much each class must count for all of them to count as much together; 1 on average over the
    rows."""
    import torch

    labels = np.concatenate([examples.labels[i] for i in examples.of_epoch(0, 0)])
    counts = np.bincount(labels[labels >= 0], minlength=classes)
    weights = counts.sum() / (classes * np.maximum(counts, 1))
    return torch.from_numpy(weights.astype(np.float32))
