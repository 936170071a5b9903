"""Text classification: one text, one label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from toolkit import data
from toolkit.errors import InputError
from toolkit.tasks.task import Example, classification_metrics, split
from toolkit.tasks.text import TextPreparation, TextTask


class TextClassification(TextTask):
    """One text, one label."""

    NAME = "text-classification"
    SCORE_NAME = "accuracy"
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HEAD = "ForSequenceClassification"
    HEAD_WEIGHTS = ("classifier.", "score.", "pre_classifier.")

    def prepare(self, source: Path, output: Path, parameters: TextPreparation, context: Any) -> dict[str, Any]:
        path = Path(parameters.data)
        rows = data.where(data.read_rows(path), path, parameters.where)
        text_column = data.find_column(path, rows, parameters.text_column, data.TEXT_COLUMNS, "text")
        label_column = data.find_column(path, rows, parameters.label_column, data.LABEL_COLUMNS, "label")
        dropped = data.Dropped()
        pairs = data.labelled_texts(
            path, rows, text_column, label_column, drop_missing=parameters.drop_missing, dropped=dropped
        )
        if not pairs:
            raise InputError(f"{path}: no usable row is left ({dropped.as_dict()}).")
        names, mapping = data.label_indices(
            {label for _, label in pairs}, path, known=parameters.known_labels, wanted=parameters.label_names
        )
        examples = [Example(text, mapping[label]) for text, label in pairs]
        parts = split(examples, names, parameters, context.seed)
        report = {
            "rows": len(rows),
            "used": len(examples),
            "dropped": dropped.as_dict(),
            "text_column": text_column,
            "label_column": label_column,
            "labels": {name: sum(e.label == i for e in examples) for i, name in enumerate(names)},
            **self.measured(source, examples, parameters, context),
        }
        return self.write_prepared(output, parts, names, report)

    def metrics(self, answers: NDArray[Any], examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        return classification_metrics(answers, self.truth(examples), names)


TASK = TextClassification()
