"""Encoders: a raw example → the tensors of a model. What all of them share; numpy only.

The encoder that a bundle carries is the one that training used: there is no second implementation to differ from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines import Arrays

_FLOAT_TOLERANCE = 1e-5  # between two machines' float32 arithmetic on the same example


SPEC = "preprocessor.json"  # the file of encoders that need no other


class Encoder(ABC):
    """Callable: one raw example → arrays with a leading axis of 1, by input name.

    `padding` has the value that fills up each input where a batch's examples differ in length.
    """

    padding: Mapping[str, int] = {}

    @abstractmethod
    def __call__(self, example: Any) -> Arrays:
        """The inputs of one example. Raises InputError for one that cannot be read."""

    def steps(self, example: Any) -> dict[str, Any]:
        """What each step on the way to the inputs makes of an example, arrays by the step's name, in order: for
        comparing two encoders. The last step, the inputs themselves, is not among them."""
        return {}

    @abstractmethod
    def sample(self, rows: int, length: int | None = None) -> Arrays:
        """Inputs of the right shape and dtype for a graph to be traced with; `length` where examples have one."""

    @abstractmethod
    def axes(self) -> dict[str, list[str | int]]:
        """The shape of each input: numbers, and names for the axes whose size is not fixed, `batch` being the first."""

    def length(self, arrays: Mapping[str, Any]) -> int:
        """How long an encoded example is: batches are made of like ones. 1 where all are alike."""
        return 1

    def batch(self, encoded: Sequence[Mapping[str, Any]], step: int = 1) -> Arrays:
        """Stack encoded examples; where they differ in length, padded to the longest rounded up to a multiple of
        `step`."""
        return {name: np.concatenate([arrays[name] for arrays in encoded]) for name in encoded[0]}

    def record(self, arrays: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
        """An encoded example as a golden example keeps it: values in JSON, and files in `folder` that begin with `name`
        if they are many."""
        return {key: array.tolist() for key, array in arrays.items()}

    def same(self, arrays: Mapping[str, Any], recorded: Mapping[str, Any], folder: Path) -> bool:
        """Whether an example is encoded as it was when `recorded` was written: integers to the last one, floats to what
        another machine's arithmetic may change."""
        if set(arrays) != set(recorded):
            return False
        for name, array in arrays.items():
            wanted = np.asarray(recorded[name])
            if array.shape != wanted.shape:
                return False
            if array.dtype.kind == "f":
                if not np.allclose(array, wanted, rtol=_FLOAT_TOLERANCE, atol=_FLOAT_TOLERANCE):
                    return False
            elif not np.array_equal(array, wanted):
                return False
        return True
