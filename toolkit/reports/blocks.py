"""What sections are made of, whatever they are written as: text, tables, cards, figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Tone = Literal["good", "bad", "unknown", "plain"]
# A figure is drawn for a phone and for anything wider, in pixels.
NARROW, WIDE = 310, 720


@dataclass(frozen=True)
class Tag:
    """A word that stands out, in a table or on a card: never by its colour alone."""

    text: str
    tone: Tone = "plain"

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Text:
    """A paragraph, and a command that goes with it."""

    text: str
    command: str | None = None
    kind: Literal["plain", "small", "warning"] = "plain"


@dataclass(frozen=True)
class Table:
    """Rows of text below a head."""

    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Fact:
    """One number of a card: what it is, the number, and what to know of it."""

    name: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Card:
    """One thing in short, with a verdict and the lines that it comes from."""

    title: str
    subtitle: str
    tags: Sequence[Tag]
    facts: Sequence[Fact]
    verdict: Tag
    checks: Sequence[Tag] = ()


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Figure:
    """A plot. `draw` makes it as SVG for a width in pixels; the table holds its numbers for those who do not see it.
    `key` says what the numbers in it stand for."""

    title: str
    description: str
    draw: Callable[[int], str]
    table: Table
    key: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Folded:
    """Blocks that are shown when asked for."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Heading:
    """A heading below a section's own."""

    text: str


Block = Text | Table | Cards | Figure | Folded | Heading


@dataclass(frozen=True)
class Section:
    """A part of a report."""

    name: str
    title: str
    blocks: Sequence[Block]
