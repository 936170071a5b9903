"""What is not a time: instructions on an emulated CPU, memory and cycles of a microcontroller, answers of a device."""

from __future__ import annotations

from functools import partial

from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Folded, Table, Tag, Text
from toolkit.reports.data import Report
from toolkit.reports.sections.verdict import KINDS

TITLE = "Counts and estimates"
WANTS = ("a record of an emulated CPU or a microcontroller", "toolkit bench BUNDLE --device emulator://cortex-a76")


def blocks(report: Report) -> list[Block]:
    """Bars of the classes of instructions, then tables of what else is known."""
    bars, rows = [], []
    tables: list[Block] = []
    for record, label in zip(report.records, report.labels(), strict=True):
        found = record.instructions or {}
        for name, value in sorted(found.items(), key=lambda item: (item[0] != "total", -item[1])):
            rows.append((label, text.words(name), f"{value:,.0f}", Tag(record.kind, KINDS[record.kind]), record.clock))
            if value > 0:
                named = f"{label}: {text.words(name)}"
                bars.append(charts.Bar(named, [(0, value / 1e6)], f"{text.number(value / 1e6)} M"))
        for title, data in (("memory of the interpreter", record.arena), ("cycles", record.cycles)):
            if data:
                told = [(text.words(str(name)), text.plain(value)) for name, value in data.items()]
                tables.append(Folded(f"{label}: {title} ({record.kind}, {record.clock})", [Table(("", ""), told)]))
        if record.answers:
            told = [(text.words(str(name)), text.plain(value)) for name, value in record.answers.items()]
            tables.append(Folded(f"{label}: its answers beside the bundle's own", [Table(("", ""), told)]))
    if not bars and not tables:
        return []
    made: list[Block] = [Text("These are no times: a count knows nothing of caches, of memory or of how many "
                              "instructions a CPU starts at once.")]  # fmt: skip
    if bars:
        made.append(
            Figure(
                "Instructions of one inference, millions",
                "Emulated: counted on an emulated CPU, on one thread, from encoded inputs to outputs.",
                partial(charts.bars, "Instructions of one inference", bars),
                Table(("", "class", "instructions", "kind", "clock"), rows),
            )
        )
    return [*made, *tables]
