"""The token-classification task on the device: text → words → tensors → a tag per word → spans with their offsets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.manifest import Manifest
from toolkit.runtime.pipeline import Pipeline, softmax
from toolkit.runtime.text import TextEncoder, encoder_of, padded

WORDS = "words"  # the name of the array that says where each word's first token is; no input of the model
_NO_WORD, _NO_TOKEN = -1, -2  # behind the last word; a word that was cut off, or that the tokenizer drops
OUTSIDE = "O"
_WORD = re.compile(r"[@#]?\w+|[^\w\s]")


def split_words(text: str) -> list[tuple[str, int, int]]:
    """The words of a text with where they begin and end, so that `text[begin:end]` is the word: runs of letters, digits
    and underscores, with @ or # in front if there is one, and every other sign that is no space alone."""
    if not isinstance(text, str):
        raise InputError(f"A text is a str; got {type(text).__name__}.")
    return [(match.group(), match.start(), match.end()) for match in _WORD.finditer(text)]


def words_of(example: Any) -> list[str]:
    """The words of an example: a text, or one that is split into words already. Raises InputError."""
    if isinstance(example, str):
        return [word for word, _, _ in split_words(example)]
    if not isinstance(example, list) or not all(isinstance(word, str) for word in example):
        raise InputError(f"A text is a str, or a list of its words; got {type(example).__name__}.")
    return example


class WordEncoder(TextEncoder):
    """A tokenizer for words: besides the model's inputs it gives `words`, int64[1, words], the place of each word's
    first token."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        described = json.loads(self._tokenizer.to_str()).get("pre_tokenizer") or {}
        # Byte-level tokenizers tell a word at the beginning from one behind a space, if they do not put one there.
        self._spaces = described.get("type") == "ByteLevel" and not described.get("add_prefix_space")
        self.padding = {**self.padding, WORDS: _NO_WORD}

    def _encode(self, example: Any) -> Any:
        words = words_of(example)
        if self._spaces:
            words = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
        return self._tokenized(words)

    def __call__(self, example: Any) -> Arrays:
        encoding = self._encode(example)
        places = np.full((1, len(words_of(example))), _NO_TOKEN, dtype=np.int64)
        for place, word in reversed(list(enumerate(encoding.word_ids))):
            if word is not None:
                places[0, word] = place
        return {**self._arrays(encoding), WORDS: places}

    def batch(self, encoded: Sequence[Mapping[str, Any]], step: int = 1) -> Arrays:
        """As of texts; `words` is filled up to the most words."""
        arrays = super().batch([{name: each[name] for name in each if name != WORDS} for each in encoded], step)
        most = max(each[WORDS].shape[1] for each in encoded)
        return {**arrays, WORDS: padded([each[WORDS] for each in encoded], _NO_WORD, most)}


def rows(output: Any, inputs: Mapping[str, Any]) -> Any:
    """The rows of the words in an output [examples, tokens, classes], a tensor or an array; zeros for a word without a
    token."""
    words = np.asarray(inputs[WORDS])
    examples, columns = np.nonzero(words != _NO_WORD)
    places = words[examples, columns]
    picked = output[examples, np.maximum(places, 0)]
    if (places < 0).any():
        picked[places < 0] = 0
    return picked


def tags(answers: NDArray[Any], names: Sequence[str]) -> list[str]:
    """The tag of every row; of one that is zero, whose word the model did not see, `O`."""
    said = [names[int(index)] for index in answers.argmax(axis=1)]
    seen = [bool(row.any()) for row in answers]
    return [tag if known else OUTSIDE for tag, known in zip(said, seen, strict=True)]


def entities(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first word, word behind the last) of every entity, by the rules of conlleval: an I- that follows no word
    of its type begins an entity."""
    found: list[tuple[str, int, int]] = []
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, kind = tag.partition("-")
        if tag == OUTSIDE:
            continue
        goes_on = prefix == "I" and found and found[-1][0] == kind and found[-1][2] == place
        if goes_on:
            found[-1] = (kind, found[-1][1], place + 1)
        else:
            found.append((kind, place, place + 1))
    return found


class TokenClassifier(Pipeline):
    """Callable: one text → its spans, a list of texts → a list of them.

    A span is `{"type": str, "text": str, "start": int, "end": int, "score": float}`; `text[start:end]` is its text.
    Long texts are read in parts. Instead of a text, its words may be given as a list in a list; offsets are then those
    of the words with a space between them.
    """

    def make_encoder(self, manifest: Manifest) -> Encoder:
        return encoder_of(manifest, WordEncoder)

    def rows(self, output: Any, arrays: Arrays) -> Any:
        return rows(output, arrays)

    def predict(self, example: Any) -> list[dict[str, Any]]:
        words = words_of(example)
        parts: list[NDArray[np.float32]] = []
        start = 0
        while start < len(words):
            arrays = self.encoder(words[start:])
            seen = np.flatnonzero(arrays[WORDS][0] >= 0)
            stop = len(words) if seen.size == 0 else start + int(seen[-1]) + 1
            # A word that is cut in the middle is read again with what follows, unless it is the first already.
            if stop < len(words) and seen.size > 1:
                stop -= 1
            parts.append(np.asarray(self.answers(words[start:])[: stop - start], dtype=np.float32))
            start = stop
        return self.prediction(np.concatenate(parts), example) if parts else []

    def prediction(self, answers: NDArray[np.float32], example: Any) -> list[dict[str, Any]]:
        scores = softmax(answers).max(axis=1)
        text, offsets = _offsets(example)
        return [
            {
                "type": kind,
                "text": text[offsets[first][0] : offsets[behind - 1][1]],
                "start": offsets[first][0],
                "end": offsets[behind - 1][1],
                "score": float(scores[first:behind].mean()),
            }
            for kind, first, behind in entities(tags(answers, self.labels))
        ]

    def decision(self, answers: NDArray[np.float32], example: Any) -> list[list[Any]]:
        return [[kind, first, behind] for kind, first, behind in entities(tags(answers, self.labels))]


def _offsets(example: Any) -> tuple[str, list[tuple[int, int]]]:
    """(the text, where each word begins and ends in it)."""
    if isinstance(example, str):
        return example, [(start, end) for _, start, end in split_words(example)]
    offsets, start = [], 0
    for word in example:
        offsets.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(example), offsets


PIPELINE = TokenClassifier
