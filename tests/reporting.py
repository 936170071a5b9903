"""What tests of reports look with: records in which little is known, hostile texts, the parts of a page, its colors."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench import run, statistics
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted


def measured(bundle: Path, **wanted: Any) -> Record:
    """A record of this machine."""
    return run.bench(str(bundle), ["local"], Wanted(**{"seconds": 0.1, **wanted}))[0]


def made_up() -> Record:
    """A record of numbers that nothing measured, for what does not depend on them."""
    rounds = np.random.default_rng(0).lognormal(-6, 0.1, (8, 50))
    return Record.model_validate(
        {
            "kind": "measured", "clock": "made up", "created": "2026-01-01T10:00:00+00:00", "toolkit": "0.1.0",
            "bundle": {
                "name": "demo", "content_hash": "0" * 64, "task": "text-classification", "target": "host",
                "engine": "onnxruntime", "precision": "int8", "artifact_bytes": 1_000_000, "bundle_bytes": 1_100_000,
                "score": 0.8, "score_name": "accuracy",
            },
            "device": {"address": "local", "title": "A board", "fingerprint": "0" * 16, "facts": {}},
            "protocol": {"name": "quick", "threads": 1, "examples": 8, "examples_from": "made up", "seed": 0},
            "latency": statistics.distribution(rounds),
        }
    )  # fmt: skip


def bare(record: Record) -> Record:
    """A record of what must be there alone."""
    needed = {"kind", "clock", "created", "toolkit", "bundle", "device", "protocol"}
    made = record.model_dump(include=needed)
    made["bundle"] |= {"score": None, "score_name": None}
    made["device"]["facts"] = {}
    return Record.model_validate(made)


def written(folder: Path, name: str, *records: Record) -> Path:
    """A file of records, as `toolkit bench -o` writes it."""
    path = folder / name
    texts = [record.model_dump_json() for record in records]
    path.write_text(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]", encoding="utf-8")
    return path


def replaced(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON document with every text in it changed; names of keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: replaced(each, change) for key, each in value.items()}
    return [replaced(each, change) for each in value] if isinstance(value, list) else value


EVIL = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>|`*_[a](http://evil.example)$\\frac$漢"
# As `toolkit quantize --sensitivity` writes it.
SENSITIVITY = {
    "method": "dynamic-int8", "examples": 200, "float_score": 0.84, "warnings": [], "keep": ["b"], "floor": 0.83,
    "score": 0.835,
    "layers": [
        {"layer": "a", "score": 0.83, "score_change": -0.01, "divergence": 0.002, "bytes_saved": 300_000},
        {"layer": "b", "score": 0.80, "score_change": -0.04, "divergence": 0.05, "bytes_saved": 200_000},
    ],
}  # fmt: skip


def emulated(record: Record) -> Record:
    """What an emulated CPU gives."""
    made = bare(record).model_copy(update={"kind": "emulated", "clock": "instructions", "instructions": {"total": 9e8}})
    return Record.model_validate(made.model_dump())


_VOID = {"meta", "br", "hr", "img", "input", "link", "base"}


class Page(HTMLParser):
    """What a page consists of. Raises AssertionError where elements do not close in the order in which they open."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def linear(color: str) -> Any:
    """A color of a style sheet as linear RGB."""
    values = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: Any, two: Any) -> float:
    """Of two linear colors, as WCAG defines it."""
    lights = sorted(float(np.dot([0.2126, 0.7152, 0.0722], color)) + 0.05 for color in (one, two))
    return lights[1] / lights[0]


# Machado, Oliveira, Fernandes 2009, complete deficiency, on linear RGB.
BLIND = {
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}


def lab(color: Any) -> Any:
    """CIELAB of a linear color."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ color / [0.9505, 1.0, 1.089], 0, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])
