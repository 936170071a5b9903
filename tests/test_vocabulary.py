"""Vocabularies cut to what texts need: what stays, and that every text still tokenizes, in every kind of tokenizer."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from tests.unicode_texts import random_texts
from toolkit import demo, vocabulary
from toolkit.errors import InputError

TEXTS = 400
STRINGS = 2_000  # of each kind; the real tokenizer reads 10,000 in test_prune


@pytest.fixture(scope="module")
def texts(sentences: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in sentences[:TEXTS]]


def trained(kind: str, texts: list[str]) -> dict[str, Any]:
    """A tokenizer of each kind, trained on real sentences; WordPiece is MiniLM's own."""
    if kind == "WordPiece":
        return vocabulary.read(demo.find().model)
    if kind == "BPE":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=2000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=2000, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
        )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    first, last = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", first), ("</s>", last)]
    )
    loaded: dict[str, Any] = json.loads(tokenizer.to_str())
    return loaded


def made(tokenizer: dict[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(tokenizer))


@pytest.fixture(scope="module", params=["WordPiece", "BPE", "Unigram"])
def pair(request: pytest.FixtureRequest, texts: list[str]) -> tuple[Tokenizer, Tokenizer, list[int]]:
    """A tokenizer, the same cut to half the texts' tokens, and the ids that stayed."""
    original = trained(request.param, texts)
    whole = made(original)
    whole.no_truncation()
    whole.no_padding()
    counts = vocabulary.count(lambda text: whole.encode(text).ids, texts[: TEXTS // 2])
    kept = vocabulary.choose(original, counts, coverage=0.9)
    return whole, made(vocabulary.rewrite(original, kept)), kept


def test_kept_tokens_have_new_numbers_in_the_old_order(pair: tuple[Tokenizer, Tokenizer, list[int]]) -> None:
    whole, cut, kept = pair
    assert cut.get_vocab_size() == len(kept) < whole.get_vocab_size()
    for new, old in enumerate(kept):
        assert cut.id_to_token(new) == whole.id_to_token(old)


def test_texts_of_kept_tokens_are_tokenized_as_before(
    pair: tuple[Tokenizer, Tokenizer, list[int]], texts: list[str]
) -> None:
    whole, cut, kept = pair
    place = {old: new for new, old in enumerate(kept)}
    same = 0
    for text in texts:
        before = whole.encode(text).ids
        if all(index in place for index in before):
            same += 1
            if cut.model.__class__.__name__ != "Unigram":  # whose best split may change with the pieces that are left
                assert cut.encode(text).ids == [place[index] for index in before]
    assert same > 10


def test_nothing_that_could_be_tokenized_is_unknown_now(
    pair: tuple[Tokenizer, Tokenizer, list[int]], texts: list[str]
) -> None:
    whole, cut, _ = pair
    unknown = next(token for token in ("[UNK]", "<unk>") if cut.token_to_id(token) is not None)
    draw = random.Random(0)
    characters = sorted({character for text in texts for character in text})
    strange = ["".join(draw.choices(characters, k=draw.randint(1, 60))) for _ in range(500)]
    for text in [*texts, *strange, "", " ", "\u200d", "naïve café 模型 🙂"]:
        before, after = whole.encode(text).tokens, cut.encode(text).tokens
        assert after.count(unknown) <= before.count(unknown), text
        assert before[0] == after[0] and before[-1] == after[-1]  # the marks at both ends


def test_both_encoders_read_any_text_with_what_is_left(
    pair: tuple[Tokenizer, Tokenizer, list[int]], texts: list[str], tmp_path: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    from toolkit.runtime.text import TextEncoder

    (tmp_path / "tokenizer.json").write_text(pair[1].to_str(), encoding="utf-8")
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    ours = TextEncoder(tmp_path / "tokenizer.json", max_length=10**9, inputs=())
    for text in random_texts(STRINGS, " ".join(texts).split()):
        assert ours.ids(text) == theirs(text)["input_ids"], ascii(text[:200])


def test_coverage_and_limit_decide_the_size(texts: list[str]) -> None:
    original = trained("WordPiece", texts)
    whole = made(original)
    counts = vocabulary.count(lambda text: whole.encode(text).ids, texts)
    sizes = [len(vocabulary.choose(original, counts, coverage)) for coverage in (0, 0.5, 0.9, 1)]
    assert sizes == sorted(sizes) and len(set(sizes)) > 2
    assert sizes[-1] < 0.5 * whole.get_vocab_size()
    limited = vocabulary.choose(original, counts, 1, limit=sizes[0] + 100)
    assert len(limited) == sizes[0] + 100
    everything = vocabulary.choose(original, counts, 1)
    assert set(counts) <= set(everything)


def test_bpe_keeps_what_its_tokens_are_merged_from(texts: list[str]) -> None:
    original = trained("BPE", texts)
    whole = made(original)
    counts = vocabulary.count(lambda text: whole.encode(text).ids, texts[:50])
    cut = made(vocabulary.rewrite(original, vocabulary.choose(original, counts, 1)))
    for text in texts[:50]:
        assert cut.encode(text).tokens == whole.encode(text).tokens


def test_config_follows() -> None:
    config = {"added_tokens_decoder": {"0": {"content": "[PAD]"}, "7": {"content": "[CLS]"}}, "model_max_length": 512}
    assert vocabulary.rewrite_config(config, [0, 3, 7]) == {
        "added_tokens_decoder": {"0": {"content": "[PAD]"}, "2": {"content": "[CLS]"}}, "model_max_length": 512,
    }  # fmt: skip


def test_what_cannot_be_cut_is_refused(texts: list[str], tmp_path: Path) -> None:
    original = trained("WordPiece", texts)
    with pytest.raises(InputError, match="no text to choose a vocabulary from"):
        vocabulary.choose(original, vocabulary.count(lambda _: [], texts), 0.9)
    counts = vocabulary.count(lambda _: [100], texts)
    with pytest.raises(InputError, match="characters and marks must stay"):
        vocabulary.choose(original, counts, 0.9, limit=5)
    with pytest.raises(InputError, match="outside 0 to 1"):
        vocabulary.choose(original, counts, 1.5)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordLevel"}}')
    with pytest.raises(InputError, match="of the kind 'WordLevel' cannot be cut"):
        vocabulary.read(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match="is not a tokenizer file"):
        vocabulary.read(tmp_path)
