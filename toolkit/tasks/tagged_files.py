"""Words with tags: read from CoNLL files and from tables, and made one scheme.

A CoNLL file has a word per line, its columns apart by tabs or spaces, the tag last; an empty line ends a sentence.
Three schemes are understood: B- and I- (IOB2), I- alone with B- only between two entities of a type (IOB1), and bare
types. All become IOB2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from toolkit import data
from toolkit.errors import InputError
from toolkit.runtime.token_classification import OUTSIDE

SUFFIXES = (".conll", ".bio", ".iob", ".iob2", ".txt")
_WORD_COLUMNS = ("tokens", "words", "text")
_TAG_COLUMNS = ("ner_tags", "tags", "labels", "ner")

Sentence = tuple[list[str], list[str]]


def read(path: Path, parameters: Any) -> list[Sentence]:
    """The sentences of a file, each words and as many tags. Raises InputError naming line or row and fault."""
    if path.suffix.lower() in SUFFIXES:
        return list(lines(path))
    rows = data.where(data.read_rows(path), path, parameters.where)
    words = data.find_column(path, rows, parameters.text_column, _WORD_COLUMNS, "words", "--text-column")
    tags = data.find_column(path, rows, parameters.label_column, _TAG_COLUMNS, "tags", "--label-column")
    return [_row(path, number, row[words], row[tags], parameters) for number, row in enumerate(rows, start=1)]


def _row(path: Path, number: int, words: Any, tags: Any, parameters: Any) -> Sentence:
    if not isinstance(words, list) or not isinstance(tags, list):
        raise InputError(f"{path}: row {number}: words and tags must be lists.")
    if len(words) != len(tags):
        raise InputError(f"{path}: row {number} has {len(words)} words and {len(tags)} tags.")
    names = parameters.label_names or parameters.known_labels
    if any(isinstance(tag, int) for tag in tags):
        if names is None or not all(isinstance(tag, int) and 0 <= tag < len(names) for tag in tags):
            raise InputError(f"{path}: row {number} has numbers for tags; name them in their order with --labels.")
        tags = [names[tag] for tag in tags]
    return [str(word) for word in words], [str(tag) for tag in tags]


def lines(path: Path) -> Iterator[Sentence]:
    """The sentences of a CoNLL file. Raises InputError for a line without a tag."""
    words: list[str] = []
    tags: list[str] = []
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                columns = line.split("\t") if "\t" in line.strip() else line.split()
                columns = [column.strip() for column in columns]
                if not any(columns) or columns[0] == "-DOCSTART-":
                    if words:
                        yield words, tags
                    words, tags = [], []
                    continue
                if len(columns) < 2 or not columns[0] or not columns[-1]:
                    raise InputError(f"{path}:{number}: a word and its tag were expected, '{line.strip()}' was found.")
                words.append(columns[0])
                tags.append(columns[-1])
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start}). Convert it first.") from error
    if words:
        yield words, tags


def distinct(sentences: Sequence[Sentence], dropped: data.Dropped) -> list[Sentence]:
    """Every sentence once, and none that stands there with two taggings; what is left out is counted."""
    first: dict[tuple[str, ...], Sentence] = {}
    conflicting = set()
    for sentence in sentences:
        key = tuple(sentence[0])
        if not key:
            dropped.counts["empty sentence"] += 1
        elif key in first:
            dropped.counts["duplicate sentence"] += 1
            if first[key][1] != sentence[1]:
                conflicting.add(key)
        else:
            first[key] = sentence
    if conflicting:
        dropped.counts["same sentence with two taggings"] += len(conflicting)
    return [sentence for key, sentence in first.items() if key not in conflicting]


def repaired(path: Path, sentences: Sequence[Sentence]) -> tuple[list[Sentence], int]:
    """(the sentences in IOB2, how many tags were changed for it). Raises InputError for tags of no scheme."""
    if not sentences:
        raise InputError(f"{path} has no tagged sentence.")
    found = {tag for _, tags in sentences for tag in tags} - {OUTSIDE}
    bare = not any(tag[:2] in ("B-", "I-") for tag in found)
    strange = sorted(tag for tag in found if not bare and (tag[:2] not in ("B-", "I-") or len(tag) < 3))
    if strange:
        raise InputError(f"{path}: the tag '{strange[0]}' is neither O nor a type behind B- or I-.")
    changed = 0
    result = []
    for words, tags in sentences:
        made: list[str] = []
        for place, tag in enumerate(tags):
            kind = tag if bare else tag[2:]
            before = made[place - 1] if place else OUTSIDE
            if tag == OUTSIDE or tag.startswith("B-"):
                new = tag
            else:
                new = f"{'I' if before[2:] == kind and before != OUTSIDE else 'B'}-{kind}"
            changed += new != tag
            made.append(new)
        result.append((words, made))
    return result, changed
