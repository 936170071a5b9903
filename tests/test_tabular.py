"""Tables: imputation and scaling in the bundle, the measures of risk scoring, and the whole way."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import toolkit
from tests.conftest import run_toolkit
from toolkit import bundle as bundles
from toolkit import modules, stages
from toolkit.errors import InputError
from toolkit.runtime.tabular import RowEncoder
from toolkit.tasks.tabular import TASK, auc_and_ks

SPEC = {
    "numeric": {
        "age": {"median": 40.0, "mean": 42.0, "std": 10.0, "indicator": True},
        "income": {"median": 3000.0, "mean": 3200.0, "std": 800.0, "indicator": False},
    },
    "categorical": {"job": ["clerk", "cook"], "zip": ["1010", "2020"]},
}
ROW = {"age": 52, "income": "2400", "job": "cook", "zip": 1010.0, "name": "ignored"}


def customers(path: Path, count: int = 1500, seed: int = 0) -> Path:
    """A table whose label follows from its columns and chance: numbers, some of them missing, and categories."""
    generator = np.random.default_rng(seed)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "age", "income", "job", "default"])
        for number in range(count):
            age, income = generator.uniform(18, 80), generator.lognormal(8, 0.6)
            job = ["clerk", "cook", "nurse", "pilot"][generator.integers(4)]
            risk = -0.05 * (age - 45) - 1.5 * (np.log(income) - 8) + {"cook": 1.0, "pilot": -1.0}.get(job, 0.0)
            label = int(generator.random() < 1 / (1 + np.exp(-1.5 * risk)))
            known = "" if generator.random() < 0.1 else f"{income:.2f}"
            writer.writerow([number, f"{age:.1f}", known, job, label])
    return path


def prepare(data: Path, output: Path, source: Path | None = None, **options: Any) -> dict[str, Any]:
    module = stages.get("prepare")
    output.mkdir(parents=True)
    given_ = module.Parameters.model_validate({"data": str(data), "label_column": "default", "drop": ["id"], **options})
    return module.run(source or output, output, given_, stages.Context(task=TASK.NAME))


# Rows


def test_a_row_becomes_numbers() -> None:
    encoder = RowEncoder(SPEC)
    assert encoder.width == 7
    assert encoder(ROW)["features"].tolist() == [[1.0, 0.0, -1.0, 0.0, 1.0, 1.0, 0.0]]
    missing = {"age": None, "income": "NA", "job": "", "zip": float("nan")}
    assert encoder(missing)["features"][0] == pytest.approx([-0.2, 1.0, -0.25, 0, 0, 0, 0])


def test_a_new_category_at_run_time_is_unknown_and_no_error() -> None:
    found = RowEncoder(SPEC)({**ROW, "job": "astronaut", "zip": "9999"})["features"][0]
    assert found.tolist() == [1.0, 0.0, -1.0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**ROW, "age": "old"}, "Column 'age' holds numbers; got 'old'"),
        ({**ROW, "income": float("inf")}, "Column 'income' holds finite numbers"),
        ({"age": 1, "income": 2, "job": "cook"}, "lacks the column 'zip'; give None where nothing is known"),
        ([1, 2, 3], "A row is a mapping of columns to values; got list"),
    ],
)
def test_rows_that_are_none_are_refused(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RowEncoder(SPEC)(row)


@pytest.mark.parametrize(
    "spec", [{}, {"numeric": {"a": {"median": 1.0}}, "categorical": {}}, {"numeric": [], "categorical": {}}]
)
def test_a_spec_that_is_none_is_refused(spec: Any) -> None:
    with pytest.raises(InputError):
        RowEncoder(spec)


# Data


def test_only_training_rows_say_how_columns_are_scaled(tmp_path: Path) -> None:
    report = prepare(customers(tmp_path / "a.csv"), tmp_path / "out")
    train = [example.input for example in TASK.read_examples(tmp_path / "out", "train")]
    known = [float(row["income"]) for row in train if row["income"] not in ("", None)]
    spec = report["encoding"]["numeric"]["income"]
    assert spec["median"] == pytest.approx(np.median(known))
    assert spec["indicator"] and not report["encoding"]["numeric"]["age"]["indicator"]
    assert list(report["encoding"]["numeric"]) == ["age", "income"]
    assert report["encoding"]["categorical"] == {"job": ["clerk", "cook", "nurse", "pilot"]}
    assert report["features"] == 2 + 1 + 4


def test_columns_are_told_apart_or_as_told(tmp_path: Path) -> None:
    data = customers(tmp_path / "a.csv", 300)
    told = prepare(data, tmp_path / "told", categorical=["age"], drop=["id", "job"])["encoding"]
    assert "age" in told["categorical"] and "job" not in told["categorical"]
    with pytest.raises(InputError, match="Column 'job' holds numbers"):
        prepare(data, tmp_path / "wrong", numeric=["job"])
    with pytest.raises(InputError, match="has no column 'jobs'; its columns are: id, age, income, job, default"):
        prepare(data, tmp_path / "typo", drop=["jobs"])


def test_a_trained_model_keeps_its_columns(tmp_path: Path) -> None:
    data = customers(tmp_path / "a.csv", 300)
    first = prepare(data, tmp_path / "first")
    source = tmp_path / "model"
    source.mkdir()
    (source / "preprocessor.json").write_text(json.dumps(first["encoding"]))
    other = customers(tmp_path / "b.csv", 200, seed=1)
    again = prepare(other, tmp_path / "again", source, known_labels=["0", "1"], evaluate_only=True)
    assert again["encoding"] == first["encoding"]
    other.write_text(other.read_text().replace("income", "salary"))
    with pytest.raises(InputError, match="has no column 'income', which the model was trained with"):
        prepare(other, tmp_path / "lost", source, known_labels=["0", "1"])


# Measures


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=60))
def test_area_under_the_curve_is_the_share_of_pairs_in_order(cases: list[tuple[int, bool]]) -> None:
    chances, truth = np.asarray([c / 9 for c, _ in cases]), np.asarray([t for _, t in cases])
    area, distance = auc_and_ks(chances, truth)
    if truth.all() or not truth.any():
        assert (area, distance) == (0.5, 0.0)
        return
    higher = chances[truth][:, None] > chances[~truth][None]
    equal = chances[truth][:, None] == chances[~truth][None]
    assert area == pytest.approx((higher + 0.5 * equal).mean())
    at = [(chances[truth] >= t).mean() - (chances[~truth] >= t).mean() for t in np.unique(chances)]
    assert distance == pytest.approx(max(0.0, *at))


# The whole way


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("table")
    return toolkit.convert(
        "mlp", target="host", data=str(customers(work / "customers.csv")), task=TASK.NAME, label_column="default",
        drop=["id"], epochs=12, learning_rate=5e-3, output=str(work / "bundle"), min_score="97%",
    )  # fmt: skip


def test_a_table_becomes_a_bundle(made: Any) -> None:
    score = made.summary["score"]
    assert made.summary["accepted"]
    assert score["name"] == "AUC" and score["before"] > 0.7
    assert 0.2 < score["metrics"]["ks"] < 1 and 0 < score["metrics"]["brier"] < 0.5
    parity = [v for c in made.summary["candidates"] for v in c["verdicts"] if v["gate"] == "parity"]
    assert len(parity) == 2 and all(verdict["passed"] for verdict in parity)
    assert bundles.verify(made.path)["failures"] == []
    risk = toolkit.load(made.path)
    young = {"age": 20, "income": 700, "job": "cook"}
    old = {"age": 75, "income": 9000, "job": "pilot", "id": 7}
    first, second, third = risk([young, old, {"age": None, "income": None, "job": "astronaut"}])
    assert first["scores"]["1"] > 0.6 > 0.4 > second["scores"]["1"]
    assert set(third["scores"]) == {"0", "1"}
    risk.close()


def test_own_networks_need_no_leave_and_others_do(tmp_path: Path) -> None:
    data = customers(tmp_path / "a.csv", 300)
    given_ = ("--task", TASK.NAME, "--data", data, "--label-column", "default", "--option", "drop=[id]")
    done = run_toolkit("finetune", "mlp", *given_, "--epochs", "1", "-o", tmp_path / "tuned")
    assert done.returncode == 0, done.stderr
    code = tmp_path / "tuned" / modules.CODE
    assert modules.is_ours(code)
    shown = run_toolkit("convert", tmp_path / "tuned", "--data", data, "--label-column", "default", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    code.write_text(code.read_text() + "\n# changed\n")
    refused = run_toolkit("convert", tmp_path / "tuned", "--data", data, "--label-column", "default", "--dry-run")
    assert refused.returncode == 2 and "--allow-code" in refused.stderr


def test_an_encoder_of_texts_is_no_model_of_tables(tmp_path: Path, encoder: Path) -> None:
    data = customers(tmp_path / "a.csv", 50)
    done = run_toolkit("convert", encoder, "--task", TASK.NAME, "--data", data, "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "a model of tables is `mlp`, or a network of your own" in done.stderr
