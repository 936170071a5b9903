"""Labelled examples from a file: read, find the columns, drop what cannot be used and say why, split.

Reading goes through `datasets`; nothing of it leaves this module. Duplicates are dropped *before* the split,
so that no example stands on both sides of it.
"""

from __future__ import annotations

import codecs
import json
import math
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.errors import InputError, missing_extra

_READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".ndjson": ("json", {}),
    ".parquet": ("parquet", {}),
}
# How much is held at once of a file that is read as a stream: rows of a table, bytes of JSON lines.
_STREAMED: dict[str, dict[str, Any]] = {"csv": {"chunksize": 500}, "json": {"chunksize": 1 << 20}}
TEXT_COLUMNS = ("text", "sentence", "review", "content", "comment", "tweet", "message", "body", "utterance")
_LINE_LIMIT = 1 << 20  # bytes
LABEL_COLUMNS = ("label", "labels", "sentiment", "category", "class", "target", "intent", "polarity")


@dataclass
class Dropped:
    """Why rows were left out, and how many."""

    counts: Counter[str] = field(default_factory=Counter)

    def as_dict(self) -> dict[str, int]:
        return dict(sorted(self.counts.items()))


def check_readable(path: Path) -> None:
    """Refuse what can be seen to be no data file without reading it. Raises InputError."""
    if not path.exists():
        raise InputError(f"Data file {path} does not exist.")
    if path.is_dir():
        raise InputError(f"{path} is a folder; --data takes one {', '.join(_READERS)} file.")
    if path.suffix.lower() not in _READERS:
        raise InputError(f"{path}: cannot tell its format by the suffix '{path.suffix}'; known: {', '.join(_READERS)}.")
    if path.stat().st_size == 0:
        raise InputError(f"Data file {path} is empty.")


def _check_encoding(path: Path) -> None:
    if path.suffix.lower() == ".parquet":
        return
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}:{number}: not UTF-8 text (byte {error.start} of the line is "
                    f"0x{line[error.start]:02x}). Convert it first, for example: "
                    f"iconv -f latin1 -t utf-8 '{path.name}' > utf8{path.suffix}"
                ) from error


def _fault(path: Path, error: BaseException) -> str:
    """The first line of a parser's message; for JSON lines with the first line that is not JSON."""
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    valid = not line.strip() or isinstance(json.loads(line), dict)
                except UnicodeDecodeError:
                    return f"line {number} is not UTF-8 text"
                except json.JSONDecodeError as fault:
                    return f"line {number} is not JSON ({fault.msg} at character {fault.pos + 1})"
                if not valid:
                    return f"line {number} is not a JSON object"
    return str(error).splitlines()[0]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All rows of a CSV, TSV, JSON-lines or Parquet file. Raises InputError naming the file and the fault."""
    check_readable(path)
    _check_encoding(path)
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "convert", "Reading data files") from error
    builder, options = _READERS[path.suffix.lower()]
    with tempfile.TemporaryDirectory() as cache:  # datasets keeps a copy of everything it reads
        try:
            table = datasets.load_dataset(
                builder,
                data_files=str(path.resolve()),
                split="train",
                cache_dir=cache,
                keep_in_memory=True,
                **options,
            )
            rows: list[dict[str, Any]] = table.to_list()
        except Exception as error:  # datasets wraps the parsers' many errors in its own
            cause = error.__cause__ or error
            if "corresponds to no data" in str(cause):
                raise InputError(f"Data file {path} has no rows.") from error
            raise InputError(f"{path} cannot be read as {builder}: {_fault(path, cause)}") from error
    if not rows:
        raise InputError(f"Data file {path} has no rows.")
    return rows


def find_column(
    path: Path,
    rows: Sequence[dict[str, Any]],
    given: str | None,
    known: Sequence[str],
    role: str,
    option: str | None = None,
) -> str:
    """The column that holds the `role`: the one given, or the first known name. Raises InputError listing the
    columns found and the `option` that names one (`--ROLE-column`)."""
    columns = list(rows[0])
    if given is not None:
        if given in columns:
            return given
        raise InputError(f"{path} has no column '{given}'; its columns are: {', '.join(columns)}.")
    lowered = {column.lower(): column for column in columns}
    for name in known:
        if name in lowered:
            return lowered[name]
    raise InputError(
        f"{path}: cannot tell which column holds the {role}; its columns are: {', '.join(columns)}. "
        f"Name it with {option or f'--{role}-column'}."
    )


def is_missing(value: Any) -> bool:
    """Whether a cell of a table says nothing."""
    return value is None or (isinstance(value, float) and math.isnan(value)) or value in ("", "NaN", "nan")


def normalize_label(value: Any) -> str:
    """A label as text: integral floats lose their `.0`, booleans become 0 and 1."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def order_labels(found: Collection[str]) -> list[str]:
    """Label values in a stable order: by number if all are integers, else alphabetically."""
    try:
        return sorted(found, key=int)
    except ValueError:
        return sorted(found)


def where(rows: list[dict[str, Any]], path: Path, conditions: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Rows whose columns equal the given values."""
    for column, value in conditions:
        if column not in rows[0]:
            raise InputError(f"{path} has no column '{column}'; its columns are: {', '.join(rows[0])}.")
        rows = [row for row in rows if str(row[column]) == value]
        if not rows:
            raise InputError(f"{path}: no row has {column}={value}.")
    return rows


def labelled_texts(
    path: Path,
    rows: Sequence[dict[str, Any]],
    text_column: str,
    label_column: str,
    *,
    drop_missing: bool,
    dropped: Dropped,
) -> list[tuple[str, str]]:
    """(text, label value) pairs, empty and duplicate texts left out and counted in `dropped`.

    A text that stands there with two labels is left out altogether. Rows without a label are an error unless
    `drop_missing`.
    """
    unlabelled = [number for number, row in enumerate(rows, start=1) if is_missing(row[label_column])]
    if unlabelled and not drop_missing:
        shown = ", ".join(map(str, unlabelled[:5])) + (", …" if len(unlabelled) > 5 else "")
        raise InputError(
            f"{path}: {len(unlabelled)} of {len(rows)} rows have no label in column '{label_column}' "
            f"(rows {shown}). Fill them in, or leave them out with --drop-missing."
        )
    labels: dict[str, str] = {}
    conflicting: set[str] = set()
    for row in rows:
        if is_missing(row[label_column]):
            dropped.counts["no label"] += 1
            continue
        text = "" if row[text_column] is None else str(row[text_column])
        if not text.strip():
            dropped.counts["empty text"] += 1
            continue
        label = normalize_label(row[label_column])
        if text in labels:
            dropped.counts["duplicate text"] += 1
            if labels[text] != label:
                conflicting.add(text)
            continue
        labels[text] = label
    dropped.counts["same text with two labels"] += len(conflicting)
    dropped.counts += Counter()  # drops zero entries
    return [(text, label) for text, label in labels.items() if text not in conflicting]


def label_indices(
    found: Collection[str], path: Path, *, known: Sequence[str] | None, wanted: Sequence[str] | None
) -> tuple[list[str], dict[str, int]]:
    """(label names, label value → index) of the values `found` in a file: by the labels `known` to a trained model if
    there is one, else in order, under the names `wanted` if any. Raises InputError for values that do not fit."""
    if known is not None:
        by_name = {name.lower(): index for index, name in enumerate(known)}
        mapping = {}
        for value in sorted(found):
            if value.lower() in by_name:
                mapping[value] = by_name[value.lower()]
            elif value.isdigit() and int(value) < len(known):
                mapping[value] = int(value)
            else:
                raise InputError(
                    f"{path}: label '{value}' is none of the model's labels ({', '.join(known)}). "
                    "Use data with the same labels, or train a new head: --finetune, or `toolkit finetune MODEL`."
                )
        return list(known), mapping
    if len(found) < 2:
        raise InputError(f"{path}: all rows have the same label ({', '.join(found)}); a classifier needs at least two.")
    ordered = order_labels(found)
    names = wanted or ordered
    if len(names) != len(ordered):
        raise InputError(f"--labels names {len(names)} labels, but {path} has {len(ordered)}: {', '.join(ordered)}.")
    return list(names), {value: index for index, value in enumerate(ordered)}


def check_class_sizes(labels: Iterable[int], names: Sequence[str], path: Path, least: int) -> None:
    """Refuse classes too small to be split. Raises InputError."""
    small = [f"'{names[label]}' ({count})" for label, count in sorted(Counter(labels).items()) if count < least]
    if small:
        raise InputError(f"{path}: too few examples of {', '.join(small)} to split; a class needs at least {least}.")


def stratified_split(labels: Sequence[int], fractions: Sequence[float], seed: int) -> list[list[int]]:
    """Indices in parts of the given fractions, each class in the same proportion, in a seeded order.

    The fractions add up to 1. A class with at least as many examples as parts stands in every part.
    """
    generator = np.random.default_rng(seed)
    parts: list[list[int]] = [[] for _ in fractions]
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(label, []).append(index)
    for label in sorted(by_class):
        members = by_class[label]
        order = generator.permutation(len(members))
        bounds = np.floor(np.cumsum(fractions) * len(members) + 1e-9).astype(int)
        if len(members) >= len(fractions):
            for index in range(len(bounds)):  # no part goes without
                low = 1 + (bounds[index - 1] if index else 0)
                high = len(members) - (len(bounds) - 1 - index)
                bounds[index] = min(max(bounds[index], low), high)
        start = 0
        for part, stop in zip(parts, bounds, strict=True):
            part.extend(members[int(position)] for position in order[start:stop])
            start = int(stop)
    return [[part[int(position)] for position in generator.permutation(len(part))] for part in parts]


def check_texts(path: Path, column: str | None = None) -> None:
    """Refuse what can be seen to be no file of texts by its name and its beginning. Raises InputError."""
    if next(filter(None, stream_texts(path, column)), None) is None:
        raise InputError(f"{path} has no texts.")


def _stream_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, each up to `_LINE_LIMIT` bytes: the rest of a longer one no model would read."""
    with path.open("rb") as stream:
        number, inside = 1, False
        while line := stream.readline(_LINE_LIMIT):
            ends = line.endswith(b"\n")
            if not inside:
                try:
                    text = codecs.getincrementaldecoder("utf-8")().decode(line, final=len(line) < _LINE_LIMIT)
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}:{number}: not UTF-8 text. Convert it first.") from error
                if "\0" in text:
                    raise InputError(f"{path}:{number}: a zero byte; this is no text file.")
                yield text.strip()
            inside = not ends
            number += ends


def stream_texts(path: Path, column: str | None = None) -> Iterator[str]:
    """The texts of a file without labels, one after the other, in little memory whatever its size.

    A `.txt` file has one text per line; every other format is read by its text column. Raises InputError.
    """
    if path.suffix.lower() == ".txt":
        if not path.is_file() or path.stat().st_size == 0:
            raise InputError(f"{path} is not a text file, or it is empty.")
        yield from _stream_lines(path)
        return
    check_readable(path)
    try:
        import datasets
    except ImportError as error:
        raise missing_extra("datasets", "convert", "Reading data files") from error
    builder, options = _READERS[path.suffix.lower()]
    options = options | _STREAMED.get(builder, {})
    name: str | None = None
    try:
        table = datasets.load_dataset(
            builder, data_files=str(path.resolve()), split="train", streaming=True, **options
        )  # fmt: skip
        for row in table:
            name = name or find_column(path, [row], column, TEXT_COLUMNS, "text", "--unlabeled-column")
            if not is_missing(row[name]):
                yield str(row[name])
    except InputError:
        raise
    except Exception as error:  # datasets wraps the parsers' many errors in its own
        raise InputError(f"{path} cannot be read as {builder}: {_fault(path, error.__cause__ or error)}") from error


def sample(inputs: Iterable[Any], count: int, exclude: Collection[Any], seed: int) -> tuple[list[Any], int]:
    """At most `count` different inputs, drawn evenly from a stream in one pass, and how many the stream had.

    `exclude` holds inputs that must not be among them: those that the gates measure on. Algorithm R (Vitter, 1985).
    """

    def key(given: Any) -> str:
        return given if isinstance(given, str) else json.dumps(given)

    known = {key(given) for given in exclude}
    generator = np.random.default_rng(seed)
    kept: list[Any] = []
    seen = 0
    for given in inputs:
        if not given or key(given) in known:
            continue
        seen += 1
        if len(kept) < count:
            kept.append(given)
        elif (place := int(generator.integers(0, seen))) < count:
            kept[place] = given
    return list({key(given): given for given in kept}.values()), seen
