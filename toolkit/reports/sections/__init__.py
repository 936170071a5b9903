"""The sections of a report, in their order. One file per section, with the same few names.

    TITLE                                       its heading
    WANTS                                       (what it needs, the command that gives it), told where there is none
    blocks(report) -> list[Block]               what it shows; nothing where the report has no data for it

Adding a section: one file in this folder and one line here.
"""

from __future__ import annotations

from types import ModuleType

from toolkit.reports.blocks import Section, Table, Text
from toolkit.reports.data import Report
from toolkit.reports.sections import (
    comparisons,
    energy,
    environment,
    history,
    instructions,
    latency,
    memory,
    operators,
    pareto,
    sensitivity,
    stages,
    start,
    sustained,
    sweep,
    verdict,
)

ALL: tuple[ModuleType, ...] = (
    verdict, stages, pareto, latency, comparisons, sweep, start, memory, energy, sustained, operators, sensitivity,
    instructions, history, environment,
)  # fmt: skip


def of(report: Report) -> list[Section]:
    """The sections that the report has data for, and at its end what the others would take."""
    made, missing = [], []
    for module in ALL:
        name = module.__name__.rpartition(".")[2]
        found = module.blocks(report)
        if found:
            made.append(Section(name, module.TITLE, found))
        else:
            missing.append((module.TITLE, *module.WANTS))
    if missing and not report.history:
        told = Text("Nothing that was given holds these.", kind="small")
        table = Table(("section", "what it needs", "how to get it"), missing)
        made.append(Section("missing", "Not in this report", [told, table]))
    return made
