"""Text to the tensors of a model: tokenize, truncate, pad. numpy + tokenizers only.

The tokenizer is the one that training used, serialized; the ids are the same to the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.manifest import Manifest


class TextEncoder(Encoder):
    """A bundle's tokenizer with its truncation and padding rule.

    `lengths` are the input lengths that the artifact has, ascending; None means any length.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        *,
        max_length: int,
        inputs: Sequence[str],
        pad_id: int = 0,
        pad_type_id: int = 0,
        truncation_side: str = "right",
        lengths: Sequence[int] | None = None,
    ) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise MissingDependencyError(  # every extra has it, and the engine's is not known here
                "Reading text needs the package 'tokenizers', which is not installed. "
                "Install it with: pip install tokenizers"
            ) from error
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise InputError(f"{tokenizer_file} is not a tokenizer file: {error}") from error
        if self.size == 0:
            raise InputError(f"{tokenizer_file} has an empty vocabulary.")
        self._tokenizer.no_padding()
        if lengths:
            max_length = min(max_length, lengths[-1])
        self._tokenizer.enable_truncation(max_length, direction=truncation_side)
        self._truncation_side = truncation_side
        self._inputs = tuple(inputs)
        self.padding = {"input_ids": pad_id, "attention_mask": 0, "token_type_ids": pad_type_id}
        self._lengths = tuple(lengths) if lengths else None
        self.max_length = max_length

    @property
    def size(self) -> int:
        """How many tokens the vocabulary has, with those that were added to it; 0 if it has only such."""
        if self._tokenizer.get_vocab_size(with_added_tokens=False) == 0:
            return 0
        return int(self._tokenizer.get_vocab_size())

    def steps(self, example: Any) -> dict[str, Any]:
        self._tokenizer.no_truncation()
        try:
            whole = self._encode(example)
        finally:
            self._tokenizer.enable_truncation(self.max_length, direction=self._truncation_side)
        return {"tokenize": np.asarray(whole.ids), "truncate": np.asarray(self.ids(example))}

    def ids(self, example: Any) -> list[int]:
        """Token ids of one example, truncated to the model's length."""
        return list(self._encode(example).ids)

    def _encode(self, example: Any) -> Any:
        if not isinstance(example, str):
            raise InputError(f"A text is a str; got {type(example).__name__}.")
        return self._tokenized(example)

    def _tokenized(self, text: str | Sequence[str]) -> Any:
        """The encoding of a text, or of one that is split into words already."""
        try:
            return self._tokenizer.encode(text, is_pretokenized=not isinstance(text, str))
        except (TypeError, UnicodeEncodeError) as error:  # what tokenizers raises depends on its version
            raise InputError("The text is not valid Unicode: it holds half of a surrogate pair.") from error

    def padded_length(self, tokens: int) -> int:
        """Length of the tensors for a text of `tokens` tokens."""
        if self._lengths is None:
            return tokens
        return next((length for length in self._lengths if length >= tokens), self._lengths[-1])

    def __call__(self, example: Any) -> Arrays:
        """One text → int64 arrays of shape [1, length], by input name."""
        return self._arrays(self._encode(example))

    def _arrays(self, encoding: Any) -> Arrays:
        count = len(encoding.ids)
        columns = {
            "input_ids": encoding.ids,
            "attention_mask": encoding.attention_mask,
            "token_type_ids": encoding.type_ids,
        }
        arrays = {}
        for name in self._inputs:
            array = np.full((1, self.padded_length(count)), self.padding[name], dtype=np.int64)
            array[0, :count] = columns[name]
            arrays[name] = array
        return arrays

    def sample(self, rows: int, length: int | None = None) -> Arrays:
        return {name: np.ones((rows, length or self.max_length), dtype=np.int64) for name in self._inputs}

    def axes(self) -> dict[str, list[str | int]]:
        return {name: ["batch", "length"] for name in self._inputs}

    def length(self, arrays: Mapping[str, Any]) -> int:
        """Tokens, with those that fill it up."""
        return int(arrays[self._inputs[0]].shape[1])

    def batch(self, encoded: Sequence[Mapping[str, Any]], step: int = 1) -> Arrays:
        """int64[n, longest]; the longest is rounded up to a multiple of `step`, up to the model's length."""
        longest = max(self.length(arrays) for arrays in encoded)
        longest = max(longest, min(-(-longest // step) * step, self.max_length))
        return {name: padded([arrays[name] for arrays in encoded], self.padding[name], longest) for name in encoded[0]}


def padded(rows: Sequence[Any], value: int, length: int) -> Any:
    """Arrays of shape [1, n] stacked to int64[rows, length], filled up with `value`."""
    stacked = np.full((len(rows), length), value, dtype=np.int64)
    for row, array in enumerate(rows):
        stacked[row, : array.shape[1]] = array[0]
    return stacked


def encoder_of(manifest: Manifest, kind: type[TextEncoder] = TextEncoder) -> TextEncoder:
    """The encoder that a manifest's `preprocessing` and `artifact` sections describe."""
    preprocessing, artifact = manifest.data["preprocessing"], manifest.data["artifact"]
    return kind(
        manifest.preprocessing_file,
        max_length=int(preprocessing["max_length"]),
        inputs=[tensor["name"] for tensor in artifact["inputs"]],
        pad_id=int(preprocessing["pad_id"]),
        pad_type_id=int(preprocessing["pad_type_id"]),
        truncation_side=str(preprocessing["truncation_side"]),
        lengths=artifact.get("lengths"),
    )
