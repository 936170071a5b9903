"""The tabular task on the device: a row of a table → numbers → logits → label.

Imputation and scaling are part of the bundle: `preprocessor.json` holds what the training rows told of each column.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.manifest import Manifest
from toolkit.runtime.pipeline import Classifier
from toolkit.storage import read_json

NAME = "features"
_MISSING = ("", "na", "n/a", "nan", "null", "none", "?")


def is_missing(value: Any) -> bool:
    """Whether a cell says nothing."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in _MISSING)


def number(value: Any, column: str) -> float:
    """A cell of a numeric column. Raises InputError for what is no finite number."""
    try:
        found = float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"Column '{column}' holds numbers; got {value!r}.") from error
    if not math.isfinite(found):
        raise InputError(f"Column '{column}' holds finite numbers; got {value!r}.")
    return found


def category(value: Any) -> str:
    """A cell of a categorical column: integral floats lose their `.0`, for a file's reader may have given them one."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


class RowEncoder(Encoder):
    """A row, as a mapping of columns to values → float32[1, features].

    `spec` has `numeric`, column → `{"median", "mean", "std", "indicator"}`, and `categorical`, column → known values.
    A missing number becomes the median, with an indicator beside it if training rows had missing ones; a category that
    training never saw, or a missing one, has zeros. Columns that the spec does not name are ignored.
    """

    def __init__(self, spec: Mapping[str, Any], name: str = NAME) -> None:
        try:
            self.numeric = {str(column): dict(values) for column, values in spec["numeric"].items()}
            self.categorical = {str(column): [str(v) for v in values] for column, values in spec["categorical"].items()}
            for column, values in self.numeric.items():
                for key in ("median", "mean", "std"):
                    number(values[key], column)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"The preprocessing of the table is not understood: {error!r}.") from error
        self.name = name
        self._places = {
            column: {value: place for place, value in enumerate(values)} for column, values in self.categorical.items()
        }

    @property
    def features(self) -> list[str]:
        """What each number of a row is, in their order."""
        found: list[str] = []
        for column, known in self.numeric.items():
            found += [column, f"{column} is missing"] if known.get("indicator") else [column]
        return found + [f"{column} = {value}" for column, values in self.categorical.items() for value in values]

    @property
    def width(self) -> int:
        """How many features there are."""
        return len(self.features)

    def steps(self, example: Any) -> dict[str, Any]:
        """The features of each column."""
        features = self(example)[self.name][0]
        widths = {c: 2 if values.get("indicator") else 1 for c, values in self.numeric.items()}
        widths |= {column: len(values) for column, values in self.categorical.items()}
        ends = np.cumsum(list(widths.values()))
        return {f"column {c}": part for c, part in zip(widths, np.split(features, ends[:-1]), strict=True)}

    def __call__(self, example: Any) -> Arrays:
        if not isinstance(example, Mapping):
            raise InputError(f"A row is a mapping of columns to values; got {type(example).__name__}.")
        absent = [column for column in (*self.numeric, *self.categorical) if column not in example]
        if absent:
            raise InputError(f"The row lacks the column '{absent[0]}'; give None where nothing is known.")
        row: list[float] = []
        for column, known in self.numeric.items():
            value = example[column]
            missing = is_missing(value)
            row.append(((known["median"] if missing else number(value, column)) - known["mean"]) / known["std"])
            if known.get("indicator"):
                row.append(float(missing))
        for column, places in self._places.items():
            one_hot = [0.0] * len(places)
            value = example[column]
            place = None if is_missing(value) else places.get(category(value))
            if place is not None:
                one_hot[place] = 1.0
            row += one_hot
        return {self.name: np.asarray([row], dtype=np.float32)}

    def sample(self, rows: int, length: int | None = None) -> Arrays:
        return {self.name: np.zeros((rows, self.width), dtype=np.float32)}

    def axes(self) -> dict[str, list[str | int]]:
        return {self.name: ["batch", self.width]}


class RowClassifier(Classifier):
    """Callable: one row, a mapping of columns to values → one prediction; a list of rows → a list of predictions.

    A prediction is `{"label": str, "score": float, "scores": {label: probability}}`.
    """

    def make_encoder(self, manifest: Manifest) -> RowEncoder:
        return RowEncoder(read_json(manifest.preprocessing_file), manifest.input_name)


PIPELINE = RowClassifier
