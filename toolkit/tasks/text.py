"""What all tasks on texts share: the tokenizer, its lengths, and what is no text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from toolkit import data as tables
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.text import TextEncoder
from toolkit.tasks import lengths as input_lengths
from toolkit.tasks import text_augmentation
from toolkit.tasks.description import ModelDescription, TensorDescription
from toolkit.tasks.task import Example, Preparation, Task
from toolkit.tasks.unigrams import randomness

# Between what real texts of other kinds reach (0.15 for news beside film reviews) and random letters do (0.63).
_RANDOM = 0.4
_TAIL = 90  # percentile of the lengths that calibration examples should reach
_FILES = ("tokenizer", "vocab", "merges", "special_tokens", "spiece")  # how tokenizers' files begin


_MAX_LENGTH = 128  # tokens, where nothing says how long texts are


def max_length(encoding: Mapping[str, Any]) -> int:
    """The most tokens of a text."""
    return int(encoding.get("max_length", _MAX_LENGTH))


class TextPreparation(Preparation):
    """`text_column`, `label_column`: the columns, where they are not found by name; `max_length`: the most tokens."""

    text_column: str | None = None
    label_column: str | None = None
    max_length: int | None = None
    model_limit: int = 512


class TextTask(Task):
    """A task whose examples are texts."""

    FILES = ("tokenizer.json", "tokenizer_config.json")
    INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
    Preparation = TextPreparation
    Augmentation = text_augmentation.TextAugmentation
    Tokenizer: ClassVar[type[TextEncoder]] = TextEncoder

    # Data

    def measured(
        self, source: Path, examples: Sequence[Example], parameters: TextPreparation, context: Any
    ) -> dict[str, Any]:
        """What the lengths of the examples lead to, for the report of `prepare`: the settings of the encoder, and the
        input lengths of artifacts with fixed shapes. Raises InputError."""
        encoder = self.tokenizer(source)
        tokens = []
        for index, example in enumerate(examples):
            tokens.append(len(encoder.ids(example.input)))
            if index % 2000 == 0:
                context.progress(index, len(examples), "measuring lengths")
        limit = parameters.model_limit
        longest = parameters.max_length or input_lengths.choose_max_length(tokens, limit)
        if longest > limit:
            raise InputError(f"--max-length {longest}: the model takes at most {limit} tokens.")
        return {
            "tokens": input_lengths.statistics(tokens),
            "truncated": sum(count > longest for count in tokens),
            "encoding": {"max_length": longest},
            "lengths": input_lengths.choose_buckets(tokens, longest),
        }

    def check_unlabeled(self, path: Path, column: str | None) -> None:
        tables.check_texts(path, column)

    def unlabeled(self, path: Path, column: str | None) -> Iterator[Any]:
        yield from (text for text in tables.stream_texts(path, column) if text.strip())

    # Checkpoints

    def settings_of(self, checkpoint: Any) -> dict[str, Any]:
        return {"model_limit": checkpoint.model_limit}

    def settings_that_keep(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        return {"max_length": max_length(encoding), "model_limit": max_length(encoding)}

    def check_checkpoint(self, folder: Path, config: Mapping[str, Any]) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise InputError(
                f"{folder} has no tokenizer.json. Save it beside the weights with "
                "AutoTokenizer.from_pretrained(...).save_pretrained(folder)."
            )

    def fits(self, checkpoint: Any, encoding: Mapping[str, Any], option: str) -> None:
        longest = max_length(encoding)
        if longest > checkpoint.model_limit:
            raise InputError(
                f"{option}: it takes at most {checkpoint.model_limit} tokens, the texts have up to {longest}; "
                f"truncate them with --max-length {checkpoint.model_limit}."
            )

    def copy_files(self, source: Path, output: Path, encoding: Mapping[str, Any]) -> None:
        for path in source.iterdir():
            if path.is_file() and path.name.startswith(_FILES):
                shutil.copy(path, output / path.name)

    # Inputs

    def encoder(
        self,
        folder: Path,
        encoding: Mapping[str, Any],
        *,
        inputs: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Encoder:
        return self._encoder(folder, encoding, self.INPUT_NAMES if inputs is None else inputs, lengths)

    def describe_inputs(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, TensorDescription]:
        # The names by which tools of TensorFlow Lite find the inputs of an encoder.
        return {
            "input_ids": TensorDescription("ids", "Numbers of the text's tokens, padded."),
            "attention_mask": TensorDescription("mask", "1 for a token, 0 for padding."),
            "token_type_ids": TensorDescription("segment_ids", "Which of two texts a token is of; 0 for one."),
        }

    def describe(self, folder: Path, encoding: Mapping[str, Any]) -> ModelDescription:
        model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
        described = super().describe(folder, encoding)
        if model.get("type") != "WordPiece":  # a list of tokens is not all that other tokenizers are made of
            return described
        tokens = sorted(model["vocab"], key=model["vocab"].get)
        if [model["vocab"][token] for token in tokens] != list(range(len(tokens))):
            return described
        return replace(described, vocabulary=tuple(tokens))

    def _encoder(
        self, folder: Path, encoding: Mapping[str, Any], inputs: Sequence[str], lengths: Sequence[int] | None = None
    ) -> TextEncoder:
        spec = self.preprocessing(folder, encoding)
        return self.Tokenizer(
            folder / "tokenizer.json",
            max_length=max_length(encoding),
            inputs=inputs,
            pad_id=spec["pad_id"],
            pad_type_id=spec["pad_type_id"],
            truncation_side=spec["truncation_side"],
            lengths=lengths,
        )

    def tokenizer(self, folder: Path, longest: int = 10**9) -> TextEncoder:
        """The encoder of a folder for counting tokens."""
        return self.Tokenizer(folder / "tokenizer.json", max_length=longest, inputs=())

    def preprocessing(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, Any]:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tokenizer_config = folder / "tokenizer_config.json"
        tokenizer = json.loads(tokenizer_config.read_text(encoding="utf-8")) if tokenizer_config.exists() else {}
        return {
            "kind": "tokenizer",
            "path": "tokenizer.json",
            "max_length": max_length(encoding),
            "truncation_side": tokenizer.get("truncation_side") or "right",
            "pad_id": int(config.get("pad_token_id") or 0),
            "pad_type_id": int(tokenizer.get("pad_token_type_id") or 0),
        }

    def lengths(
        self, folder: Path, encoding: Mapping[str, Any], examples: Sequence[Example], most: int
    ) -> list[int] | None:
        longest = max_length(encoding)
        encoder = self.tokenizer(folder, longest)
        counts = [len(encoder.ids(example.input)) for example in examples]
        return input_lengths.choose_buckets(counts, longest, most)

    # Augmentation

    def augmented(
        self, example: Example, encoder: Encoder, settings: Any, generator: np.random.Generator, names: Sequence[str]
    ) -> tuple[Arrays, NDArray[np.int64]]:
        return encoder(text_augmentation.changed(example.input, settings, generator)), self.truth([example])

    # Calibration

    def sizes(self, inputs: Sequence[Any], folder: Path, encoding: Mapping[str, Any]) -> list[int]:
        encoder = self.tokenizer(folder, max_length(encoding))
        return [len(encoder.ids(each)) for each in inputs]

    def identity(self, given: Any) -> Any:
        return " ".join(str(given).casefold().split())

    def read_calibration(
        self, path: Path, options: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[list[Any], list[int] | None]:
        if path.suffix.lower() == ".txt":
            return [text for text in tables.stream_texts(path) if text], None
        rows = tables.read_rows(path)
        text_column = tables.find_column(path, rows, options.get("text_column"), tables.TEXT_COLUMNS, "text")
        lowered = {column.lower(): column for column in rows[0]}
        label_column = options.get("label_column") or next(
            (lowered[name] for name in tables.LABEL_COLUMNS if name in lowered), None
        )
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

    def doubts(self, given: Sequence[Any], real: Sequence[Any], folder: Path, encoding: Mapping[str, Any]) -> list[str]:
        encoder = self.tokenizer(folder, max_length(encoding))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        vocabulary = int(config.get("vocab_size") or encoder.size)  # that of an ONNX file is not told
        tokens, usual = [encoder.ids(each) for each in given], [encoder.ids(each) for each in real]
        check_texts(tokens, usual, vocabulary)
        return unusual_lengths([len(ids) for ids in tokens], [len(ids) for ids in usual])


def check_texts(given: Sequence[Sequence[int]], real: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Refuse tokens that are no texts of the task's kind. Raises InputError."""
    nearness = randomness(real, given, vocabulary)
    if nearness > _RANDOM:
        raise InputError(
            f"The calibration examples look like random data, or like another language: their tokens stand at "
            f"{nearness:.2f} on a scale from 0, texts of the task, to 1, random draws from the vocabulary. Ranges "
            "taken from them would hold for nothing; give texts that the model will meet."
        )


def unusual_lengths(given: Sequence[int], real: Sequence[int]) -> list[str]:
    """Warnings of calibration texts that are longer or shorter than the task's, or never long. Lengths in tokens."""
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
