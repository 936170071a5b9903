"""Tabular classification: a row of numbers and categories, one label. Risk scoring is of this kind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from toolkit import data
from toolkit.answers.classes import calibration_error, softmax
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime import tabular as runtime
from toolkit.runtime.encoder import SPEC, Encoder
from toolkit.runtime.tabular import RowEncoder, category, is_missing, number
from toolkit.storage import read_json, write_json
from toolkit.tasks.augmentation import Augmentation, Soft, mixup
from toolkit.tasks.description import TensorDescription
from toolkit.tasks.task import Example, Preparation, Task, classification_metrics, split

_MOST_CATEGORIES = 50  # of a column; rarer ones are unknown
_LEAST_OF_A_CATEGORY = 5  # training rows


class TablePreparation(Preparation):
    """`label_column`: the column of the label; `drop`: columns that are no features; `numeric`, `categorical`: columns
    whose kind is not what their values look like."""

    label_column: str | None = None
    drop: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()


class TableAugmentation(Augmentation):
    """`mixup`: alpha of the Beta distribution of the shares (Zhang et al., 2018); encoded rows are mixed."""

    mixup: float = Field(0.0, ge=0)


class Tabular(Task):
    """A row, one label."""

    NAME = "tabular"
    SCORE_NAME = "AUC"
    MODEL_CLASS = ""
    HEAD = ""
    FILES = (SPEC,)
    INPUT_NAMES = (runtime.NAME,)
    NETWORKS: ClassVar[dict[str, Path]] = {"mlp": Path(__file__).with_name("mlp.py")}
    Preparation = TablePreparation
    Augmentation = TableAugmentation

    # Data

    def prepare(self, source: Path, output: Path, parameters: TablePreparation, context: Any) -> dict[str, Any]:
        path = Path(parameters.data)
        rows = data.where(data.read_rows(path), path, parameters.where)
        column = data.find_column(path, rows, parameters.label_column, data.LABEL_COLUMNS, "label")
        dropped = data.Dropped()
        kept = []
        for index, row in enumerate(rows, start=1):
            if not data.is_missing(row[column]):
                kept.append(row)
            elif parameters.drop_missing:
                dropped.counts["no label"] += 1
            else:
                raise InputError(f"{path}: row {index} has no label. Fill it in, or leave it out with --drop-missing.")
        labels = [data.normalize_label(row[column]) for row in kept]
        names, mapping = data.label_indices(
            set(labels), path, known=parameters.known_labels, wanted=parameters.label_names
        )
        known = _known_spec(source)
        wanted = [*known["numeric"], *known["categorical"]] if known else _features(path, rows, column, parameters)
        absent = [name for name in wanted if name not in rows[0]]
        if absent:
            raise InputError(f"{path} has no column '{absent[0]}', which the model was trained with.")
        examples = [
            Example({name: row[name] for name in wanted}, mapping[label])
            for row, label in zip(kept, labels, strict=True)
        ]
        parts = split(examples, names, parameters, context.seed)
        spec = known or _fitted(path, [example.input for example in parts[0]], wanted, parameters)
        context.progress(0, 1, f"{len(wanted)} columns")
        encoder = RowEncoder(spec)
        for index, example in enumerate(examples, start=1):
            try:
                encoder(example.input)
            except InputError as error:
                raise InputError(f"{path}: row {index}: {error}") from error
        report = {
            "rows": len(rows),
            "used": len(examples),
            "dropped": dropped.as_dict(),
            "label_column": column,
            "labels": {name: sum(e.label == i for e in examples) for i, name in enumerate(names)},
            "features": encoder.width,
            "encoding": spec,
            "lengths": None,
        }
        return self.write_prepared(output, parts, names, report)

    def unlabeled(self, path: Path, column: str | None) -> Iterator[Any]:
        yield from data.read_rows(path)

    # Inputs

    def describe_inputs(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, TensorDescription]:
        encoder = self.encoder(folder, encoding)
        assert isinstance(encoder, RowEncoder)  # noqa: S101 - this task's own
        said = "A row of a table: numbers scaled, missing ones marked, categories as zeros and a one."
        names = encoder.features
        return {encoder.name: TensorDescription("features", said, labels=tuple(names), labels_file="features.txt")}

    # Checkpoints

    def check_checkpoint(self, folder: Path, config: Mapping[str, Any]) -> None:
        if config.get("model_type") not in ("module", "onnx"):
            raise InputError(
                f"{folder} is a {config.get('model_type')}; a model of tables is `mlp`, or a network of your own as "
                "FILE.py:FUNCTION."
            )

    def offers(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        return {"features": RowEncoder(encoding).width}

    def copy_files(self, source: Path, output: Path, encoding: Mapping[str, Any]) -> None:
        write_json(output / SPEC, _known_spec(source) or dict(encoding))

    # Inputs

    def encoder(
        self,
        folder: Path,
        encoding: Mapping[str, Any],
        *,
        inputs: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Encoder:
        spec = encoding or _known_spec(folder)
        if spec is None:
            raise InputError(f"{folder} says nothing of the columns of its tables.")
        return RowEncoder(spec, inputs[0] if inputs else runtime.NAME)

    def preprocessing(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, Any]:
        return {"kind": "table", "path": SPEC}

    # Augmentation

    def mixed(
        self,
        arrays: Arrays,
        labels: NDArray[np.int64],
        settings: Any,
        generator: np.random.Generator,
        names: Sequence[str],
    ) -> tuple[Arrays, NDArray[np.int64] | Soft]:
        return mixup(arrays, labels, settings.mixup, generator, len(names)) if settings.mixup else (arrays, labels)

    # Answers

    def captions(self, examples: Sequence[Example]) -> list[str]:
        return [", ".join(f"{name} {value}" for name, value in each.input.items()) for each in examples]

    def metrics(self, answers: NDArray[Any], examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        """Area under the ROC curve, Kolmogorov-Smirnov distance, Brier score, expected calibration error, and what
        classification has. Of more than two classes, the first two are means of each class against the rest."""
        truth = self.truth(examples)
        chances = softmax(answers)
        asked = range(1, 2) if len(names) == 2 else range(len(names))
        curves = [auc_and_ks(chances[:, index], truth == index) for index in asked]
        auc, distance = (float(np.mean([curve[i] for curve in curves])) for i in range(2))
        hot = np.eye(len(names))[truth]
        return {
            **classification_metrics(answers, truth, names),
            "score": auc,
            "score_name": self.SCORE_NAME,
            "ks": distance,
            "brier": float(((chances - hot) ** 2).sum(axis=1).mean()),
            "calibration_error": calibration_error(answers, truth),
        }

    # Calibration

    def identity(self, given: Any) -> Any:
        # The same number is 5 in one file and 5.0 in another, where a column has gaps.
        values = {name: None if is_missing(value) else category(value) for name, value in given.items()}
        return json.dumps(values, sort_keys=True)

    def read_calibration(
        self, path: Path, options: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[list[Any], list[int] | None]:
        return data.read_rows(path), None


def auc_and_ks(chances: NDArray[Any], truth: NDArray[Any]) -> tuple[float, float]:
    """(area under the ROC curve, largest distance between the rates of true and false positives) of chances float[n]
    for what is true bool[n]; 0.5 and 0 where only one of the two is there."""
    there, total = int(truth.sum()), len(truth)
    if there in (0, total):
        return 0.5, 0.0
    order = np.argsort(-chances, kind="stable")
    ordered, hits = chances[order], truth[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), total - 1)  # where equal chances end: they count together
    true_rate = np.append(0.0, np.cumsum(hits)[ends] / there)
    false_rate = np.append(0.0, np.cumsum(~hits)[ends] / (total - there))
    area = float(((true_rate[1:] + true_rate[:-1]) / 2 * np.diff(false_rate)).sum())
    return area, float((true_rate - false_rate).max())


def _known_spec(folder: Path) -> dict[str, Any] | None:
    return read_json(folder / SPEC) if (folder / SPEC).is_file() else None


def _features(path: Path, rows: Sequence[Mapping[str, Any]], label: str, parameters: TablePreparation) -> list[str]:
    columns = list(rows[0])
    for name in (*parameters.drop, *parameters.numeric, *parameters.categorical):
        if name not in columns:
            raise InputError(f"{path} has no column '{name}'; its columns are: {', '.join(columns)}.")
    wanted = [name for name in columns if name != label and name not in parameters.drop]
    if not wanted:
        raise InputError(f"{path} has no column besides the label; there is nothing to learn from.")
    return wanted


def _fitted(
    path: Path, rows: Sequence[Mapping[str, Any]], wanted: Sequence[str], parameters: TablePreparation
) -> dict[str, Any]:
    """What the training rows tell of each column. Columns whose values are all numbers are numeric, unless told."""
    spec: dict[str, Any] = {"numeric": {}, "categorical": {}}
    for name in wanted:
        values = [row[name] for row in rows if not is_missing(row[name])]
        if name in parameters.categorical or (name not in parameters.numeric and not all(map(_is_number, values))):
            counts = Counter(category(value) for value in values)
            usual = [value for value, count in counts.most_common(_MOST_CATEGORIES) if count >= _LEAST_OF_A_CATEGORY]
            spec["categorical"][name] = sorted(usual)
            continue
        numbers = np.asarray([number(value, name) for value in values], dtype=np.float64)
        if numbers.size == 0:
            raise InputError(
                f"{path}: the column '{name}' is empty in the training rows; leave it out with --option drop."
            )
        median = float(np.median(numbers))
        filled = np.append(numbers, np.full(len(rows) - len(numbers), median))
        # Far outliers would leave the rest without differences: the scale is that of the middle 98 %.
        low, high = np.percentile(filled, [1, 99])
        middle = np.clip(filled, low, high)
        spec["numeric"][name] = {
            "median": median,
            "mean": float(middle.mean()),
            "std": float(middle.std()) or 1.0,
            "indicator": len(numbers) < len(rows),
        }
    return spec


def _is_number(value: Any) -> bool:
    try:
        return bool(np.isfinite(float(value)))
    except (TypeError, ValueError):
        return False


TASK = Tabular()
