"""Data files: what is read, what is left out and counted, and a split that shares no text between its sides."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_inputs import ROWS, csv_text, json_lines, prepare, tiny_checkpoint
from toolkit import data
from toolkit.data import Dropped
from toolkit.errors import InputError

SPLITS = ("train", "validation", "eval")
FRACTIONS = (0.72, 0.08, 0.20)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


def usable(rows: list[dict[str, Any]], **options: Any) -> tuple[list[tuple[str, str]], dict[str, int]]:
    dropped = Dropped()
    options.setdefault("drop_missing", False)
    pairs = data.labelled_texts(Path("f.csv"), rows, "text", "label", dropped=dropped, **options)
    return pairs, dropped.as_dict()


def labels_of(path: Path) -> list[str]:
    return [data.normalize_label(row["label"]) for row in data.read_rows(path)]


# Reading


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": text, "label": int(label)} for text, label in ROWS]
    files = {name: tmp_path / name for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "A.CSV", "a.parquet")}
    files["a.csv"].write_text(csv_text(ROWS), encoding="utf-8")
    files["A.CSV"].write_text(csv_text(ROWS), encoding="utf-8")
    files["a.tsv"].write_text(csv_text(ROWS).replace(",", "\t"), encoding="utf-8")
    files["a.jsonl"].write_text(json_lines(rows), encoding="utf-8")
    files["a.json"].write_text(json.dumps(rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), files["a.parquet"])
    for path in files.values():
        assert data.read_rows(path) == rows, path.name


def test_words_that_look_like_missing_values_stay_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\nNA,1\nnull,0\nNone,1\n", encoding="utf-8")
    assert [row["text"] for row in data.read_rows(path)] == ["NA", "null", "None"]


def test_line_of_a_broken_json_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for broken in ('{"text": "b", "label":', '["b", 1]', "{'text': 'b'}"):
        path.write_text('{"text": "a", "label": 1}\n' + broken + '\n{"text": "c", "label": 0}\n', encoding="utf-8")
        with pytest.raises(InputError, match=r"a\.jsonl cannot be read as json: line 2 is not"):
            data.read_rows(path)


# Columns


def test_column_is_found_by_name_in_order_of_preference() -> None:
    rows = [{"Content": "x", "Sentence": "y", "id": 3}]
    assert data.find_column(Path("f"), rows, None, data.TEXT_COLUMNS, "text") == "Sentence"
    assert data.find_column(Path("f"), rows, "id", data.TEXT_COLUMNS, "text") == "id"


def test_column_that_is_not_there_lists_those_that_are() -> None:
    rows = [{"foo": "x", "bar": "y"}]
    with pytest.raises(InputError, match=r"holds the label; its columns are: foo, bar\. Name it with --label-column"):
        data.find_column(Path("f"), rows, None, data.LABEL_COLUMNS, "label")
    with pytest.raises(InputError, match=r"no column 'Foo'; its columns are: foo, bar"):
        data.find_column(Path("f"), rows, "Foo", data.TEXT_COLUMNS, "text")


def test_where_keeps_rows_that_meet_all_conditions() -> None:
    rows = [{"source": "a", "year": 1}, {"source": "a", "year": 2}, {"source": "b", "year": 2}]
    assert data.where(rows, Path("f"), [("source", "a"), ("year", "2")]) == [{"source": "a", "year": 2}]
    with pytest.raises(InputError, match="no row has year=3"):
        data.where(rows, Path("f"), [("year", "3")])
    with pytest.raises(InputError, match="no column 'month'"):
        data.where(rows, Path("f"), [("month", "3")])


# Labels


@pytest.mark.parametrize(
    ("value", "label"),
    [(1.0, "1"), (0.5, "0.5"), (True, "1"), (False, "0"), (-1, "-1"), (" good ", "good"), ("1.0", "1.0")],
)
def test_label_values_become_text(value: Any, label: str) -> None:
    assert data.normalize_label(value) == label


def test_float_and_boolean_labels_of_files(tmp_path: Path) -> None:
    floats, booleans = tmp_path / "f.csv", tmp_path / "b.csv"
    floats.write_text("text,label\na,1.0\nb,0.0\n", encoding="utf-8")
    booleans.write_text("text,label\na,True\nb,False\n", encoding="utf-8")
    assert labels_of(floats) == labels_of(booleans) == ["1", "0"]


def test_integer_labels_stay_integers_beside_a_missing_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": null}\n{"text": "c", "label": 0}\n')
    pairs, dropped = usable(data.read_rows(path), drop_missing=True)
    assert pairs == [("a", "1"), ("c", "0")]
    assert dropped == {"no label": 1}


def test_labels_are_ordered_by_number_or_by_name() -> None:
    assert data.order_labels({"10", "9", "-1"}) == ["-1", "9", "10"]
    assert data.order_labels({"b", "10", "9"}) == ["10", "9", "b"]


# What is left out


def test_missing_labels_are_refused_by_row_or_dropped() -> None:
    rows = [
        {"text": str(number), "label": value} for number, value in enumerate(["1", None, "", "nan", float("nan"), "0"])
    ]
    with pytest.raises(InputError, match=r"4 of 6 rows have no label in column 'label' \(rows 2, 3, 4, 5\)"):
        usable(rows)
    assert usable(rows, drop_missing=True) == ([("0", "1"), ("5", "0")], {"no label": 4})


def test_a_text_with_two_labels_is_left_out_altogether() -> None:
    rows = [{"text": t, "label": v} for t, v in [("a", 0), ("b", 1), ("a", 1), ("b", 1), ("a", 0), ("  ", 1)]]
    assert usable(rows) == (
        [("b", "1")],
        {"duplicate text": 3, "empty text": 1, "same text with two labels": 1},
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c", "", None]), st.sampled_from(["0", "1", "", None]))))
def test_every_row_is_used_or_counted(pairs: list[tuple[Any, Any]]) -> None:
    used, dropped = usable([{"text": text, "label": label} for text, label in pairs], drop_missing=True)
    assert len(used) + sum(dropped.values()) == len(pairs)
    assert len({text for text, _ in used}) == len(used)


# The split


def test_no_text_stands_on_two_sides(tmp_path: Path, checkpoint: Path) -> None:
    rows = ROWS * 3  # every text three times
    path = tmp_path / "a.csv"
    path.write_text(csv_text(rows), encoding="utf-8")
    report = prepare(checkpoint, path, tmp_path / "out")
    texts = [
        json.loads(line)["input"]
        for split in SPLITS
        for line in (tmp_path / "out" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert sorted(texts) == sorted(text for text, _ in ROWS)
    assert report["dropped"] == {"duplicate text": 24}
    assert report["labels"] == {"0": 6, "1": 6}


def labels(counts: list[int]) -> list[int]:
    return [label for label, count in enumerate(counts) for _ in range(count)]


@settings(deadline=None)
@given(st.lists(st.integers(3, 60), min_size=1, max_size=4), st.integers(0, 5))
def test_split_is_a_partition_with_every_class_in_every_part(counts: list[int], seed: int) -> None:
    given_labels = labels(counts)
    parts = data.stratified_split(given_labels, FRACTIONS, seed)
    assert sorted(index for part in parts for index in part) == list(range(len(given_labels)))
    for part, fraction in zip(parts, FRACTIONS, strict=True):
        found = Counter(given_labels[index] for index in part)
        for label, count in enumerate(counts):
            assert found[label] >= 1
            assert abs(found[label] - fraction * count) <= 2


def test_split_keeps_exact_proportions_and_is_seeded() -> None:
    given_labels = labels([100, 50])
    parts = data.stratified_split(given_labels, FRACTIONS, seed=3)
    found = [Counter(given_labels[index] for index in part) for part in parts]
    assert found == [{0: 72, 1: 36}, {0: 8, 1: 4}, {0: 20, 1: 10}]
    assert data.stratified_split(given_labels, FRACTIONS, seed=3) == parts
    other = data.stratified_split(given_labels, FRACTIONS, seed=4)
    assert set(other[2]) != set(parts[2])
    drawn = [given_labels[index] for index in parts[0]]
    assert drawn != sorted(drawn)  # not class after class
