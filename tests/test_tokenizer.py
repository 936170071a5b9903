"""The runtime tokenizes exactly as training did: the same ids as the Hugging Face tokenizer, on anything at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.engine_bundles import engine_bundle
from tests.unicode_texts import random_texts
from toolkit.errors import InputError
from toolkit.runtime.text import TextEncoder

STRINGS = 10_000
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    """Ten thousand strings: chosen ones, one of 100 kB, real sentences in three cases, and random ones."""
    real = [text for text, _ in sentences[:1500]]
    cased = [change(text) for text in real[:300] for change in (str.upper, str.title)]
    made = [" ".join(real)[:100_000], *real, *cased]
    return made + random_texts(STRINGS - len(made), " ".join(real).split())


@pytest.fixture(scope="module")
def reference(tuned: Path) -> Any:
    """The tokenizer as training and the Hugging Face ecosystem read it from the checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tuned)


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return read


def make_encoder(bundle: Path, lengths: list[int] | None, max_length: int, side: str = "right") -> TextEncoder:
    return TextEncoder(
        bundle / "tokenizer.json", max_length=max_length, inputs=INPUTS, lengths=lengths, truncation_side=side
    )


def test_ids_and_masks_are_those_of_the_hugging_face_tokenizer(
    bundle: Path, manifest: dict[str, Any], reference: Any, texts: list[str]
) -> None:
    limit = manifest["preprocessing"]["max_length"]
    encoder = make_encoder(bundle, None, limit)
    assert len(texts) == STRINGS
    assert max(map(len, texts)) == 100_000
    longest = 0
    for text in texts:
        expected = reference(text, truncation=True, max_length=limit)
        arrays = encoder(text)
        assert encoder.ids(text) == expected["input_ids"], ascii(text[:200])
        for name in INPUTS:
            assert arrays[name].dtype == np.int64
            assert arrays[name].shape == (1, len(expected["input_ids"]))
            assert arrays[name][0].tolist() == expected[name], (name, ascii(text[:200]))
        longest = max(longest, len(expected["input_ids"]))
    assert longest == limit  # some texts were truncated


def test_random_texts_reach_the_vocabulary(bundle: Path, texts: list[str]) -> None:
    """The random strings are worth comparing: thousands of different ids come up, not just the unknown one."""
    encoder = make_encoder(bundle, None, 128)
    used = {token for text in texts[-5000:] for token in encoder.ids(text)}
    assert len(used) > 2000


def test_padding_to_the_input_lengths_is_the_hugging_face_one(
    bundle: Path, reference: Any, sentences: list[tuple[str, str]]
) -> None:
    lengths = [16, 32, 128]
    encoder = make_encoder(bundle, lengths, 128)
    seen = set()
    for text in ["", *(text for text, _ in sentences[:300]), "word " * 600]:
        arrays = encoder(text)
        tokens = len(encoder.ids(text))
        length = next(length for length in lengths if length >= tokens)
        seen.add(length)
        expected = reference(text, truncation=True, max_length=128)
        padded = reference.pad(expected, padding="max_length", max_length=length, padding_side="right")
        for name in INPUTS:
            assert arrays[name].shape == (1, length)
            assert arrays[name][0].tolist() == padded[name]
    assert seen == set(lengths)


def test_bundle_encodes_to_the_artifacts_own_lengths(encoder: Path, reviews: Path, reference: Any) -> None:
    folder = engine_bundle("litert", encoder, reviews)
    artifact = json.loads((folder / "manifest.json").read_text())["artifact"]
    pipeline = toolkit.load(folder)
    for words in (1, 10, 30, 70, 500):
        arrays = pipeline.encoder("film " * words)
        assert set(arrays) == {tensor["name"] for tensor in artifact["inputs"]}
        assert {array.shape[1] for array in arrays.values()} <= set(artifact["lengths"])
        tokens = reference("film " * words, truncation=True, max_length=artifact["lengths"][-1])["input_ids"]
        assert arrays["input_ids"][0, : len(tokens)].tolist() == tokens
        assert int(arrays["attention_mask"].sum()) == len(tokens)
    pipeline.close()


def test_padding_uses_the_given_ids(bundle: Path) -> None:
    encoder = TextEncoder(
        bundle / "tokenizer.json", max_length=16, inputs=INPUTS, pad_id=7, pad_type_id=3, lengths=[16]
    )
    arrays = encoder("short")
    assert arrays["input_ids"][0, 3:].tolist() == [7] * 13
    assert arrays["token_type_ids"][0, 3:].tolist() == [3] * 13
    assert arrays["attention_mask"][0].tolist() == [1] * 3 + [0] * 13


def test_left_truncation_is_the_hugging_face_one(bundle: Path, tuned: Path) -> None:
    from transformers import AutoTokenizer

    left = AutoTokenizer.from_pretrained(tuned, truncation_side="left")
    text = " ".join(f"word{number}" for number in range(40))
    ids = make_encoder(bundle, None, 16, side="left").ids(text)
    assert ids == left(text, truncation=True, max_length=16)["input_ids"]
    assert ids != make_encoder(bundle, None, 16).ids(text)


@pytest.mark.parametrize("text", ["\ud83d", "half an emoji \udc4d here", "\udfff\ud800"])
def test_lone_surrogate_is_refused(bundle: Path, text: str) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        make_encoder(bundle, None, 128)(text)


@pytest.mark.parametrize("value", [b"bytes", None, 3, 1.5, ["a list"], ("a", "pair"), {"text": "a"}])
def test_what_is_no_text_is_refused(bundle: Path, value: Any) -> None:
    with pytest.raises(InputError, match=f"got {type(value).__name__}"):
        make_encoder(bundle, None, 128)(value)


def test_damaged_tokenizer_file_is_refused(tmp_path: Path) -> None:
    damaged = tmp_path / "tokenizer.json"
    damaged.write_text('{"version": "1.0", "model": ')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer file"):
        TextEncoder(damaged, max_length=128, inputs=INPUTS)
