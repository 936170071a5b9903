"""A report as one HTML page: no script, nothing loaded from anywhere, light and dark, for phones and paper.

The page's own policy forbids scripts and requests, so that not even a name in a record that got through could make any.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

from toolkit.reports import drawing
from toolkit.reports.blocks import NARROW, WIDE, Block, Card, Cards, Figure, Folded, Heading, Section, Table, Tag, Text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = Path(__file__).with_name("page.css")
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?( ?(ms|s|MB|kB|B|min|h|%|M|x))?( \(.*\))?|not available|-|")
# Role → (on a light page, on a dark one): what the pictures do not draw with.
_PAGE_ROLES = {
    "page": ("#f4f5f7", "#121417"),
    "good": ("#146c3a", "#5fd48f"),
    "doubt": ("#6d5200", "#e6c65c"),
    "good-soft": ("#e2f3e8", "#173325"),
    "bad-soft": ("#fbe9df", "#3b2317"),
    "doubt-soft": ("#f7f0d8", "#332c14"),
}
ROLES = {**{name: (light, dark) for name, (_, light, dark) in drawing.ROLES.items()}, **_PAGE_ROLES}


def _colors() -> str:
    light = "".join(f"--{name}:{colors[0]};" for name, colors in ROLES.items())
    dark = "".join(f"--{name}:{colors[1]};" for name, colors in ROLES.items())
    return (
        f":root{{color-scheme:light dark;{light}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}@media print{{:root{{color-scheme:light}}}}"
    )


def write(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page. Raises MissingDependencyError where its pictures cannot be drawn."""
    drawing.require()
    names = (f"p{number}-" for number in count(1))
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections)
    parts = [
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>",
        f"<style>{_colors()}{_STYLE.read_text(encoding='utf-8')}</style></head>",
        f'<body><header><p class="eyebrow">Benchmark report</p><h1>{escape(title)}</h1>',
        f'<p class="sub">{escape(subtitle)}</p><nav aria-label="Sections">{links}</nav></header><main>',
    ]
    for section in sections:
        parts.append(f'<section id="{section.name}" aria-labelledby="{section.name}-title">')
        parts.append(f'<h2 id="{section.name}-title">{escape(section.title)}</h2>')
        parts += [_block(block, names) for block in section.blocks]
        parts.append("</section>")
    parts.append(f"</main><footer><p>{escape(footer)}</p></footer></body></html>\n")
    return "\n".join(parts)


def _block(block: Block, names: Iterator[str]) -> str:
    match block:
        case Text():
            return _text(block)
        case Table():
            return _table(block)
        case Cards():
            return f'<div class="cards">{"".join(_card(card) for card in block.cards)}</div>'
        case Figure():
            return _figure(block, names)
        case Heading():
            return f"<h3>{escape(block.text)}</h3>"
        case Folded():
            inner = "".join(_block(each, names) for each in block.blocks)
            return f"<details><summary>{escape(block.title)}</summary>{inner}</details>"


def _text(block: Text) -> str:
    command = f'<p class="command"><code>{escape(block.command)}</code></p>' if block.command else ""
    if block.kind == "warning":
        return f'<p class="warning"><b>Warning:</b> {escape(block.text)}</p>{command}'
    kind = ' class="small"' if block.kind == "small" else ""
    return f"<p{kind}>{escape(block.text)}</p>{command}"


def _tag(tag: Tag) -> str:
    return f'<span class="tag {tag.tone}">{escape(tag.text)}</span>'


def _card(card: Card) -> str:
    facts = "".join(
        f"<div><dt>{escape(fact.name)}</dt><dd><b>{escape(fact.value)}</b>"
        + (f"<small>{escape(fact.detail)}</small>" if fact.detail else "")
        + "</dd></div>"
        for fact in card.facts
    )
    tags = "".join(_tag(tag) for tag in card.tags)
    checks = "".join(f'<li class="{check.tone}">{escape(check.text)}</li>' for check in card.checks)
    listed = f"<ul>{checks}</ul>" if checks else ""
    verdict = f'<div class="verdict {card.verdict.tone}"><p>{escape(card.verdict.text)}</p>{listed}</div>'
    return (
        f'<article class="card"><div>{tags}<h3>{escape(card.title)}</h3><p class="sub">{escape(card.subtitle)}</p>'
        f"<dl>{facts}</dl></div>{verdict}</article>"
    )


def _figure(block: Figure, names: Iterator[str]) -> str:
    wide, narrow = (drawing.renamed(block.draw(width), next(names)) for width in (WIDE, NARROW))
    key = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in block.key)
    listed = f'<dl class="key">{key}</dl>' if key else ""
    return (
        f"<figure><figcaption><b>{escape(block.title)}</b><p>{escape(block.description)}</p></figcaption>"
        f'<div class="wide">{wide}</div><div class="narrow">{narrow}</div>'
        f"{listed}<details><summary>The numbers</summary>{_table(block.table)}</details></figure>"
    )


def _table(table: Table) -> str:
    rows = [list(row) for row in table.rows]
    numeric = [
        bool(rows) and place > 0 and all(not isinstance(c, Tag) and _NUMBER.fullmatch(str(c)) for c in column)
        for place, column in enumerate(zip(*rows, strict=True))
    ]
    head = "".join(
        f'<th scope="col"{_numeric(each)}>{escape(name)}</th>' for name, each in zip(table.head, numeric, strict=False)
    )
    body = "".join(
        "<tr>"
        + "".join(_cell(cell, place, table.head[place], numeric[place]) for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    kind = "table rows" if len(table.head) > 2 else "table"
    named = escape(table.caption or ", ".join(name for name in table.head if name) or "numbers", quote=True)
    return (
        f'<div class="{kind}" role="region" tabindex="0" aria-label="{named}"><table>{caption}'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _numeric(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _cell(cell: Any, place: int, head: str, numeric: bool) -> str:
    shown = _tag(cell) if isinstance(cell, Tag) else escape(str(cell))
    if place == 0:
        return f'<th scope="row">{shown}</th>'
    kind = " ".join(name for name, is_so in (("n", numeric), ("empty", not shown)) if is_so)
    classes = f' class="{kind}"' if kind else ""
    label = f' data-label="{escape(head, quote=True)}"' if head else ""
    return f"<td{classes}{label}><span>{shown}</span></td>"
