"""Elastic weight consolidation: weights that old examples need are held where they are (Kirkpatrick et al., 2017).

    loss + strength / 2 · Σ importance_i · (weight_i - weight_i before)²

A weight's importance is its element of the diagonal of the empirical Fisher information: the mean square of the
gradient of old examples' losses. It is divided by the mean over all weights that learn, so that a strength means the
same for every model: a weight of average importance is drawn back by `strength` times its distance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.errors import InputError
from toolkit.stages import Context
from toolkit.training.examples import Batch, Examples
from toolkit.training.losses import Loss, from_labels

_GROUPS_TOGETHER = 4  # where a loss compares examples with each other


def importance(model: Any, examples: Examples, count: int, context: Context) -> dict[str, Any]:
    """The importance of every weight that learns, by name: tensors of the weights' shapes whose mean over all is 1.

    It is taken from `count` examples that the seed draws. Raises InputError if they give no gradient.
    """
    import torch

    learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    squares = {name: torch.zeros_like(parameter) for name, parameter in learning.items()}
    loss = from_labels(examples.task)
    batches = _drawn(examples, count, context.seed)
    trains = model.training
    model.eval()
    for number, indices in enumerate(batches):
        model.zero_grad(set_to_none=True)
        loss(model, examples.batch(indices)).backward()
        for name, parameter in learning.items():
            if parameter.grad is not None:
                squares[name] += parameter.grad.float() ** 2
        context.progress(number + 1, len(batches), "what old examples need")
    model.zero_grad(set_to_none=True)
    model.train(trains)
    total = sum(float(square.double().sum()) for square in squares.values())
    mean = total / sum(square.numel() for square in squares.values())
    if not (mean > 0 and np.isfinite(mean)):
        raise InputError("--ewc: the old examples give no gradient, so nothing says which weights they need.")
    return {name: square / mean for name, square in squares.items()}


def _drawn(examples: Examples, count: int, seed: int) -> list[list[int]]:
    """Batches of one example each, or of a few groups where examples belong together and are compared."""
    together = examples.task.GROUP
    size = 1 if together == 1 else _GROUPS_TOGETHER
    groups = np.random.default_rng(seed).permutation(len(examples) // together)[: max(size, count // together)].tolist()
    return [
        [group * together + i for group in groups[start : start + size] for i in range(together)]
        for start in range(0, len(groups), size)
    ]


class Consolidation:
    """Holds the weights of a model that learn where they are now, each by its importance."""

    def __init__(self, model: Any, importance: Mapping[str, Any], strength: float) -> None:
        self.strength = strength
        self._held = [
            (parameter, parameter.detach().clone(), importance[name])
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def penalty(self) -> Any:
        """A scalar tensor."""
        # A model is moved to its device after this was made.
        self._held = [(p, before.to(p.device), weight.to(p.device)) for p, before, weight in self._held]
        return self.strength / 2 * sum((weight * (p - before) ** 2).sum() for p, before, weight in self._held)

    def added_to(self, loss: Loss) -> Loss:
        """A loss with the penalty."""

        def penalized(model: Any, batch: Batch) -> Any:
            return loss(model, batch) + self.penalty()

        return penalized
