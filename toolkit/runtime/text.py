"""Text to the tensors of a model: tokenize, truncate, pad. numpy + tokenizers only.

The tokenizer is the one that training used, serialized; the ids are the same to the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError, MissingDependencyError


class TextEncoder:
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
        self._tokenizer.enable_truncation(max_length, direction=truncation_side)
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

    def ids(self, text: str) -> list[int]:
        """Token ids of one text, truncated to the model's length."""
        return list(self._encode(text).ids)

    def _encode(self, text: str) -> Any:
        if not isinstance(text, str):
            raise InputError(f"A text is a str; got {type(text).__name__}.")
        try:
            return self._tokenizer.encode(text)
        except (TypeError, UnicodeEncodeError) as error:  # what tokenizers raises depends on its version
            raise InputError("The text is not valid Unicode: it holds half of a surrogate pair.") from error

    def padded_length(self, tokens: int) -> int:
        """Length of the tensors for a text of `tokens` tokens."""
        if self._lengths is None:
            return tokens
        return next((length for length in self._lengths if length >= tokens), self._lengths[-1])

    def __call__(self, text: str) -> dict[str, NDArray[np.int64]]:
        """One text → int64 arrays of shape [1, length], by input name."""
        encoding = self._encode(text)
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


def from_spec(folder: Path, preprocessing: dict[str, Any], artifact: dict[str, Any]) -> TextEncoder:
    """The encoder that a manifest's `preprocessing` and `artifact` sections describe."""
    return TextEncoder(
        folder / str(preprocessing["path"]),
        max_length=int(preprocessing["max_length"]),
        inputs=[tensor["name"] for tensor in artifact["inputs"]],
        pad_id=int(preprocessing["pad_id"]),
        pad_type_id=int(preprocessing["pad_type_id"]),
        truncation_side=str(preprocessing["truncation_side"]),
        lengths=artifact.get("lengths"),
    )
