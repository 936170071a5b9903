"""Calibration examples: which ones are taken, and what is wrong with those that a user brings.

Ranges of activations hold for inputs like those that they were taken from. Random data gives ranges of nothing, and
no later gate can tell; so it is refused. What makes ranges worse is warned of.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from toolkit import data as tables
from toolkit.errors import InputError
from toolkit.runtime.text import TextEncoder

FEWEST = 100  # below it the extremes of an activation still move with every further example
UNSTABLE = 0.5  # a range that is so much wider by one half of the examples than by the other
# Between what real texts of other kinds reach (0.15 for news beside film reviews) and random letters do (0.63).
_RANDOM = 0.4
_TAIL = 90  # percentile of the lengths that calibration examples should reach


class Source(BaseModel):
    """Where calibration examples come from: a file of the user's, or the training part of the prepared data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int = Field(256, ge=1)
    max_length: int = Field(128, ge=4, description="Tokens at which examples are truncated")
    file: str | None = None
    text_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class Examples:
    """Texts and their token ids; `labels` are class indices, or None where nobody labelled them."""

    texts: Sequence[str]
    tokens: Sequence[Sequence[int]]
    labels: Sequence[int] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.tokens]


def choose(labels: Sequence[int], lengths: Sequence[int], count: int, seed: int) -> list[int]:
    """Indices of at most `count` examples: each class in its proportion, and within a class one of every part of its
    range of lengths. Ascending."""
    if count >= len(labels):
        return list(range(len(labels)))
    generator = np.random.default_rng(seed)
    classes = {label: [i for i, own in enumerate(labels) if own == label] for label in sorted(set(labels))}
    wanted = {label: max(1, count * len(members) // len(labels)) for label, members in classes.items()}
    largest = sorted(classes, key=lambda label: -len(classes[label]))
    for label in (largest * count)[: max(0, count - sum(wanted.values()))]:
        wanted[label] = min(wanted[label] + 1, len(classes[label]))
    chosen: list[int] = []
    for label, members in classes.items():
        ordered = [members[i] for i in generator.permutation(len(members))]
        ordered.sort(key=lambda i: lengths[i])
        parts = np.array_split(ordered, min(wanted[label], len(ordered)))
        chosen += [int(generator.choice(part)) for part in parts]
    return sorted(chosen)[:count]


class Unigrams:
    """How often each token occurs in texts, every token of the vocabulary being counted once more."""

    def __init__(self, tokens: Sequence[Sequence[int]], vocabulary: int) -> None:
        self.counts = Counter(index for ids in tokens for index in ids)
        self.vocabulary = vocabulary
        self.total = sum(self.counts.values()) + vocabulary

    def bits(self, tokens: Sequence[Sequence[int]]) -> float:
        """Mean surprise of a token in bits: the cross entropy of these texts under the distribution."""
        found = [index for ids in tokens for index in ids]
        return sum(-math.log2((self.counts[index] + 1) / self.total) for index in found) / max(len(found), 1)

    def random_bits(self) -> float:
        """The same for tokens that are drawn evenly from the vocabulary."""
        unseen = self.vocabulary - len(self.counts)
        seen = sum(-math.log2((count + 1) / self.total) for count in self.counts.values())
        return (seen + unseen * math.log2(self.total)) / self.vocabulary


def randomness(real: Sequence[Sequence[int]], given: Sequence[Sequence[int]], vocabulary: int) -> float:
    """Where the given tokens stand between the real texts (0) and tokens drawn at random (1).

    By unigram surprise: one half of the real texts gives the distribution, the other half says how surprising real
    texts are under it. The order of tokens does not matter to it: shuffled sentences pass, and their activations
    have nearly the range of the sentences.
    """
    distribution = Unigrams(real[::2], vocabulary)
    usual = distribution.bits(real[1::2])
    return (distribution.bits(given) - usual) / max(distribution.random_bits() - usual, 1e-9)


def check(
    given: Examples, real: Examples, evaluation: Sequence[str], names: Sequence[str], vocabulary: int
) -> list[str]:
    """What is wrong with calibration examples, in words. `real` are texts of the task's training data, `evaluation`
    those that the gates measure on, `names` the labels.

    Raises InputError for random data.
    """
    nearness = randomness(real.tokens, given.tokens, vocabulary)
    if nearness > _RANDOM:
        raise InputError(
            f"The calibration examples look like random data, or like another language: their tokens stand at "
            f"{nearness:.2f} on a scale from 0, texts of the task, to 1, random draws from the vocabulary. Ranges "
            "taken from them would hold for nothing; give texts that the model will meet."
        )
    return [
        *_duplicates(given.texts, evaluation),
        *_number(given.texts),
        *_classes(given.labels, names),
        *_lengths(given.lengths, real.lengths),
    ]


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _duplicates(texts: Sequence[str], evaluation: Sequence[str]) -> list[str]:
    held_out = {_same(text) for text in evaluation}
    count = sum(_same(text) in held_out for text in texts)
    if not count:
        return []
    return [
        f"{count} of the {len(texts)} calibration examples are also in the evaluation set: the measured score will be "
        "better than it is."
    ]


def _number(texts: Sequence[str]) -> list[str]:
    different = len({_same(text) for text in texts})
    if different >= FEWEST:
        return []
    return [f"Only {different} different calibration examples; ranges settle with {FEWEST} or more."]


def _classes(labels: Sequence[int] | None, names: Sequence[str]) -> list[str]:
    if labels is None:
        return []
    missing = [name for index, name in enumerate(names) if index not in set(labels)]
    return [f"No calibration example of the class {', '.join(missing)}."] if missing else []


def _lengths(given: Sequence[int], real: Sequence[int]) -> list[str]:
    found = []
    low, high = min(real), max(real)
    outside = sum(not low <= length <= high for length in given)
    if outside:
        found.append(
            f"{outside} of the {len(given)} calibration examples are shorter or longer than any training text "
            f"({low} to {high} tokens)."
        )
    usual = round(float(np.percentile(real, _TAIL)))
    if max(given) < usual:
        found.append(
            f"The longest calibration example has {max(given)} tokens; one in {round(100 / (100 - _TAIL))} training "
            f"texts has {usual} or more."
        )
    return found


def unstable(ranges: Mapping[str, float]) -> list[str]:
    """Warn of layers whose range differs between the halves of the examples (`toolkit.ranges.instability`)."""
    wide = sorted((name for name, value in ranges.items() if value > UNSTABLE), key=lambda name: -ranges[name])
    if not wide:
        return []
    return [
        f"The activation range of {len(wide)} of {len(ranges)} layers is not stable: by one half of the calibration "
        f"examples it is {1 + ranges[wide[0]]:.1f} times as wide as by the other in {wide[0]}. Use more examples, or a "
        "calibration that clips."
    ]


def collect(source: Source, folder: Path, task: Any, data: Path | None, seed: int) -> tuple[list[str], list[str]]:
    """(the calibration texts, warnings). `folder` has the model's tokenizer and config, `data` the prepared examples.

    Raises InputError if there are none, or if they are random.
    """
    if data is None:
        raise InputError("This needs examples of the task; name labelled data with --data.")
    encoder = TextEncoder(folder / "tokenizer.json", max_length=source.max_length, inputs=())
    names: list[str] = json.loads((data / "labels.json").read_text(encoding="utf-8"))
    train = task.read_examples(data, "train")
    held_out = task.read_examples(data, "eval")
    if source.file is not None:
        texts, labels = _read(Path(source.file), source, names)
    elif train:
        texts, labels = [example.text for example in train], [example.label for example in train]
    else:
        raise InputError(
            "The prepared data is for evaluation only: it has no training part to take calibration examples from, and "
            "the gates measure on the rest. Name a file of other texts with --calibration-data."
        )
    tokens = [encoder.ids(text) for text in texts]
    chosen = choose(labels or [0] * len(texts), [len(ids) for ids in tokens], source.samples, seed)
    given = Examples(
        [texts[i] for i in chosen], [tokens[i] for i in chosen], [labels[i] for i in chosen] if labels else None
    )
    known = [example.text for example in train or held_out]
    real = Examples(known, [encoder.ids(text) for text in known])
    vocabulary = int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"])
    return list(given.texts), check(given, real, [example.text for example in held_out], names, vocabulary)


def check_file(path: Path) -> None:
    """Refuse what can be seen beforehand to be no file of calibration texts. Raises InputError."""
    if path.suffix.lower() == ".txt":
        tables.check_texts(path)
    else:
        tables.check_readable(path)


def _read(path: Path, source: Source, names: Sequence[str]) -> tuple[list[str], list[int] | None]:
    """The texts of a file, and their labels as class indices if it has any that the task knows."""
    check_file(path)
    if path.suffix.lower() == ".txt":
        return [text for text in tables.stream_texts(path) if text], None
    rows = tables.read_rows(path)
    text_column = tables.find_column(path, rows, source.text_column, tables.TEXT_COLUMNS, "text")
    lowered = {column.lower(): column for column in rows[0]}
    label_column = source.label_column or next((lowered[n] for n in tables.LABEL_COLUMNS if n in lowered), None)
    if label_column is not None:
        label_column = tables.find_column(path, rows, label_column, (), "label")
    rows = [row for row in rows if str(row[text_column] or "").strip()]
    if not rows:
        raise InputError(f"{path}: no row has a text in the column '{text_column}'.")
    texts = [str(row[text_column]) for row in rows]
    if label_column is None:
        return texts, None
    places = {name.lower(): index for index, name in enumerate(names)}
    places |= {str(index): index for index in range(len(names))}
    values = [tables.normalize_label(row[label_column]).lower() for row in rows]
    unknown = next((value for value in values if value not in places), None)
    if unknown is not None:
        raise InputError(f"{path}: label '{unknown}' is none of the model's labels ({', '.join(names)}).")
    return texts, [places[value] for value in values]
