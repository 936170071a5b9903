"""What `distill` and `prune` refuse: one message that says what, where and what to do, exit code 2, nothing written."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import run_toolkit
from tests.refusals import Done, assert_nothing_half_written, assert_refused, in_process
from tests.small_inputs import tiny_checkpoint
from toolkit import demo

SHAPE = {
    "hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 512,
    "vocab_size": 30522,
}  # fmt: skip
Refuse = Callable[..., Done]


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A checkpoint that looks like a trained classifier; nothing here gets so far as to load its weights."""
    return tiny_checkpoint(tmp_path / "teacher", labels=["bad", "good"], **SHAPE)


@pytest.fixture
def run(tmp_path: Path, data: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Refuse]:
    """A verb on the teacher, with a cache and an output of its own, which must both be clean afterwards."""
    output, cache = tmp_path / "out", tmp_path / "cache"

    def refused(verb: str, *arguments: Any, model: Path = teacher) -> Done:
        given = [verb, model, "--data", data, "-o", output, "--cache-dir", cache, *arguments]
        return in_process(list(map(str, given)), capsys)

    yield refused
    assert_nothing_half_written(output, cache)


# Students


def test_student_that_is_larger_than_its_teacher(run: Refuse, tmp_path: Path) -> None:
    larger = demo.find().model
    assert_refused(run("distill", "--student", larger), "the student has 22.7 million weights, its teacher 0.0")
    (tmp_path / "large.json").write_text(json.dumps({"model_type": "bert"}))
    done = run("distill", "--student", tmp_path / "large.json")
    assert_refused(done, "large.json: the student has 109.5 million weights, its teacher 0.0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Name the student: --layers or --width, a number, or --student, a folder or a config.json"]),
        (["--layers", "2"], ["--layers 2: the teacher has 2 layers", "the smaller one"]),
        (["--layers", "3"], ["A student of 3 layers cannot be made from a model with 2"]),
        (["--width", "128"], ["A width of 128", "cut from 128", "a multiple of 32 below 128"]),
        (["--width", "100"], ["A width of 100", "each is 32 wide", "a multiple of 32 below 128"]),
        (
            ["--width", "64", "--attention-weight", "1"],
            ["The student has 2 heads, its teacher 4", "--attention-weight"],
        ),
        (["--width", "0"], ["Invalid value for '--width'"]),
        (["--layers", "1", "--temperature", "0"], ["Invalid value for '--temperature'"]),
        (["--layers", "1", "--unlabeled", "no.txt"], ["no.txt is not a text file, or it is empty"]),
        (["--layers", "1", "--unlabeled", "no.csv"], ["Data file no.csv does not exist"]),
        (["--student", "nofolder"], ["Model nofolder does not exist"]),
        (["--layers", "1", "--teacher", "nofolder"], ["Model nofolder does not exist"]),
    ],
)
def test_students_that_cannot_be_made(run: Refuse, arguments: list[str], words: list[str]) -> None:
    assert_refused(run("distill", *arguments), *words)


def test_student_without_weights(run: Refuse, teacher: Path, tmp_path: Path) -> None:
    bare = tiny_checkpoint(tmp_path / "bare", **SHAPE)
    (bare / "model.safetensors").unlink()
    config = bare / "config.json"
    assert_refused(run("distill", "--student", bare), "bare has no weights", f"--student {config}")
    given = json.loads(config.read_text())
    done = run("distill", "--student", config, "--layers", "1")
    assert_refused(done, "config.json says already how large the student is; leave out --layers and --width")
    for text, word in (
        ("{", "config.json cannot be read as JSON"),
        ("{}", "config.json names no model_type"),
        (json.dumps({**given, "auto_map": {}}), "needs code of its own"),
        (json.dumps({**given, "model_type": "berd"}), "describes no classifier that can be built"),
        (json.dumps({**given, "num_attention_heads": 5}), "describes no classifier that can be built"),
        (json.dumps({**given, "vocab_size": 100}), "its vocab_size is 100, but the tokenizer of"),
    ):
        config.write_text(text)
        assert_refused(run("distill", "--student", config), word)


def test_student_that_takes_shorter_texts(run: Refuse, tmp_path: Path, data: Path) -> None:
    with data.open("a") as stream:
        stream.writelines(f"{'word ' * 40}{number},{number % 2}\n" for number in range(10))
    short = tiny_checkpoint(tmp_path / "short", **{**SHAPE, "max_position_embeddings": 16})
    assert_refused(run("distill", "--student", short), "short: it takes at most 16 tokens", "--max-length 16")


# Teachers


def test_teachers_that_answer_another_question(run: Refuse, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", labels=["dull", "fine"])
    done = run("distill", "--layers", "1", "--teacher", other)
    assert_refused(done, "other: this teacher knows the labels dull, fine", "teacher knows bad, good")
    turned = tiny_checkpoint(tmp_path / "turned", labels=["good", "bad"])
    assert_refused(run("distill", "--layers", "1", "--teacher", turned), "in the same order")
    untrained = tiny_checkpoint(tmp_path / "untrained")
    done = run("distill", "--layers", "1", "--teacher", untrained)
    assert_refused(done, "untrained is not trained for text-classification; fine-tune it first")
    assert_refused(run("distill", "--layers", "1", model=untrained), "untrained is not trained for text-classification")
    assert_refused(run("prune", "--ffn", "0.5", model=untrained), "untrained is not trained for text-classification")


def test_data_with_labels_that_the_teacher_does_not_know(run: Refuse, data: Path) -> None:
    with data.open("a") as stream:
        stream.write("a film that is neither,middling\n")
    for verb in (("distill", "--layers", "1"), ("prune", "--ffn", "0.5")):
        assert_refused(run(*verb), "label 'middling' is none of the model's labels (bad, good)")


# Shares, counts and vocabularies


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["Nothing to prune: name layers"]),
        (["--ffn", "1"], ["Invalid value for '--ffn'"]),
        (["--ffn", "-0.1"], ["Invalid value for '--ffn'"]),
        (["--heads", "1.5"], ["Invalid value for '--heads'"]),
        (["--coverage", "2"], ["Invalid value for '--coverage'"]),
        (["--vocabulary", "0"], ["Invalid value for '--vocabulary'"]),
        (["--vocabulary", "10"], ["A vocabulary of 10 tokens is too small", "characters and marks must stay"]),
        (["--layers", "3"], ["A student of 3 layers cannot be made from a model with 2"]),
        (["--sparsity", "1:2"], ["Invalid value for '--sparsity'"]),
    ],
)
def test_prunings_that_cannot_be_done(run: Refuse, arguments: list[str], words: list[str]) -> None:
    assert_refused(run("prune", *arguments), *words)


def test_empty_vocabulary(run: Refuse, teacher: Path) -> None:
    path = teacher / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {}
    path.write_text(json.dumps(tokenizer))
    assert_refused(run("prune", "--coverage", "0.9"), "The tokenizer has an empty vocabulary")
    assert_refused(run("prune", "--ffn", "0.5"), "tokenizer.json has an empty vocabulary")
    assert_refused(run("distill", "--layers", "1"), "tokenizer.json has an empty vocabulary")


@pytest.mark.parametrize("arguments", [("prune", "--ffn", "0.5"), ("distill", "--width", "64")])
def test_unknown_architecture(run: Refuse, teacher: Path, arguments: tuple[str, ...]) -> None:
    path = teacher / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "mpnet"}))
    assert_refused(run(*arguments), "Models of the type 'mpnet' cannot be made smaller; known: bert")


# Texts without labels

NOISE = random.Random(0).randbytes(5000)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", ["a.txt is not a text file, or it is empty"]),
        ("a.txt", b"\n \n\n", ["a.txt has no texts"]),
        ("a.txt", NOISE, ["a.txt:1: not UTF-8 text"]),
        ("a.txt", bytes(5000), ["a.txt:1: a zero byte; this is no text file"]),
        ("a.csv", b"", ["a.csv is empty"]),
        ("a.csv", b"text\n", ["a.csv"]),
        ("a.csv", b"number,words\n1,a film\n", ["holds the text", "columns are: number, words", "--unlabeled-column"]),
        ("a.csv", NOISE, ["a.csv cannot be read as csv"]),
        ("a.jsonl", b'{"number": 1}\n', ["holds the text", "its columns are: number", "--unlabeled-column"]),
        ("a.jsonl", NOISE, ["a.jsonl cannot be read as json: line 1 is not UTF-8 text"]),
        ("a.jsonl", b'{"text": \n', ["a.jsonl cannot be read as json: line 1 is not JSON"]),
        ("a.parquet", NOISE, ["a.parquet cannot be read as parquet"]),
        ("a.xlsx", NOISE, ["a.xlsx", "suffix '.xlsx'"]),
    ],
)
def test_bad_texts_without_labels(run: Refuse, tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(run("distill", "--layers", "1", "--unlabeled", path), *words)
    if path.suffix in (".csv", ".jsonl") and b"number" in content:
        done = run("distill", "--layers", "1", "--unlabeled", path, "--unlabeled-column", "body")
        assert_refused(done, "has no column 'body'; its columns are: number")


def test_texts_that_turn_bad_in_the_middle(tuned: Path, few: Path, tmp_path: Path) -> None:
    """What only shows while the file is read, in the stage's own process."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"a film\n" * 3000 + NOISE)
    done = run_toolkit(
        "distill", tuned, "--data", few, "--layers", "1", "--unlabeled", path, "-o", tmp_path / "out",
        environ={"TOOLKIT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert_refused(done, "a.txt:3001: not UTF-8 text. Convert it first")
    assert_nothing_half_written(tmp_path / "out", tmp_path / "cache")
