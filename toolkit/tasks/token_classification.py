"""Token classification: a tag per word, from which entities follow (named entity recognition)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import data
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime import token_classification as runtime
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.token_classification import OUTSIDE, WordEncoder
from toolkit.tasks import tagged_files, text_augmentation
from toolkit.tasks.task import Example, split
from toolkit.tasks.text import TextPreparation, TextTask


class TokenPreparation(TextPreparation):
    """As of texts; `text_column` and `label_column` are those of the words and of the tags in a table."""


class TokenClassification(TextTask):
    """A tag per word."""

    NAME = "token-classification"
    SCORE_NAME = "entity F1"
    MODEL_CLASS = "AutoModelForTokenClassification"
    HEAD = "ForTokenClassification"
    Preparation = TokenPreparation
    Tokenizer = WordEncoder

    # Data

    def check_data(self, path: Path) -> None:
        if path.suffix.lower() in tagged_files.SUFFIXES:
            if not path.is_file():
                raise InputError(f"Data file {path} does not exist, or is a folder.")
            if path.stat().st_size == 0:
                raise InputError(f"Data file {path} is empty.")
        else:
            data.check_readable(path)

    def prepare(self, source: Path, output: Path, parameters: TextPreparation, context: Any) -> dict[str, Any]:
        path = Path(parameters.data)
        dropped = data.Dropped()
        sentences = tagged_files.read(path, parameters)
        kept = tagged_files.distinct(sentences, dropped)
        tagged, repaired = tagged_files.repaired(path, kept)
        names = _names({tag for _, tags in tagged for tag in tags}, parameters, path)
        places = {name: index for index, name in enumerate(names)}
        examples = [Example(words, [places[tag] for tag in tags]) for words, tags in tagged]
        report = {
            "rows": len(sentences),
            "used": len(examples),
            "dropped": dropped.as_dict(),
            "repaired": repaired,
            "labels": {name: sum(e.label.count(i) for e in examples) for i, name in enumerate(names)},
            **self.measured(source, examples, parameters, context),
        }
        parts = split(examples, names, parameters, context.seed, classes=[0] * len(examples))
        return self.write_prepared(output, parts, names, report)

    def unlabeled(self, path: Path, column: str | None) -> Iterator[Any]:
        for text in super().unlabeled(path, column):
            if words := runtime.words_of(text):
                yield words

    def examples_of(self, path: Path, most: int) -> list[Any]:
        if path.suffix.lower() in tagged_files.SUFFIXES and path.suffix.lower() != ".txt":
            return [words for words, _ in tagged_files.lines(path)][:most]
        return super().examples_of(path, most)

    # Augmentation

    def augmented(
        self, example: Example, encoder: Encoder, settings: Any, generator: np.random.Generator, names: Sequence[str]
    ) -> tuple[Arrays, NDArray[np.int64]]:
        changed = augmented(example, settings, generator, names)
        return encoder(changed.input), self.truth([changed])

    # Answers

    def rows(self, output: Any, inputs: Mapping[str, Any]) -> Any:
        return runtime.rows(output, inputs)

    def truth(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        labels = [e.label if e.label is not None else [-1] * len(e.input) for e in examples]
        return np.asarray([label for each in labels for label in each], dtype=np.int64)

    def captions(self, examples: Sequence[Example]) -> list[str]:
        return [f"{word}: {' '.join(each.input)}" for each in examples for word in each.input]

    def metrics(self, answers: NDArray[Any], examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        """Precision, recall and F1 of whole entities, by type and together, by the rules of conlleval; and the share of
        words with the right tag."""
        said = runtime.tags(answers, names)
        counts: dict[str, list[int]] = {kind: [0, 0, 0] for kind in _types(names)}  # right, predicted, there
        start = right = 0
        for example in examples:
            wanted = [names[label] for label in example.label]
            given = said[start : start + len(wanted)]
            start += len(wanted)
            right += sum(a == b for a, b in zip(wanted, given, strict=True))
            first, second = set(runtime.entities(wanted)), set(runtime.entities(given))
            for kind, count in counts.items():
                count[0] += sum(each[0] == kind for each in first & second)
                count[1] += sum(each[0] == kind for each in second)
                count[2] += sum(each[0] == kind for each in first)
        together = _scores(*(sum(count[i] for count in counts.values()) for i in range(3)))
        return {
            "score": together["f1"],
            "score_name": self.SCORE_NAME,
            "examples": len(examples),
            "precision": together["precision"],
            "recall": together["recall"],
            "word_accuracy": right / max(start, 1),
            "per_class": {kind: {**_scores(*count), "support": count[2]} for kind, count in counts.items()},
        }

    # Calibration

    def identity(self, given: Any) -> Any:
        return super().identity(" ".join(given))

    def read_calibration(
        self, path: Path, options: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[list[Any], list[int] | None]:
        return list(self.unlabeled(path, options.get("text_column"))), None


def augmented(
    example: Example,
    settings: text_augmentation.TextAugmentation,
    generator: np.random.Generator,
    names: Sequence[str],
) -> Example:
    """Words with their tags after what the settings ask for. A word that is left out takes its tag along, and words
    exchange their places only with words of the same tag, so that every entity stays one."""
    places = text_augmentation.remaining(len(example.input), settings.word_dropout, generator)
    labels = None if example.label is None else [example.label[place] for place in places]
    order = text_augmentation.exchanged(labels or [0] * len(places), settings.word_swap, generator)
    words = [example.input[places[place]] for place in order]
    return Example(
        text_augmentation.misspelt(words, settings.typos, generator), None if labels is None else _begun(labels, names)
    )


def _begun(labels: Sequence[int], names: Sequence[str]) -> list[int]:
    """Tags of which some were left out: where an entity lost its beginning, what follows begins it."""
    made: list[int] = []
    for place, label in enumerate(labels):
        prefix, _, kind = names[label].partition("-")
        goes_on = place > 0 and names[labels[place - 1]] in (f"B-{kind}", f"I-{kind}")
        made.append(names.index(f"B-{kind}") if prefix == "I" and not goes_on else label)
    return made


def _scores(right: int, predicted: int, there: int) -> dict[str, float]:
    precision, recall = right / max(predicted, 1), right / max(there, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(precision + recall, 1e-12)}


def _types(names: Sequence[str]) -> list[str]:
    """The entity types of tags."""
    return sorted({name.partition("-")[2] for name in names if name != OUTSIDE})


def _names(found: set[str], parameters: TextPreparation, path: Path) -> list[str]:
    """The tags in order: `O`, then B- and I- of each type; or those that a trained model knows. Raises InputError."""
    if parameters.known_labels is not None:
        unknown = sorted(found - set(parameters.known_labels))
        if unknown:
            raise InputError(
                f"{path}: tag '{unknown[0]}' is none of the model's ({', '.join(parameters.known_labels)}). Use data "
                "with the same tags, or train a new head: --finetune, or `toolkit finetune MODEL`."
            )
        return list(parameters.known_labels)
    if found <= {OUTSIDE}:
        raise InputError(f"{path}: all words have the tag '{OUTSIDE}'; there is nothing to learn.")
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in _types(sorted(found)) for prefix in "BI")]


TASK = TokenClassification()
