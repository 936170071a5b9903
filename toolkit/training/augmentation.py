"""Augmentation on the way of examples into a training, as the task does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.runtime.encoder import Encoder
from toolkit.tasks.augmentation import Soft
from toolkit.tasks.task import Example, Task

# Apart from each other, and from the order of an epoch's batches: (seed, epoch) and (seed, epoch, 0) are one seed.
_OF_AN_EXAMPLE, _OF_A_BATCH = 1, 2


@dataclass(frozen=True)
class Augmenter:
    """Changes training examples as the task's `settings` say; `names` are those of the labels. Every draw follows from
    the seed, the epoch and the example alone: a run that goes on after a kill, and every process of several, draws what
    one alone would have drawn."""

    task: Task
    settings: Any
    names: Sequence[str]
    seed: int

    def example(
        self, example: Example, encoder: Encoder, index: int, epoch: int
    ) -> tuple[Arrays, NDArray[np.int64]] | None:
        """The inputs and labels of the example at `index` in an epoch; None: it is left as it is."""
        generator = np.random.default_rng([self.seed, epoch, index, _OF_AN_EXAMPLE])
        return self.task.augmented(example, encoder, self.settings, generator, self.names)

    def batch(
        self, arrays: Arrays, labels: NDArray[np.int64], indices: Sequence[int], epoch: int
    ) -> tuple[Arrays, NDArray[np.int64] | Soft]:
        """The inputs and labels of a batch in an epoch, mixed if the settings say so."""
        generator = np.random.default_rng([self.seed, epoch, indices[0], _OF_A_BATCH])
        return self.task.mixed(arrays, labels, self.settings, generator, self.names)


def augmenter(task: Task, given: dict[str, Any], names: Sequence[str], seed: int) -> Augmenter | None:
    """What the settings of `--augment` ask for; None if there are none."""
    return Augmenter(task, task.Augmentation.model_validate(given), names, seed) if given else None
