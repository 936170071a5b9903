"""The runtime tokenizes exactly as training did: the same ids as the Hugging Face tokenizer, on anything at all."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.engine_bundles import engine_bundle
from toolkit.errors import InputError
from toolkit.runtime.text import TextEncoder

STRINGS = 10_000
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# Where the random characters come from: first and last code point. No surrogates (they are not characters).
BLOCKS = {
    "control": (0x00, 0x1F),
    "ascii": (0x20, 0x7E),
    "latin 1 and its controls": (0x7F, 0xFF),
    "latin extended": (0x100, 0x24F),
    "modifiers and combining marks": (0x2B0, 0x36F),
    "greek": (0x370, 0x3FF),
    "cyrillic": (0x400, 0x52F),
    "hebrew": (0x590, 0x5FF),
    "arabic": (0x600, 0x6FF),
    "devanagari": (0x900, 0x97F),
    "thai": (0xE00, 0xE7F),
    "hangul letters": (0x1100, 0x11FF),
    "latin additional": (0x1E00, 0x1EFF),
    "spaces, zero width and punctuation": (0x2000, 0x206F),
    "currency and letter-like": (0x20A0, 0x214F),
    "arrows and mathematics": (0x2190, 0x22FF),
    "symbols": (0x2600, 0x27BF),
    "cjk punctuation and kana": (0x3000, 0x30FF),
    "cjk": (0x4E00, 0x9FFF),
    "hangul": (0xAC00, 0xD7A3),
    "private use": (0xE000, 0xF8FF),
    "cjk compatibility": (0xF900, 0xFAFF),
    "arabic presentation": (0xFB50, 0xFDFF),
    "variation selectors": (0xFE00, 0xFE0F),
    "full width": (0xFF00, 0xFFEF),
    "specials": (0xFFF0, 0xFFFF),
    "gothic": (0x10330, 0x1034F),
    "mathematical letters": (0x1D400, 0x1D7FF),
    "emoji": (0x1F300, 0x1FAFF),
    "cjk extension B": (0x20000, 0x2A6DF),
    "tags": (0xE0000, 0xE007F),
    "private use, plane 16": (0x100000, 0x10FFFF),
}
CHOSEN = (
    "",
    " ",
    " \t\r\n\x0b\x0c\u00a0\u2003\u3000",
    "\0",
    "a\0b",
    "\ufeffmark at the start",
    "zero\u200bwidth\u200c \u200djoiner\u2060",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪 1️⃣",
    "e\u0301 \u00e9 Å \u212b A\u030a",
    "Zalgo t\u0300\u0301\u0302\u0303\u0304ext",
    "ﬁ ﬂ \u017f \u0130 \u0131 ß ẞ Ǆ",
    "中文字符と日本語 한국어 각 ㄱㅏㄱ",
    "مرحبا بالعالم ﷺ",
    "[CLS] [SEP] [PAD] [MASK] [UNK] [cls] ##ing",
    "don't U.S.A. $3.50 x=1;y--",
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "pneumono" * 500,
    "word " * 600,
    "中" * 600,
    "-" * 600,
)


def random_text(generator: random.Random, words: list[str]) -> str:
    """A string of one to five runs, each from one block or out of a real word, some in mixed case, some glued, some
    joined by U+200D."""
    runs = []
    for _ in range(generator.randint(1, 5)):
        first, last = BLOCKS[generator.choice(list(BLOCKS))]
        run = "".join(chr(generator.randint(first, last)) for _ in range(generator.randint(1, 12)))
        if generator.random() < 0.3:
            run = generator.choice(words)[generator.randint(0, 2) :]
        runs.append(generator.choice((str, str.upper, str.title, str.swapcase))(run))
    return generator.choice(("", " ", "\u200d", "\u0301", "  ", "\n")).join(runs)


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    """Ten thousand strings: chosen ones, one of 100 kB, real sentences in three cases, and random ones."""
    generator = random.Random(0)
    real = [text for text, _ in sentences[:1500]]
    cased = [change(text) for text in real[:300] for change in (str.upper, str.title)]
    made = [*CHOSEN, " ".join(real)[:100_000], *real, *cased]
    words = " ".join(real).split()
    return made + [random_text(generator, words) for _ in range(STRINGS - len(made))]


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
