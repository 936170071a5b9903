"""A report as Markdown, as GitHub shows it: text and tables. What a figure shows is in its table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from toolkit.reports.blocks import Block, Card, Cards, Figure, Folded, Heading, Section, Table, Tag, Text


def write(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole document."""
    parts = [f"# {escaped(title)}", escaped(subtitle)]
    for section in sections:
        parts += [f"## {escaped(section.title)}", *(_block(each) for each in section.blocks)]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(value: Any) -> str:
    """Text that Markdown leaves as it is, on one line."""
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]|#~])", r"\\\1", line)
    return re.sub(r"^([-+]|\d+[.)])(?= )", r"\\\1", line)


def _block(block: Block) -> str:
    match block:
        case Text():
            text = escaped(block.text)
            if block.kind == "warning":
                text = f"> **Warning:** {text}"
            return f"{text}\n\n    {' '.join(block.command.split())}" if block.command else text
        case Table():
            return _table(block)
        case Cards():
            return _table(Table(("what", "where", "kind", "numbers", "verdict"), [_card(card) for card in block.cards]))
        case Figure():
            return f"### {escaped(block.title)}\n\n{escaped(block.description)}\n\n{_table(block.table)}"
        case Heading():
            return f"### {escaped(block.text)}"
        case Folded():
            inner = "\n\n".join(_block(each) for each in block.blocks)
            return f"<details><summary>{escaped(block.title)}</summary>\n\n{inner}\n\n</details>"


def _card(card: Card) -> tuple[Any, ...]:
    numbers = "; ".join(
        f"{fact.name} {fact.value}" + (f" ({fact.detail})" if fact.detail else "") for fact in card.facts
    )
    return (card.title, card.subtitle, ", ".join(tag.text for tag in card.tags), numbers, card.verdict)


def _table(table: Table) -> str:
    def line(cells: Sequence[Any]) -> str:
        shown = (
            f"**{escaped(cell)}**" if isinstance(cell, Tag) and cell.tone != "plain" else escaped(cell)
            for cell in cells
        )
        return f"| {' | '.join(shown)} |"

    lines = [line(table.head), f"|{'---|' * len(table.head)}", *(line(row) for row in table.rows)]
    caption = f"{escaped(table.caption)}\n\n" if table.caption else ""
    return caption + "\n".join(lines)
