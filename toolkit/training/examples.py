"""The examples of a task on their way into a model: encoded, in batches of similar length."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.runtime.encoder import Encoder
from toolkit.stages import Context
from toolkit.tasks.task import Example, Task

_LENGTH_STEP = 8  # tokens
_SAMPLED_BATCH = 8  # examples


@dataclass(frozen=True)
class Batch:
    """Some examples, as a training step takes them."""

    indices: list[int]
    arrays: Arrays  # what the encoder gave, stacked
    inputs: dict[str, Any]  # tensors that the model takes
    labels: Any  # int64[rows]: the right class of each row of the answers; -1: nobody knows it


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
    the model takes."""

    def __init__(self, task: Task, encoder: Encoder, examples: Sequence[Example], names: Sequence[str]) -> None:
        self.task, self.encoder, self.examples, self.names = task, encoder, examples, list(names)
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

    def batch(self, indices: Sequence[int], device: Any = "cpu") -> Batch:
        """Some examples together, on a device. Lengths are a multiple of 8: oneDNN keeps a kernel and its workspace for
        every shape that it has seen."""
        import torch

        arrays = self.encoder.batch([self.arrays(i) for i in indices], _LENGTH_STEP)
        inputs = {name: torch.from_numpy(arrays[name]).to(device) for name in self.names}
        for name, tensor in inputs.items():
            if tensor.ndim == 4:  # of images: CPU kernels of convolutions are faster with the channels last
                inputs[name] = tensor.contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(np.concatenate([self.labels[i] for i in indices])).to(device)
        return Batch(list(indices), arrays, inputs, labels)

    def rows(self, answers: Any, indices: Sequence[int]) -> list[Any]:
        """The answers of a batch, split by example."""
        ends = np.cumsum([len(self.labels[i]) for i in indices])
        return np.split(answers, ends[:-1])


def encode(task: Task, data: Path, split: str, encoder: Encoder, names: Sequence[str]) -> Examples:
    """The prepared examples of one split."""
    return Examples(task, encoder, task.read_examples(data, split), names)


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
