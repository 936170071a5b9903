"""Which examples calibration takes, and what is said about those that a user brings."""

from __future__ import annotations

import random
import shutil
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import write_csv
from tests.small_inputs import prepare
from toolkit import calibration, demo, tasks
from toolkit.calibration import Source
from toolkit.errors import InputError
from toolkit.runtime.text import TextEncoder
from toolkit.tasks.text import check_texts, unusual_lengths
from toolkit.tasks.unigrams import randomness

NAMES = ["negative", "positive"]
VOCABULARY = 30522


@pytest.fixture(scope="module")
def encode() -> Any:
    encoder = TextEncoder(demo.find().model / "tokenizer.json", max_length=64, inputs=())
    return lambda texts: [encoder.ids(text) for text in texts]


@dataclass(frozen=True)
class Examples:
    """Texts, their token ids and labels."""

    texts: Sequence[str]
    tokens: Sequence[Sequence[int]]
    labels: Sequence[int] | None = None

    @property
    def lengths(self) -> list[int]:
        return [len(ids) for ids in self.tokens]


@pytest.fixture(scope="module")
def real(encode: Any, sentences: list[tuple[str, str]]) -> Examples:
    texts = [text for text, _ in sentences[:800]]
    return Examples(texts, encode(texts), [NAMES.index(label) for _, label in sentences[:800]])


def some(examples: Examples, start: int, stop: int) -> Examples:
    labels = examples.labels[start:stop] if examples.labels else None
    return Examples(examples.texts[start:stop], examples.tokens[start:stop], labels)


def lint(given: Examples, real: Examples, evaluation: list[str] | None = None) -> list[str]:
    """What `calibration.collect` says of texts, without the task's files around them."""
    identity = tasks.get("text-classification").identity
    same = [identity(text) for text in given.texts]
    check_texts(given.tokens, real.tokens, VOCABULARY)
    return [
        *unusual_lengths(given.lengths, real.lengths),
        *calibration.duplicates(same, [identity(text) for text in evaluation or []]),
        *calibration.too_few(same),
        *calibration.missing_classes(given.labels, NAMES),
    ]


# --- choosing


def test_every_class_and_every_length_is_there() -> None:
    generator = np.random.default_rng(0)
    labels = [int(value < 0.1) for value in generator.random(2000)]
    lengths = generator.integers(5, 60, 2000).tolist()
    chosen = calibration.choose(labels, lengths, 200, seed=0)
    assert len(chosen) == len(set(chosen)) == 200
    assert Counter(labels[i] for i in chosen)[1] == pytest.approx(200 * np.mean(labels), abs=2)
    taken = [lengths[i] for i in chosen]
    for q in (5, 25, 50, 75, 95):
        assert np.percentile(taken, q) == pytest.approx(np.percentile(lengths, q), abs=1.5)
    assert calibration.choose(labels, lengths, 200, seed=0) == chosen != calibration.choose(labels, lengths, 200, 1)


def test_a_rare_class_is_not_forgotten_and_few_examples_are_all_taken() -> None:
    labels = [0] * 500 + [1] * 2
    chosen = calibration.choose(labels, list(range(502)), 10, seed=0)
    assert len(chosen) == 10
    assert {labels[i] for i in chosen} == {0, 1}
    assert calibration.choose(labels, list(range(502)), 900, seed=0) == list(range(502))


# --- random data


def random_texts(kind: str, sentences: list[tuple[str, str]]) -> list[str]:
    generator = random.Random(0)
    if kind == "letters":
        return [
            " ".join("".join(generator.choices(string.ascii_lowercase, k=generator.randint(2, 9))) for _ in range(15))
            for _ in range(150)
        ]
    words = [word for text, _ in sentences[2000:3000] for word in text.split()]
    return [" ".join(generator.choices(words, k=20)) for _ in range(150)]


def test_random_data_is_refused(real: Examples, encode: Any, sentences: list[tuple[str, str]]) -> None:
    generator = random.Random(0)
    ids = [[101, *(generator.randrange(VOCABULARY) for _ in range(25)), 102] for _ in range(150)]
    letters = random_texts("letters", sentences)
    for given in (Examples([str(row) for row in ids], ids), Examples(letters, encode(letters))):
        with pytest.raises(InputError, match="look like random data, or like another language"):
            lint(given, real)
    constant = Examples(["x"] * 150, [[1] * 20] * 150)
    with pytest.raises(InputError, match="random data"):
        lint(constant, real)


def test_real_texts_are_told_from_random_ones_by_far(
    real: Examples, encode: Any, sentences: list[tuple[str, str]]
) -> None:
    held_out = encode([text for text, _ in sentences[1000:1200]])
    shuffled = encode(random_texts("words", sentences))
    news = encode(
        [
            "The central bank raised interest rates by a quarter of a percentage point on Wednesday.",
            "Researchers at the university published a study about protein folding in yeast cells.",
            "Parliament will vote on the new pension law next week, the minister said.",
        ]
    )
    for tokens in (held_out, shuffled, news):
        assert randomness(real.tokens, tokens, VOCABULARY) < 0.2
    letters = encode(random_texts("letters", sentences))
    assert randomness(real.tokens, letters, VOCABULARY) > 0.6
    few = real.tokens[:30]  # a training split this small knows few words
    assert randomness(few, held_out, VOCABULARY) < 0.3 < 0.6
    assert randomness(few, letters, VOCABULARY) > 0.6


# --- warnings


def test_good_examples_get_no_warning(real: Examples) -> None:
    assert lint(some(real, 0, 400), real, ["another text"]) == []


def test_each_fault_is_named(real: Examples, encode: Any, sentences: list[tuple[str, str]]) -> None:
    good = some(real, 0, 300)
    evaluation = [good.texts[0].upper(), f"  {good.texts[1]} ", "another text"]
    assert lint(good, real, evaluation) == [
        "2 of the 300 calibration examples are also in the evaluation set: the measured score will be better than it "
        "is."
    ]
    twice = Examples(real.texts[:60] * 3, list(real.tokens[:60]) * 3)
    assert "Only 60 different calibration examples; ranges settle with 100 or more." in lint(twice, real)
    negative = [i for i in range(800) if real.labels is not None and real.labels[i] == 0]
    one_class = Examples([real.texts[i] for i in negative], [real.tokens[i] for i in negative], [0] * len(negative))
    assert lint(one_class, real) == ["No calibration example of the class positive."]
    long_one = "a film " * 40
    longer = Examples([*good.texts, long_one], [*good.tokens, [*encode([long_one])[0]] * 2], [*(good.labels or []), 0])
    limit = max(real.lengths)
    assert lint(longer, real) == [
        f"1 of the 301 calibration examples are shorter or longer than any training text ({min(real.lengths)} to "
        f"{limit} tokens)."
    ]
    short = [i for i in range(800) if len(real.tokens[i]) <= 12]
    brief = Examples([real.texts[i] for i in short], [real.tokens[i] for i in short])
    usual = round(float(np.percentile(real.lengths, 90)))
    assert lint(brief, real)[0] == (
        f"The longest calibration example has {max(brief.lengths)} tokens; one in 10 training texts has {usual} or "
        "more."
    )


def test_ranges_that_move_are_named() -> None:
    assert calibration.unstable({"a": 0.1, "b": 0.4}) == []
    (warning,) = calibration.unstable({"a": 0.1, "b": 0.7, "c": 2.0})
    assert warning.startswith("The activation range of 2 of 3 layers is not stable: ")
    assert "it is 3.0 times as wide as by the other in c." in warning


# --- a file of the user's


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    folder = tmp_path_factory.mktemp("calibration")
    data = write_csv(folder / "reviews.csv", sentences[:600])
    prepare(demo.find().model, data, folder / "prepared", known_labels=NAMES)
    return folder / "prepared"


def collect(prepared: Path | None, **source: Any) -> tuple[list[str], list[str]]:
    task = tasks.get("text-classification")
    options = {name: source.pop(name) for name in ("text_column", "label_column") if name in source}
    given = Source(encoding={"max_length": 128}, options=options, **source)
    return calibration.collect(given, demo.find().model, task, prepared, seed=0)


def test_examples_come_from_the_training_part(prepared: Path) -> None:
    texts, warnings = collect(prepared, samples=120)
    train = {example.input for example in tasks.get("text-classification").read_examples(prepared, "train")}
    assert len(texts) == 120
    assert set(texts) <= train
    assert warnings == []
    with pytest.raises(InputError, match="name labelled data with --data"):
        collect(None)


def test_a_file_with_or_without_labels_is_read(
    prepared: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    labelled = write_csv(tmp_path / "labelled.csv", [pair for pair in sentences[1000:1300] if pair[1] == "negative"])
    texts, warnings = collect(prepared, file=str(labelled))
    assert len(texts) == 150
    assert "No calibration example of the class positive." in warnings
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(text for text, _ in sentences[1000:1150]))
    texts, warnings = collect(prepared, file=str(plain))
    assert texts == [text for text, _ in sentences[1000:1150]]
    assert not any("class" in warning for warning in warnings)  # nobody labelled them


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        ("id,note\n1,good\n", {}, r"cannot tell which column holds the text; its columns are: id, note"),
        ("id,note\n1,good\n", {"text_column": "body"}, r"has no column 'body'; its columns are: id, note"),
        ("text,label\nnice,good\n", {}, r"label 'good' is none of the model's labels \(negative, positive\)"),
        ("text,label\nnice,1\n", {"label_column": "stars"}, r"has no column 'stars'; its columns are: text, label"),
        ("text,label\n ,1\n", {}, r"no row has a text in the column 'text'"),
        ("", {}, r"is empty"),
    ],
)
def test_calibration_data_with_wrong_columns_is_refused(
    prepared: Path, tmp_path: Path, content: str, given: dict[str, str], message: str
) -> None:
    path = tmp_path / "calibration.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        collect(prepared, file=str(path), **given)


def test_a_file_of_random_text_is_refused(prepared: Path, tmp_path: Path, sentences: list[tuple[str, str]]) -> None:
    path = tmp_path / "random.txt"
    path.write_text("\n".join(random_texts("letters", sentences)))
    with pytest.raises(InputError, match="look like random data"):
        collect(prepared, file=str(path))


def test_data_for_evaluation_only_is_told_apart(prepared: Path, tmp_path: Path) -> None:
    alone = tmp_path / "prepared"
    shutil.copytree(prepared, alone)
    (alone / "train.jsonl").write_text("")
    with pytest.raises(InputError, match="for evaluation only"):
        collect(alone)
