"""The examples of a task on their way into a model: encoded, in batches of similar length."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.runtime.encoder import Encoder
from toolkit.stages import Context
from toolkit.tasks.task import Example, Task
from toolkit.training.augmentation import Augmenter

_LENGTH_STEP = 8  # tokens
_SAMPLED_BATCH = 8  # examples


@dataclass(frozen=True)
class Batch:
    """Some examples, as a training step takes them."""

    indices: list[int]
    arrays: Arrays  # what the encoder gave, stacked
    inputs: dict[str, Any]  # tensors that the model takes
    # int64[rows]: the right class of each row of the answers, -1: nobody knows it; or float32[rows, classes]: how much
    # of each class is right, where examples were mixed
    labels: Any

    def twice(self) -> Batch:
        """Every example twice: behind all of them, all of them again."""
        import torch

        return Batch(
            self.indices * 2,
            {name: np.concatenate([array, array]) for name, array in self.arrays.items()},
            {name: torch.cat([tensor, tensor]) for name, tensor in self.inputs.items()},
            torch.cat([self.labels, self.labels]),
        )


def grouped_batches(
    lengths: Sequence[int], size: int, generator: np.random.Generator, together: int = 1
) -> list[list[int]]:
    """Indices in batches of similar length, in random order: shuffle, sort within windows, shuffle the batches.

    `together` indices in a row stay in a row.
    """
    if together > 1:
        longest = [max(lengths[start : start + together]) for start in range(0, len(lengths), together)]
        batches = grouped_batches(longest, max(1, size // together), generator)
        return [
            [i for group in batch for i in range(group * together, min((group + 1) * together, len(lengths)))]
            for batch in batches
        ]
    order = generator.permutation(len(lengths))
    window = size * 50
    batches = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window].tolist(), key=lambda i: (lengths[i], i))
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[int(i)] for i in generator.permutation(len(batches))]


class Examples:
    """Examples of a task, encoded when they are needed, and kept unless they are too large; `names` are the inputs that
    the model takes. `augmenter` changes them at random for those who ask for an epoch's."""

    def __init__(
        self,
        task: Task,
        encoder: Encoder,
        examples: Sequence[Example],
        names: Sequence[str],
        augmenter: Augmenter | None = None,
    ) -> None:
        self.task, self.encoder, self.examples, self.names = task, encoder, examples, list(names)
        self.augmenter = augmenter
        self.labels = [task.truth([example]) for example in examples]
        self._encoded: list[Arrays] | None = None

    def __len__(self) -> int:
        return len(self.examples)

    def arrays(self, index: int) -> Arrays:
        """One example's inputs."""
        if self.task.LAZY:
            return self.encoder(self.examples[index].input)
        if self._encoded is None:
            self._encoded = [self.encoder(example.input) for example in self.examples]
        return self._encoded[index]

    def of_epoch(self, seed: int, number: int) -> list[int]:
        """The examples that an epoch shows, the same ones for the same seed and number: all of them."""
        return list(range(len(self)))

    @functools.cached_property
    def lengths(self) -> list[int]:
        """How long each example is; batches are made of like ones."""
        return [1 if self.task.LAZY else self.encoder.length(self.arrays(index)) for index in range(len(self))]

    def batch(self, indices: Sequence[int], device: Any = "cpu", epoch: int | None = None) -> Batch:
        """Some examples together, on a device: as they are, or as an `epoch` of a training sees them. Lengths are a
        multiple of 8: oneDNN keeps a kernel and its workspace for every shape that it has seen."""
        import torch

        found = [self._seen(i, epoch) for i in indices]
        arrays = self.encoder.batch([arrays for arrays, _ in found], _LENGTH_STEP)
        known = np.concatenate([labels for _, labels in found])
        if self.augmenter is not None and epoch is not None:
            arrays, known = self.augmenter.batch(arrays, known, indices, epoch)
        inputs = {name: torch.from_numpy(arrays[name]).to(device) for name in self.names}
        for name, tensor in inputs.items():
            if tensor.ndim == 4:  # of images: CPU kernels of convolutions are faster with the channels last
                inputs[name] = tensor.contiguous(memory_format=torch.channels_last)
        return Batch(list(indices), arrays, inputs, torch.from_numpy(known).to(device))

    def _seen(self, index: int, epoch: int | None) -> tuple[Arrays, NDArray[np.int64]]:
        """One example's inputs and labels, as an epoch sees them if one is named."""
        if self.augmenter is not None and epoch is not None:
            changed = self.augmenter.example(self.examples[index], self.encoder, index, epoch)
            if changed is not None:
                return changed
        return self.arrays(index), self.labels[index]

    def rows(self, answers: Any, indices: Sequence[int]) -> list[Any]:
        """The answers of a batch, split by example."""
        ends = np.cumsum([len(self.labels[i]) for i in indices])
        return np.split(answers, ends[:-1])


def encode(
    task: Task, data: Path, split: str, encoder: Encoder, names: Sequence[str], augmenter: Augmenter | None = None
) -> Examples:
    """The prepared examples of one split."""
    return Examples(task, encoder, task.read_examples(data, split), names, augmenter)


def answer(task: Task, model: Any, batch: Batch, **options: Any) -> tuple[Any, Any]:
    """(the rows of a model's answers, what its forward returned). `options` are the forward's."""
    result = model(**batch.inputs, **options)
    return task.rows(task.output(result, batch.inputs), batch.arrays), result


def sampled(examples: Examples, count: int, context: Context) -> Iterator[Batch]:
    """Batches of at most `count` examples that the seed draws."""
    chosen = np.random.default_rng(context.seed).permutation(len(examples))[:count]
    context.progress(0, 1, f"importance over {len(chosen)} examples")
    for start in range(0, len(chosen), _SAMPLED_BATCH):
        part = sorted(chosen[start : start + _SAMPLED_BATCH].tolist(), key=lambda i: examples.lengths[i])
        yield examples.batch(part)


def share_of(chosen: Sequence[int], process: int, processes: int, together: int) -> list[int]:
    """One process' part of a batch; never none. `together` indices in a row stay in a row."""
    groups = [list(chosen[start : start + together]) for start in range(0, len(chosen), together)]
    return [i for group in groups[process::processes] or groups[:1] for i in group]
