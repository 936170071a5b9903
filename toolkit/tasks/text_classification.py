"""Text classification: one text, one label."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from toolkit import data
from toolkit.data import Example
from toolkit.errors import InputError
from toolkit.runtime.text import TextEncoder
from toolkit.storage import write_json
from toolkit.tasks import lengths as input_lengths

NAME = "text-classification"
MODEL_CLASS = "AutoModelForSequenceClassification"
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
SCORE_NAME = "accuracy"

SPLITS = ("train", "validation", "eval")
_FRACTIONS = (0.72, 0.08, 0.20)


class Parameters(BaseModel):
    """How a data file becomes prepared examples."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    where: list[tuple[str, str]] = []
    text_column: str | None = None
    label_column: str | None = None
    label_names: list[str] | None = None
    drop_missing: bool = False
    evaluate_only: bool = False
    least_to_split: int = 0  # fewer examples are all for evaluation
    calibration: int = 0  # examples, at most a tenth, that are kept out of an evaluation without a training part
    known_labels: list[str] | None = None
    max_length: int | None = None
    model_limit: int = 512


def _label_indices(found: set[str], parameters: Parameters, path: Path) -> tuple[list[str], dict[str, int]]:
    """(label names, label value → index): by the checkpoint's own labels if it has been trained, else by order."""
    known = parameters.known_labels
    if known is not None:
        by_name = {name.lower(): index for index, name in enumerate(known)}
        mapping = {}
        for value in sorted(found):
            if value.lower() in by_name:
                mapping[value] = by_name[value.lower()]
            elif value.isdigit() and int(value) < len(known):
                mapping[value] = int(value)
            else:
                raise InputError(
                    f"{path}: label '{value}' is none of the model's labels ({', '.join(known)}). "
                    "Use data with the same labels, or fine-tune with --finetune."
                )
        return known, mapping
    if len(found) < 2:
        raise InputError(f"{path}: all rows have the same label ({', '.join(found)}); a classifier needs at least two.")
    ordered = data.order_labels(found)
    names = parameters.label_names or ordered
    if len(names) != len(ordered):
        raise InputError(f"--labels names {len(names)} labels, but {path} has {len(ordered)}: {', '.join(ordered)}.")
    return list(names), {value: index for index, value in enumerate(ordered)}


def _check_class_sizes(examples: Sequence[Example], names: Sequence[str], path: Path, least: int) -> None:
    counts = Counter(example.label for example in examples)
    small = [f"'{names[label]}' ({count})" for label, count in sorted(counts.items()) if count < least]
    if small:
        raise InputError(f"{path}: too few examples of {', '.join(small)} to split; a class needs at least {least}.")


def _held_back(examples: Sequence[Example], parameters: Parameters) -> int:
    """How many examples serve for calibration instead of evaluation."""
    return min(parameters.calibration, len(examples) // 10)


def prepare(source: Path, output: Path, parameters: Parameters, context: Any) -> dict[str, Any]:
    """Write `train/validation/eval.jsonl`, `labels.json` and `report.json` to `output`.

    `source` is a checkpoint folder: its tokenizer measures the lengths, from which the truncation length and
    the input lengths of fixed-shape artifacts follow. Raises InputError for data that cannot be used.
    """
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
    names, mapping = _label_indices({label for _, label in pairs}, parameters, path)
    examples = [Example(text, mapping[label]) for text, label in pairs]
    if parameters.evaluate_only or len(examples) < parameters.least_to_split:
        held = set(np.random.default_rng(context.seed).permutation(len(examples))[: _held_back(examples, parameters)])
        split = [
            [example for index, example in enumerate(examples) if index in held],
            [],
            [example for index, example in enumerate(examples) if index not in held],
        ]
    else:
        _check_class_sizes(examples, names, path, least=len(SPLITS))
        split = data.stratified_split(examples, _FRACTIONS, context.seed)

    encoder = TextEncoder(source / "tokenizer.json", max_length=10**9, inputs=())
    tokens = []
    for index, example in enumerate(examples):
        tokens.append(len(encoder.ids(example.text)))
        if index % 2000 == 0:
            context.progress(index, len(examples), "measuring lengths")
    max_length = parameters.max_length or input_lengths.choose_max_length(tokens, parameters.model_limit)
    if max_length > parameters.model_limit:
        raise InputError(f"--max-length {max_length}: the model takes at most {parameters.model_limit} tokens.")

    for name, part in zip(SPLITS, split, strict=True):
        lines = (json.dumps({"text": e.text, "label": e.label}, ensure_ascii=False) for e in part)
        (output / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    write_json(output / "labels.json", names)
    report = {
        "rows": len(rows),
        "used": len(examples),
        "dropped": dropped.as_dict(),
        "text_column": text_column,
        "label_column": label_column,
        "splits": {name: len(part) for name, part in zip(SPLITS, split, strict=True)},
        "labels": {name: sum(e.label == i for e in examples) for i, name in enumerate(names)},
        "tokens": input_lengths.statistics(tokens),
        "truncated": sum(count > max_length for count in tokens),
        "max_length": max_length,
        "lengths": input_lengths.choose_buckets(tokens, max_length),
    }
    write_json(output / "report.json", report)
    return report


def read_examples(folder: Path, split: str) -> list[Example]:
    """The prepared examples of one split."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as stream:
        return [Example(**json.loads(line)) for line in stream]


def encoder(
    checkpoint: Path, *, inputs: Sequence[str], max_length: int, lengths: Sequence[int] | None = None
) -> TextEncoder:
    """The runtime's own encoder with the checkpoint's tokenizer: training, gates and device share it."""
    spec = preprocessing(checkpoint, max_length)
    return TextEncoder(
        checkpoint / "tokenizer.json",
        max_length=max_length,
        inputs=inputs,
        pad_id=spec["pad_id"],
        pad_type_id=spec["pad_type_id"],
        truncation_side=spec["truncation_side"],
        lengths=lengths,
    )


def preprocessing(checkpoint: Path, max_length: int) -> dict[str, Any]:
    """The manifest's preprocessing section for a checkpoint."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    tokenizer_config = checkpoint / "tokenizer_config.json"
    tokenizer = json.loads(tokenizer_config.read_text(encoding="utf-8")) if tokenizer_config.exists() else {}
    return {
        "kind": "tokenizer",
        "path": "tokenizer.json",
        "max_length": max_length,
        "truncation_side": tokenizer.get("truncation_side") or "right",
        "pad_id": int(config.get("pad_token_id") or 0),
        "pad_type_id": int(tokenizer.get("pad_token_type_id") or 0),
    }


def metrics(logits: NDArray[Any], labels: NDArray[Any], names: list[str]) -> dict[str, Any]:
    """Accuracy, macro-F1, precision/recall/F1 per class, confusion matrix (rows: truth, columns: prediction).

    `logits` is float[n, classes], `labels` int[n]. `score` repeats the metric that gates use.
    """
    count = len(names)
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((count, count), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    hits = np.diag(confusion).astype(float)
    precision = hits / np.maximum(confusion.sum(axis=0), 1)
    recall = hits / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    accuracy = float(hits.sum() / max(len(labels), 1))
    return {
        "score": accuracy,
        "score_name": SCORE_NAME,
        "examples": len(labels),
        "accuracy": accuracy,
        "macro_f1": float(f1.mean()),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(confusion[i].sum()),
            }
            for i, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
    }
