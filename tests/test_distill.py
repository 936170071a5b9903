"""Distillation for real, on the two-layer encoder: students that learn, what is refused, and texts without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import run_toolkit, write_csv
from tests.small_inputs import prepare
from toolkit import data as tables
from toolkit import stages, steps
from toolkit.errors import InputError
from toolkit.stages import distill, teach

pytestmark = pytest.mark.usefixtures("torch_as_before")

TEXTS = 240


@pytest.fixture(scope="module")
def csv_file(tmp_path_factory: pytest.TempPathFactory, sentences: list[tuple[str, str]]) -> Path:
    return write_csv(tmp_path_factory.mktemp("distill") / "some.csv", sentences[:TEXTS])


@pytest.fixture(scope="module")
def prepared(tuned: Path, csv_file: Path) -> Path:
    folder = csv_file.parent / "prepared"
    prepare(tuned, csv_file, folder, known_labels=["negative", "positive"])
    return folder


Teach = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def taught(tuned: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Teach:
    """The stage `teach`, run in this process."""

    def run(source: Path = tuned, **parameters: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp("taught")
        context = stages.Context(task="text-classification", data=prepared)
        return output, teach.run(source, output, teach.Parameters(max_length=64, **parameters), context)

    return run


@pytest.fixture(scope="module")
def lesson(taught: Teach) -> Path:
    """Logits, hidden states and attention of all layers."""
    return taught(hidden_layers=[0, 1, 2], attention_layers=[1, 2])[0]


def learn(source: Path, output: Path, prepared: Path, lessons: list[Path], **parameters: Any) -> dict[str, Any]:
    """The stage `distill`, run in this process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a process of the stage's own has none
    output.mkdir(parents=True)
    given = distill.Parameters(
        teaching=[str(each) for each in lessons], **{"epochs": 2, "max_length": 64, "batch_size": 8, **parameters}
    )
    return distill.run(source, output, given, stages.Context(task="text-classification", data=prepared))


def test_a_lesson_is_what_the_teacher_says(lesson: Path, tuned: Path, prepared: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tuned, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    lines = (prepared / "train.jsonl").read_text().splitlines()
    offsets, logits = np.load(lesson / "offsets.npy"), np.load(lesson / "logits.npy")
    assert len(offsets) == len(logits) + 1 == len(lines) + 1
    squares = np.concatenate([[0], np.cumsum(np.diff(offsets) ** 2)])
    for index in (0, 7, len(lines) - 1):
        inputs = tokenizer(json.loads(lines[index])["text"], return_tensors="pt", truncation=True, max_length=64)
        with torch.inference_mode():
            said = model(**inputs, output_hidden_states=True, output_attentions=True)
        assert logits[index] == pytest.approx(said.logits[0].numpy(), abs=1e-4)
        for layer in (0, 1, 2):
            stored = np.load(lesson / f"hidden-{layer}.npy", mmap_mode="r")[offsets[index] : offsets[index + 1]]
            assert stored == pytest.approx(said.hidden_states[layer][0].numpy(), abs=5e-3)
        length = inputs["input_ids"].shape[1]
        stored = np.load(lesson / "attention-2.npy", mmap_mode="r")[:, squares[index] : squares[index + 1]]
        assert stored.reshape(-1, length, length) == pytest.approx(said.attentions[1][0].numpy(), abs=5e-3)


def test_a_student_comes_to_agree_with_its_teacher(lesson: Path, tuned: Path, prepared: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    report = learn(tuned, tmp_path / "student", prepared, [lesson], layers=[1], epochs=4, learning_rate=5e-4)
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.5 * losses[0]
    model, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student", output_loading_info=True)
    assert not any(loading.values()), loading
    assert model.config.num_hidden_layers == 1
    assert report["parameters"] == sum(p.numel() for p in model.parameters())
    assert (tmp_path / "student" / "tokenizer.json").read_bytes() == (tuned / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("part", ["hidden", "attention", "labels"])
def test_every_loss_falls_when_it_alone_is_learned(
    lesson: Path, tuned: Path, prepared: Path, tmp_path: Path, part: str
) -> None:
    report = learn(
        tuned, tmp_path / "student", prepared, [lesson], layers=[1], learning_rate=5e-4, epochs=3, answers_weight=0.0,
        layer_map={1: 2}, **{f"{part}_weight": 1.0},
    )  # fmt: skip
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.95 * losses[0], losses


def test_a_model_that_is_its_teacher_has_nothing_to_learn(
    lesson: Path, tuned: Path, prepared: Path, tmp_path: Path
) -> None:
    """All losses of a copy are zero, up to dropout and half precision: nothing is compared with the wrong thing."""
    model = json.loads((tuned / "config.json").read_text())
    still = tmp_path / "still"
    still.mkdir()
    for path in tuned.iterdir():
        (still / path.name).write_bytes(path.read_bytes())
    model |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (still / "config.json").write_text(json.dumps(model))
    report = learn(
        still, tmp_path / "student", prepared, [lesson], epochs=1, learning_rate=1e-12, hidden_weight=1.0,
        attention_weight=1.0, layer_map={0: 0, 1: 1, 2: 2},
    )  # fmt: skip
    assert report["history"][0]["loss"] < 1e-4


def test_two_teachers_count_by_their_mean(lesson: Path, prepared: Path) -> None:
    count = len(np.load(lesson / "logits.npy"))
    alone = distill.Lesson([str(lesson)], 2.0, count).answers
    both = distill.Lesson([str(lesson), str(lesson)], 2.0, count).answers
    assert both == pytest.approx(alone, abs=1e-6)
    assert alone.sum(axis=1) == pytest.approx(np.ones(count), abs=1e-5)
    with pytest.raises(InputError, match="other texts than those of this run"):
        distill.Lesson([str(lesson)], 2.0, count + 1)


def test_texts_without_labels_are_answered_too(taught: Teach, prepared: Path, tmp_path: Path) -> None:
    more = [f"sentence number {number} of a long file" for number in range(500)]
    held_out = json.loads((prepared / "eval.jsonl").read_text().splitlines()[0])["text"]
    path = tmp_path / "more.txt"
    path.write_text("\n".join([*more, held_out, "", more[0]]), encoding="utf-8")
    output, report = taught(unlabeled=str(path), unlabeled_limit=100)
    kept = [json.loads(line) for line in (output / "unlabeled.jsonl").read_text().splitlines()]
    assert set(kept) < set(more)
    assert held_out not in kept  # the gates measure on it
    assert report["unlabeled"] == len(kept) == len(set(kept)) <= 100
    assert report["unlabeled_found"] == 501
    assert len(np.load(output / "logits.npy")) == report["texts"]


def test_a_sample_is_even_and_follows_the_seed() -> None:
    texts = [str(number) for number in range(1000)]
    first, seen = tables.sample_texts(texts, 100, (), 0)
    assert (len(first), seen) == (100, 1000)
    assert tables.sample_texts(texts, 100, (), 0)[0] == first != tables.sample_texts(texts, 100, (), 1)[0]
    halves = [sum(int(text) < 500 for text in tables.sample_texts(texts, 100, (), seed)[0]) for seed in range(50)]
    assert 45 < np.mean(halves) < 55


def test_a_file_without_labels_is_read_in_little_memory(tmp_path: Path) -> None:
    """64 MB of lines, with 100 kept: what is held at once stays far below the file's size."""
    import tracemalloc

    path = tmp_path / "large.txt"
    with path.open("w") as stream:
        for number in range(64):
            stream.writelines(f"line {number} {place} {'x' * 980}\n" for place in range(1024))
    tracemalloc.start()
    kept, seen = tables.sample_texts(tables.stream_texts(path), 100, (), 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(kept), seen) == (100, 65536)
    assert peak < 4e6


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_tables_without_labels_are_streamed_by_their_text_column(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"texts{suffix}"
    rows = [f"text {number}" for number in range(10)]
    if suffix == ".csv":
        path.write_text("id,review\n" + "".join(f"{n},{text}\n" for n, text in enumerate(rows)))
    else:
        path.write_text("".join(json.dumps({"id": n, "review": text}) + "\n" for n, text in enumerate(rows)))
    assert list(tables.stream_texts(path)) == rows
    with pytest.raises(InputError, match="has no column 'body'; its columns are: id, review"):
        list(tables.stream_texts(path, "body"))


# The verb, and what it refuses


def test_the_verb_writes_a_student_and_computes_the_answers_once(tuned: Path, csv_file: Path, tmp_path: Path) -> None:
    given = ("distill", tuned, "--data", csv_file, "--layers", "1", "--epochs", "1", "--cache-dir", tmp_path / "cache")
    done = run_toolkit(*given, "-o", tmp_path / "one", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs_run"] == 1
    assert json.loads((tmp_path / "one" / "receipt.json").read_text())["stage"] == "distill"
    again = run_toolkit(*given, "--temperature", "4", "-o", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert "million weights" in again.stdout
    assert "answers of the teacher" in again.stderr and "(from the cache)" in again.stderr


def test_what_cannot_be_learned_is_refused(
    tuned: Path, encoder: Path, csv_file: Path, prepared: Path, lesson: Path, taught: Teach, tmp_path: Path
) -> None:
    def refuse(message: str, **given: Any) -> None:
        options = {"model": str(tuned), "data": str(csv_file), "cache_dir": str(tmp_path / "cache")}
        with pytest.raises(InputError, match=message):
            steps.distill(str(tmp_path / "out"), options | given.pop("options", {}), **given)
        assert not (tmp_path / "out").exists()

    refuse("Name the student")
    refuse("nofile.txt is not a text file, or it is empty", layers=1, unlabeled="nofile.txt")
    refuse("Data file nofile.csv does not exist", layers=1, unlabeled="nofile.csv")
    refuse("Model nofolder does not exist", student="nofolder")
    refuse("Model nofolder does not exist", layers=1, teachers=["nofolder"])
    refuse("A student of 3 layers cannot be made from a model with 2", layers=3)
    refuse("--layers 2: the teacher has 2 layers; a student is the smaller one", layers=2)
    refuse("is not a trained classifier", layers=1, options={"model": str(encoder)})
    from toolkit import demo

    refuse(r"the student has 22\.\d million weights, its teacher 15\.", student=str(demo.find().model))
    other = tmp_path / "other"
    other.mkdir()
    for path in tuned.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    config = json.loads((other / "config.json").read_text())
    config |= {"id2label": {"0": "dull", "1": "fine"}, "label2id": {"dull": 0, "fine": 1}}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="knows the labels dull, fine; the data has negative, positive"):
        taught(other)
    with pytest.raises(InputError, match="has 2 layers; layer 7 was asked for"):
        taught(hidden_layers=[7])
    for message, parameters in (
        ("All losses of the distillation have the weight 0", {"answers_weight": 0.0}),
        ("need a layer map", {"hidden_weight": 1.0}),
        ("the layer map names 9", {"hidden_weight": 1.0, "layer_map": {9: 1}}),
    ):
        with pytest.raises(InputError, match=message):
            learn(tuned, tmp_path / message[:5], prepared, [lesson], **parameters)  # type: ignore[arg-type]
