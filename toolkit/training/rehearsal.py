"""Rehearsal: examples from before among the new ones, so that what they taught is not overwritten (Robins, 1995).

Every epoch shows all new examples and some of the old ones, others each time. What a model was measured on stays
unseen: an example that the old data have on one side of the split is left out where the new data have it on another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.tasks.task import SPLITS, Example, Task
from toolkit.training.augmentation import Augmenter
from toolkit.training.examples import Examples

Splits = dict[str, list[Example]]


def read(task: Task, folder: Path) -> Splits:
    """All splits of prepared data."""
    return {split: task.read_examples(folder, split) for split in SPLITS}


class Past:
    """The data that a model was trained on and measured by, set after set, each as `prepare` split it."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.examples: Splits = {split: [] for split in SPLITS}
        self._sides: dict[Any, str] = {}  # identity → its split

    def kept(self, fresh: Splits) -> dict[str, list[int]]:
        """Which examples of further data may be used, as indices by split: those that are new here, or that lie on the
        same side of the split as before. Examples that belong together stay or go together."""
        together = self.task.GROUP
        found: dict[str, list[int]] = {}
        for split, examples in fresh.items():
            fits = [self._sides.get(self.task.identity(e.input), split) == split for e in examples]
            groups = [range(start, min(start + together, len(fits))) for start in range(0, len(fits), together)]
            found[split] = [i for group in groups if all(fits[i] for i in group) for i in group]
        return found

    def add(self, fresh: Splits) -> dict[str, list[int]]:
        """Take further data in; which of it, as `kept` says."""
        kept = self.kept(fresh)
        for split, indices in kept.items():
            chosen = [fresh[split][i] for i in indices]
            self.examples[split] += chosen
            self._sides |= {self.task.identity(example.input): split for example in chosen}
        return kept

    def rehearsable(self, fresh: Sequence[Example]) -> list[Example]:
        """The training examples from before, without those that new ones repeat: a label may have been corrected."""
        repeated = {self.task.identity(example.input) for example in fresh}
        old, together = self.examples["train"], self.task.GROUP
        groups = [old[start : start + together] for start in range(0, len(old), together)]
        kept = [group for group in groups if not any(self.task.identity(each.input) in repeated for each in group)]
        return [example for group in kept for example in group]


class Rehearsed(Examples):
    """New examples, and with each `share` old ones: every epoch draws others from the seed and its number."""

    def __init__(
        self,
        task: Task,
        encoder: Encoder,
        new: Sequence[Example],
        old: Sequence[Example],
        names: Sequence[str],
        share: float,
        augmenter: Augmenter | None = None,
    ) -> None:
        super().__init__(task, encoder, [*new, *old], names, augmenter)
        self._new, self._together = len(new), task.GROUP
        self._groups = len(old) // task.GROUP
        wanted = max(1, round(share * len(new) / task.GROUP)) if share else 0
        self._drawn = min(wanted, self._groups)

    @property
    def rehearsed(self) -> int:
        """How many old examples an epoch shows."""
        return self._drawn * self._together

    def of_epoch(self, seed: int, number: int) -> list[int]:
        generator = np.random.default_rng([seed, number, 1])  # apart from the order of the batches
        drawn = np.sort(generator.permutation(self._groups)[: self._drawn]).tolist()
        first = (self._new + group * self._together for group in drawn)
        return [*range(self._new), *(start + i for start in first for i in range(self._together))]


class Update:
    """What a continual update learns from and is judged by: the prepared data `new`, and those from before.

    Raises InputError if nothing is left to learn, or nothing to choose an epoch by.
    """

    def __init__(self, task: Task, new: Path, old: Sequence[Path]) -> None:
        self.task, self.past = task, Past(task)
        self.kept_old = [self.past.add(read(task, folder)) for folder in old]
        fresh = read(task, new)
        self.kept_new = self.past.kept(fresh)
        self.new = {split: [fresh[split][i] for i in indices] for split, indices in self.kept_new.items()}
        self.left_out = {split: len(fresh[split]) - len(self.new[split]) for split in SPLITS}
        if not self.new["train"]:
            raise InputError("There is nothing new to learn: the old data hold out every new training example.")
        if not self.new["validation"] and not self.past.examples["validation"]:
            raise InputError("Neither the new data nor the old ones have an example left to choose the best epoch by.")

    def rehearsable(self) -> list[Example]:
        """The old training examples for rehearsal, but for those that the new ones repeat. Raises InputError if there
        is no old one."""
        if not self.past.examples["train"]:
            raise InputError(
                "There is no old training example to rehearse. Name what the model was trained on with --old-data, or "
                "go without: --rehearsal 0."
            )
        return self.past.rehearsable(self.new["train"])

    def before(self) -> list[Example]:
        """The old training examples that say which weights matter. Raises InputError if there are none."""
        if not self.past.examples["train"]:
            raise InputError(
                "--ewc: no old training example says which weights matter. Name what the model was trained on with "
                "--old-data."
            )
        return self.past.examples["train"]

    def train(
        self, encoder: Encoder, names: Sequence[str], share: float, augmenter: Augmenter | None = None
    ) -> Rehearsed:
        """The new training examples, and with each `share` old ones. Raises InputError if there is no old one."""
        old = self.rehearsable() if share else []
        return Rehearsed(self.task, encoder, self.new["train"], old, names, share, augmenter)

    def validation(
        self, encoder: Encoder, names: Sequence[str], labels: Sequence[str]
    ) -> tuple[Examples, Callable[[Any], float]]:
        """The validation examples, old and new, and how good answers to them are: the mean of the score on the old ones
        and of that on the new ones, however many each are."""
        parts = [part for part in (self.past.examples["validation"], self.new["validation"]) if part]
        ends = np.cumsum([len(self.task.truth(part)) for part in parts])[:-1]

        def score(answers: Any) -> float:
            rows = np.split(answers, ends)
            return float(np.mean([self.task.metrics(r, p, labels)["score"] for r, p in zip(rows, parts, strict=True)]))

        return Examples(self.task, encoder, [e for part in parts for e in part], names), score
