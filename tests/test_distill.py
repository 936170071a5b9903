"""Distillation for real, on the two-layer encoder: students that learn, what is refused, and texts without labels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.stage_runs import KilledError, kill_at, run_stage, weights
from toolkit import data as tables
from toolkit import steps, tasks
from toolkit.errors import InputError
from toolkit.stages import distill

pytestmark = pytest.mark.usefixtures("torch_as_before")

SMALL = {"encoding": {"max_length": 64}, "batch_size": 8}

Teach = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def taught(tuned: Path, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Teach:
    """The stage `teach`, run in this process."""

    def run(source: Path = tuned, **parameters: Any) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp("taught")
        return output, run_stage("teach", source, output, prepared, encoding={"max_length": 64}, **parameters)

    return run


@pytest.fixture(scope="module")
def lesson(taught: Teach) -> Path:
    """Logits, hidden states and attention of all layers."""
    return taught(hidden_layers=[0, 1, 2], attention_layers=[1, 2])[0]


def learn(source: Path, output: Path, prepared: Path, lessons: list[Path], **parameters: Any) -> dict[str, Any]:
    """The stage `distill`, run in this process."""
    teaching = [str(each) for each in lessons]
    return run_stage("distill", source, output, prepared, **{**SMALL, "epochs": 2, "teaching": teaching, **parameters})


def test_a_lesson_is_what_the_teacher_says(lesson: Path, tuned: Path, prepared: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tuned, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    lines = (prepared / "train.jsonl").read_text().splitlines()
    offsets, logits = np.load(lesson / "offsets.npy"), np.load(lesson / "answers.npy")
    assert len(offsets) == len(logits) + 1 == len(lines) + 1
    squares = np.concatenate([[0], np.cumsum(np.diff(offsets) ** 2)])
    for index in (0, 7, len(lines) - 1):
        inputs = tokenizer(json.loads(lines[index])["input"], return_tensors="pt", truncation=True, max_length=64)
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
    count = len(np.load(lesson / "answers.npy"))
    task = tasks.get("text-classification")
    alone = distill.Lesson([str(lesson)], task, 2.0, count).targets
    both = distill.Lesson([str(lesson), str(lesson)], task, 2.0, count).targets
    assert both == pytest.approx(alone, abs=1e-6)
    assert alone.sum(axis=1) == pytest.approx(np.ones(count), abs=1e-5)
    with pytest.raises(InputError, match="other examples than those of this run"):
        distill.Lesson([str(lesson)], task, 2.0, count + 1)


def test_texts_without_labels_are_answered_too(taught: Teach, prepared: Path, tmp_path: Path) -> None:
    more = [f"sentence number {number} of a long file" for number in range(500)]
    held_out = json.loads((prepared / "eval.jsonl").read_text().splitlines()[0])["input"]
    path = tmp_path / "more.txt"
    path.write_text("\n".join([*more, held_out, "", more[0]]), encoding="utf-8")
    output, report = taught(unlabeled=str(path), unlabeled_limit=100)
    kept = [json.loads(line) for line in (output / "unlabeled.jsonl").read_text().splitlines()]
    assert set(kept) < set(more)
    assert held_out not in kept  # the gates measure on it
    assert report["unlabeled"] == len(kept) == len(set(kept)) <= 100
    assert report["unlabeled_found"] == 501
    assert len(np.load(output / "answers.npy")) == report["examples"]


def test_a_sample_is_even_and_follows_the_seed() -> None:
    texts = [str(number) for number in range(1000)]
    first, seen = tables.sample(texts, 100, (), 0)
    assert (len(first), seen) == (100, 1000)
    assert tables.sample(texts, 100, (), 0)[0] == first != tables.sample(texts, 100, (), 1)[0]
    halves = [sum(int(text) < 500 for text in tables.sample(texts, 100, (), seed)[0]) for seed in range(50)]
    assert 45 < np.mean(halves) < 55


MEASURE = """
import sys
from pathlib import Path
from toolkit import child, data
small, large = map(Path, sys.argv[1:])
list(data.stream_texts(small))  # imports what reading takes
before = child.peak_rss_bytes()
kept, seen = data.sample(data.stream_texts(large), 100, (), 0)
print(len(kept), seen, child.peak_rss_bytes() - before)
"""


@pytest.mark.parametrize("suffix", [".txt", ".csv", ".jsonl"])
def test_a_file_without_labels_is_read_in_little_memory(tmp_path: Path, suffix: str) -> None:
    """100 MB, of which 100 texts are kept: the process stays far below the file's size, whatever the format."""
    texts = [f"line {number} {'x' * 980}" for number in range(1000)]
    if suffix == ".jsonl":
        texts = [json.dumps({"text": text}) for text in texts]
    block = "\n".join(texts) + "\n"
    for name, blocks in (("small", 1), ("large", 100)):
        with (tmp_path / f"{name}{suffix}").open("w") as stream:
            stream.write("text\n" if suffix == ".csv" else "")
            stream.writelines(block for _ in range(blocks))
    assert (tmp_path / f"large{suffix}").stat().st_size > 98e6
    files = [str(tmp_path / f"{name}{suffix}") for name in ("small", "large")]
    path = {"PYTHONPATH": str(Path(toolkit.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *files], env=os.environ | path, capture_output=True, text=True, check=True
    )
    kept, seen, more = map(int, done.stdout.split())
    assert kept <= 100 and seen == 100_000
    assert more < 20e6


def test_a_line_without_an_end_is_read_up_to_what_a_model_could_use(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("é" * 3_000_000 + "\nshort\n", encoding="utf-8")
    first, second = tables.stream_texts(path)
    assert set(first) == {"é"} and 100_000 < len(first) <= 1 << 20
    assert second == "short"


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


# Students of another width


def test_a_narrower_student_is_cut_from_its_teacher(lesson: Path, tuned: Path, prepared: Path, tmp_path: Path) -> None:
    """What training begins with: channels of the teacher, in their order, and all parts in proportion."""
    from safetensors.numpy import load_file

    learn(tuned, tmp_path / "student", prepared, [lesson], width=192, layers=[1], epochs=1, learning_rate=1e-12)
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers")
    assert [config[name] for name in sizes] == [192, 6, 768, 1]
    theirs, mine = (load_file(folder / "model.safetensors") for folder in (tuned, tmp_path / "student"))
    name = "bert.embeddings.word_embeddings.weight"
    away = np.abs(mine[name][:500, :, None] - theirs[name][:500, None, :]).max(axis=0)
    kept = away.argmin(axis=1).tolist()
    assert away.min(axis=1).max() < 1e-6
    assert len(set(kept)) == 192 and kept == sorted(kept)
    head = mine["bert.encoder.layer.0.attention.self.query.weight"].reshape(6, 32, 192)
    heads = theirs["bert.encoder.layer.1.attention.self.query.weight"][:, kept].reshape(12, 32, 192)
    assert len({int(np.argmin(np.abs(heads - each).max(axis=(1, 2)))) for each in head}) == 6
    assert all(np.abs(heads - each).max(axis=(1, 2)).min() < 1e-6 for each in head)


def test_hidden_states_of_a_narrower_student_are_learned_and_a_kill_costs_nothing(
    lesson: Path, tuned: Path, prepared: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    given = {
        "width": 96, "layers": [1], "layer_map": {0: 0, 1: 2}, "hidden_weight": 1.0, "answers_weight": 0.0,
        "learning_rate": 1e-3,
    }  # fmt: skip
    report = learn(tuned, tmp_path / "whole", prepared, [lesson], **given)
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.95 * losses[0], losses
    _, loading = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole", output_loading_info=True)
    assert not any(loading.values()), loading  # the matrix between the widths is not there
    resume = tmp_path / "resume"
    with pytest.raises(KilledError):
        learn(
            tuned, tmp_path / "killed", prepared, [lesson], **given, resume=resume, progress=kill_at("epoch 2", 30)
        )  # fmt: skip
    assert learn(tuned, tmp_path / "resumed", prepared, [lesson], **given, resume=resume) == report
    assert weights(tmp_path / "resumed") == weights(tmp_path / "whole")


def test_attention_of_a_narrower_student_is_refused(lesson: Path, tuned: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="The student has 6 heads, its teacher 12; attention"):
        learn(
            tuned, tmp_path / "student", prepared, [lesson], width=192, attention_weight=1.0, layer_map={1: 1, 2: 2}
        )  # fmt: skip


def test_a_config_becomes_a_student_with_random_weights(tuned: Path, few: Path, tmp_path: Path) -> None:
    """By the verb; the tokenizer is its teacher's, and the same command writes the same bytes."""
    config = {
        "model_type": "distilbert", "vocab_size": 30522, "dim": 64, "n_layers": 1, "n_heads": 2, "hidden_dim": 128,
        "max_position_embeddings": 128,
    }  # fmt: skip
    (tmp_path / "tiny.json").write_text(json.dumps(config))
    options = {"model": str(tuned), "data": str(few), "cache_dir": str(tmp_path / "cache")}
    for name in ("one", "two"):
        result = steps.distill(
            str(tmp_path / name), {**options, "force": True}, student=str(tmp_path / "tiny.json"), hidden=1.0,
            parameters={"epochs": 1},
        )  # fmt: skip
    written = json.loads((tmp_path / "one" / "config.json").read_text())
    assert {name: written[name] for name in config} == config
    assert written["id2label"] == {"0": "negative", "1": "positive"}
    assert result["parameters"] < 2.1e6
    assert (tmp_path / "one" / "tokenizer.json").read_bytes() == (tuned / "tokenizer.json").read_bytes()
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    receipt = json.loads((tmp_path / "one" / "receipt.json").read_text())
    assert receipt["parameters"]["config"] == config  # complete enough to run it again


# The verb, and what it refuses


def test_the_verb_writes_a_student_and_computes_the_answers_once(tuned: Path, few: Path, tmp_path: Path) -> None:
    given = (
        "distill",
        tuned,
        "--data",
        few,
        "--layers",
        "1",
        "--epochs",
        "1",
        "--cache-dir",
        tmp_path / "cache",
    )
    done = run_toolkit(*given, "-o", tmp_path / "one", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epochs_run"] == 1
    assert json.loads((tmp_path / "one" / "receipt.json").read_text())["stage"] == "distill"
    again = run_toolkit(*given, "--temperature", "4", "-o", tmp_path / "two")
    assert again.returncode == 0, again.stderr
    assert "million weights" in again.stdout
    assert "answers of the teacher" in again.stderr and "(from the cache)" in again.stderr


def test_what_cannot_be_learned_is_refused(
    tuned: Path, prepared: Path, lesson: Path, taught: Teach, tmp_path: Path
) -> None:
    """By the stages; what the verb refuses before they run is tried in test_bad_compression."""
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
