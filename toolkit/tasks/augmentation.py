"""Augmentation: what all tasks share. Training examples are changed at random, others never."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from toolkit.engines import Arrays

Soft = NDArray[np.float32]  # [rows, classes]: how much of each class is right


class Augmentation(BaseModel):
    """The settings of a task's augmentation, which `--augment NAME=VALUE` gives; all are off by default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _is_number(cls, value: Any) -> Any:
        if isinstance(value, bool):  # which would count as 0 or 1
            raise PydanticCustomError("number", "Input should be a number, not yes or no")
        return value


def soft(labels: NDArray[np.int64], classes: int) -> Soft:
    """Labels int64[rows] as float32[rows, classes]; zeros for -1, which nobody knows."""
    shares = np.zeros((len(labels), classes), dtype=np.float32)
    known = np.flatnonzero(labels >= 0)
    shares[known, labels[known]] = 1
    return shares


def mixup(
    arrays: Arrays, labels: NDArray[np.int64], alpha: float, generator: np.random.Generator, classes: int
) -> tuple[Arrays, Soft]:
    """A batch of which every example float32[rows, ...] is mixed with another of it, inputs and labels by one share
    from Beta(alpha, alpha) (Zhang et al., 2018)."""
    partners = generator.permutation(len(labels))
    own = generator.beta(alpha, alpha, len(labels)).astype(np.float32)
    mixed = {name: _between(array, array[partners], own) for name, array in arrays.items()}
    return mixed, mixed_labels(labels, partners, own, classes)


def mixed_labels(
    labels: NDArray[np.int64], partners: NDArray[np.int64], own: NDArray[np.float32], classes: int
) -> Soft:
    """Soft labels float32[rows, classes] of rows that are theirs by the share `own` float32[rows], and their partners'
    by the rest."""
    shares = soft(labels, classes)
    return _between(shares, shares[partners], own)


def _between(first: NDArray[Any], second: NDArray[Any], share: NDArray[np.float32]) -> NDArray[Any]:
    share = share.reshape(-1, *[1] * (first.ndim - 1))
    return np.asarray(share * first + (1 - share) * second)


def soft_cross_entropy(answers: Any, shares: Any, weights: Any, smoothing: float) -> Any:
    """The loss of logits to soft labels, tensors [rows, classes]; `Task.loss` explains the rest. Where every row has
    one class alone it is torch's loss to these classes, which divides by the sum of the weights."""
    smooth = shares * (1 - smoothing) + shares.sum(1, keepdim=True) * smoothing / shares.shape[1]
    if weights is not None:
        smooth, shares = smooth * weights, shares * weights
    return -(smooth * answers.log_softmax(1)).sum() / shares.sum().clamp_min(1e-12)
