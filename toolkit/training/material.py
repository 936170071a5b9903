"""What a fine-tuning learns from, and what judges its epochs: the prepared split, folds of it, or old and new data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.tasks.task import Example, Task
from toolkit.training.augmentation import Augmenter
from toolkit.training.examples import Examples
from toolkit.training.rehearsal import Update


@dataclass(frozen=True)
class Material:
    """`score` None: the task's own. `before` are old training examples, `told` is for the receipt."""

    train: Examples
    validation: Examples
    score: Callable[[Any], float] | None = None
    before: Examples | None = None
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Materials:
    """The prepared data in `data`, as a model takes them; `names` are its inputs. Training examples are augmented."""

    task: Task
    encoder: Encoder
    names: Sequence[str]
    labels: Sequence[str]
    data: Path
    augmenter: Augmenter | None = None

    def _train(self, examples: Sequence[Example]) -> Examples:
        return Examples(self.task, self.encoder, examples, self.names, self.augmenter)

    def _plain(self, examples: Sequence[Example]) -> Examples:
        return Examples(self.task, self.encoder, examples, self.names)

    def _read(self, split: str) -> list[Example]:
        return self.task.read_examples(self.data, split)

    def split(self, further: Sequence[Example] = ()) -> Material:
        """The prepared split, and `further` examples to learn from."""
        return Material(self._train([*self._read("train"), *further]), self._plain(self._read("validation")))

    def updated(self, old: Sequence[Path], share: float, with_before: bool) -> Material:
        """New data and those from before; see `toolkit.training.rehearsal`."""
        update = Update(self.task, self.data, old)
        rehearsed = update.train(self.encoder, self.names, share, self.augmenter)
        validation, score = update.validation(self.encoder, self.names, self.labels)
        before = self._plain(update.before()) if with_before else None
        told = {"left_out": update.left_out, "rehearsed": rehearsed.rehearsed}
        return Material(rehearsed, validation, score, before, told)

    def folds(self, count: int, seed: int) -> list[Material]:
        """Training and validation part together in `count` parts, every class in its proportion: each part judges what
        the others teach. Raises InputError if there are too few examples."""
        examples = [*self._read("train"), *self._read("validation")]
        found = []
        for held in fold_indices(self.task, examples, count, seed):
            out = set(held)
            learned = [example for index, example in enumerate(examples) if index not in out]
            found.append(Material(self._train(learned), self._plain([examples[i] for i in held])))
        return found

    def everything(self) -> Material:
        """Training and validation part both to learn from; the latter, which judges nothing then, too."""
        return self.split(self._read("validation"))


def fold_indices(task: Task, examples: Sequence[Example], count: int, seed: int) -> list[list[int]]:
    """The indices of every fold. What belongs together stays together; where an example has one class, every class is
    spread over all folds. Raises InputError if a fold would be empty."""
    together = task.GROUP
    groups = len(examples) // together
    if groups < count:
        raise InputError(f"--training folds={count}: there are only {groups} examples to learn from.")
    order = np.random.default_rng(seed).permutation(groups)
    truths = [task.truth([example]) for example in examples]
    if together == 1 and all(len(truth) == 1 for truth in truths):
        classes = np.asarray([truth[0] for truth in truths])
        order = order[np.argsort(classes[order], kind="stable")]
    return [sorted(int(g) * together + i for g in order[fold::count] for i in range(together)) for fold in range(count)]
