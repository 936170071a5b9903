"""Directions of texts: what is pooled, what is compared, and the whole way from pairs to a bundle."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.stage_runs import run_stage
from toolkit import bundle as bundles
from toolkit import demo, stages
from toolkit.answers import vectors
from toolkit.errors import InputError
from toolkit.tasks.sentence_similarity import TASK, ranks
from toolkit.training.examples import grouped_batches, share_of

PAIRS = 240


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real film reviews: their first two sentences, and what follows."""
    csv.field_size_limit(10**9)
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    written = 0
    with demo.find().data.open(newline="", encoding="utf-8") as stream, path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["query", "passage"])
        for row in csv.DictReader(stream):
            parts = re.split(r"(?<=[.!?])\s+", re.sub(r"<br ?/?>", " ", row["text"]).strip())
            if row["source"] != "rotten_tomatoes" and len(parts) > 5 and 40 < len(" ".join(parts[:5])) < 500:
                writer.writerow([" ".join(parts[:2]), " ".join(parts[2:5])])
                written += 1
            if written == PAIRS:
                break
    return path


def directions(count: int, width: int = 16, seed: int = 0) -> Any:
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


# What is compared


def test_cosine_and_neighbours_of_known_directions() -> None:
    before = directions(300)
    assert vectors.agreement(before, before, [])["mean_cosine"] == pytest.approx(1)
    assert vectors.kept_neighbours(before, before) == pytest.approx(np.ones(300))
    assert vectors.kept_neighbours(before, directions(300, seed=1)).mean() < 0.1
    turned = before @ np.linalg.qr(np.random.default_rng(2).normal(size=(16, 16)))[0].astype(np.float32)
    found = vectors.describe(before, turned, np.zeros(300), [], [f"text {i}" for i in range(300)])
    assert found["neighbours_kept"] == pytest.approx(1)  # the same among themselves, and no use beside stored ones
    assert found["mean_cosine"] < 0.5
    assert len(found["worst"]) == vectors.WORST
    broken = before.copy()
    broken[7] = np.nan
    assert vectors.changed(before, broken).tolist() == [i == 7 for i in range(300)]


def test_neighbours_are_those_of_all_pairs() -> None:
    rows = directions(1500, 8)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    wanted = np.argsort(-similar, axis=1, kind="stable")[:, :5]
    assert np.array_equal(vectors.neighbours(rows, 5), wanted)


def test_imitation_is_the_divergence_and_refuses_another_width() -> None:
    import torch

    first, second = directions(50), directions(50, seed=3)
    loss = float(vectors.imitation(torch.from_numpy(second), torch.from_numpy(first), 2.0))
    assert loss == pytest.approx(vectors.divergence(first, second), abs=1e-6)
    with pytest.raises(InputError, match="directions are 8 wide, its teacher's 16"):
        vectors.imitation(torch.from_numpy(directions(50, 8)), torch.from_numpy(first), 2.0)


def test_recall_counts_the_pairs_that_find_each_other() -> None:
    queries = directions(200)
    documents = queries[::-1].copy()
    assert (ranks(queries, queries) == 0).all()
    assert (ranks(queries, documents) > 0).all()
    same = np.repeat(queries[:1], 30, axis=0)
    assert (ranks(same, same) == 29).all()  # ties count against a model that gives everything one direction
    rows = np.empty((400, 16), np.float32)
    rows[0::2], rows[1::2] = queries, queries
    rows[1] = -queries[0]
    found = TASK.metrics(rows, [None] * 400, [])  # type: ignore[list-item]
    assert found["recall@1"] == pytest.approx(199 / 200) and found["score"] == found["recall@10"]
    assert found["examples"] == 400


def test_pairs_stay_together_in_batches_and_shares() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=101).tolist()
    batches = grouped_batches(lengths, 16, np.random.default_rng(1), 2)
    assert sorted(i for batch in batches for i in batch) == list(range(101))
    for batch in batches:
        assert len(batch) <= 16
        for i in batch:
            assert (i ^ 1) in batch or i == 100
    assert share_of([0, 1, 6, 7, 2, 3], 1, 2, 2) == [6, 7]
    assert share_of([0, 1], 1, 2, 2) == [0, 1]


def test_the_loss_is_least_where_pairs_point_the_same_way() -> None:
    import torch

    rows = torch.from_numpy(np.repeat(directions(20), 2, axis=0))
    labels = torch.zeros(40, dtype=torch.long)
    together, apart = float(TASK.loss(rows, labels)), float(TASK.loss(torch.from_numpy(directions(40)), labels))
    assert together < 0.1 < 1 < apart
    assert float(TASK.loss(rows, labels - 1)) == 0  # nobody knows which belong together


# Data


def prepare(data: Path, output: Path, **options: Any) -> dict[str, Any]:
    module = stages.get("prepare")
    output.mkdir(parents=True)
    given = module.Parameters.model_validate({"data": str(data), **options})
    return module.run(demo.find().model, output, given, stages.Context(task=TASK.NAME))


def test_pairs_are_kept_whole_in_every_part(pairs: Path, tmp_path: Path) -> None:
    report = prepare(pairs, tmp_path / "out")
    assert sum(report["splits"].values()) == 2 * report["used"]
    with pairs.open(newline="") as stream:
        known = {(row["query"].strip(), row["passage"].strip()) for row in csv.DictReader(stream)}
    for split in ("train", "validation", "eval"):
        texts = [example.input for example in TASK.read_examples(tmp_path / "out", split)]
        assert set(zip(texts[0::2], texts[1::2], strict=True)) <= known


def test_rows_that_are_no_pairs_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(9)) + "q1,new\nsame,same\nlonely,\n")
    assert prepare(path, tmp_path / "out")["dropped"] == {
        "a text with itself": 1, "empty text": 1, "text of another pair": 1
    }  # fmt: skip
    path.write_text("question,answer\nq,a\n")
    with pytest.raises(InputError, match="1 usable pairs"):
        prepare(path, tmp_path / "few")
    path.write_text("question,other\nq,a\n")
    with pytest.raises(InputError, match=r"cannot tell which column holds the second text.*--option pair_column=NAME"):
        prepare(path, tmp_path / "columns")


def test_another_pooling_is_refused(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(demo.find().model, folder)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": false}')
    with pytest.raises(InputError, match="trained with another pooling than the mean"):
        TASK.check_checkpoint(folder, {})


# The whole way


@pytest.fixture(scope="module")
def made(encoder: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two layers of MiniLM as they are, for this machine."""
    output = tmp_path_factory.mktemp("directions") / "bundle"
    return toolkit.convert(encoder, target="host", data=str(pairs), task=TASK.NAME, output=str(output), min_score="90%")


def test_a_bundle_gives_directions_of_the_checkpoint(made: Any, encoder: Path) -> None:
    """Pooling and normalization are in the artifact: its output is the mean of the tokens' states, at length 1."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    assert made.summary["accepted"]
    parity = [v for c in made.summary["candidates"] for v in c["verdicts"] if v["gate"] == "parity"]
    assert len(parity) == 2 and all(verdict["passed"] for verdict in parity)
    assert made.summary["behaviour"]["mean_cosine"] > 0.98
    assert bundles.verify(made.path)["failures"] == []
    texts = ["a quiet, brilliant film", "", "one of the worst of the year, and long " * 12]
    embed = toolkit.load(made.path)
    found = embed(texts)
    assert found.shape == (3, 384) and found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-3)
    assert np.array_equal(embed(texts[0]), found[0])
    assert embed([]).shape == (0, 384)
    embed.close()
    model, tokenizer = AutoModel.from_pretrained(encoder).eval(), AutoTokenizer.from_pretrained(encoder)
    for text, row in zip(texts, found, strict=True):
        inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state[0].numpy()
        wanted = states.mean(axis=0)
        assert float(row @ wanted / np.linalg.norm(wanted)) > 0.97  # int8, if that was chosen


def test_training_brings_pairs_together_and_a_student_follows(encoder: Path, pairs: Path, tmp_path: Path) -> None:
    prepare(pairs, tmp_path / "data")
    encoding = {"encoding": {"max_length": 96}}
    report = run_stage(
        "finetune", encoder, tmp_path / "tuned", tmp_path / "data", task=TASK.NAME, **encoding, epochs=3,
        learning_rate=2e-4, batch_size=32,
    )  # fmt: skip
    losses = [entry["loss"] for entry in report["history"]]
    assert losses[-1] < 0.8 * losses[0]
    run_stage("teach", tmp_path / "tuned", tmp_path / "lesson", tmp_path / "data", task=TASK.NAME, **encoding)
    assert np.load(tmp_path / "lesson" / "answers.npy").shape[1] == 384
    learned = run_stage(
        "distill", tmp_path / "tuned", tmp_path / "student", tmp_path / "data", task=TASK.NAME, **encoding,
        teaching=[str(tmp_path / "lesson")], layers=[1], epochs=4, learning_rate=5e-4, batch_size=16,
    )  # fmt: skip
    divergences = [entry["validation_divergence"] for entry in learned["history"]]
    assert divergences[-1] < 0.7 * divergences[0]
    with pytest.raises(InputError, match="Prune layers or the ffn, not heads or the width"):
        run_stage(
            "prune", tmp_path / "tuned", tmp_path / "narrow", tmp_path / "data", task=TASK.NAME, **encoding,
            teaching=[str(tmp_path / "lesson")], heads=0.5, epochs=1,
        )  # fmt: skip


def test_the_chain_keeps_the_width(encoder: Path, pairs: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "convert",
        encoder,
        "--task",
        TASK.NAME,
        "--data",
        pairs,
        "--compress",
        "--dry-run",
        "-o",
        tmp_path / "out",
        "--json",
    )
    assert done.returncode == 0, done.stderr

    narrow = json.loads(done.stdout)["compress"]["narrow"]
    assert narrow and all(shape["heads"] == 0 for shape in narrow)
