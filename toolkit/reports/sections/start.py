"""From the start of a process to its first answer."""

from __future__ import annotations

from functools import partial

from toolkit.bench.record import ColdStart
from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Tag
from toolkit.reports.data import Report
from toolkit.reports.sections.verdict import KINDS

TITLE = "Start"
WANTS = ("a record with starts", "toolkit bench BUNDLE -o record.json")
_PARTS = ("process", "load", "first inference")


def blocks(report: Report) -> list[Block]:
    """Cold and warm starts, each in its parts."""
    bars, rows = [], []
    for record, label in zip(report.records, report.labels(), strict=True):
        for name, found in (("cold", record.cold_start), ("warm", record.warm_start)):
            if found is None:
                continue
            parts = (found.process_ms, found.load_ms, found.first_inference_ms)
            whole = sum(parts)
            kind = "" if record.kind == "measured" else f", {record.kind}"
            named = f"{label}, {_said(name, found)}{kind}"
            bars.append(charts.Bar(named, list(enumerate(parts)), text.milliseconds(whole)))
            rows.append(
                (label, _said(name, found), *(text.number(part) for part in parts), text.number(whole), found.starts,
                 _resident(found), Tag(record.kind, KINDS[record.kind]))
            )  # fmt: skip
    if not bars:
        return []
    return [
        Figure(
            "From the start of the process to the first answer",
            "Medians. Before a cold start the files of the bundle and the engine are dropped from memory, as after a "
            "boot; where that is not allowed, it says so.",
            partial(charts.bars, "Start of the process to its first answer", bars, legend=_PARTS),
            Table(
                ("", "start", *(f"{part}, ms" for part in _PARTS), "together, ms", "starts", "files in memory", "kind"),
                rows,
            ),
        )
    ]


def _said(name: str, found: ColdStart) -> str:
    """A cold start whose files may have been in memory is none."""
    return "start, page cache not dropped" if name == "cold" and found.resident is None else f"{name} start"


def _resident(found: ColdStart) -> str:
    return text.NONE if found.resident is None else f"{100 * found.resident:.0f} %"
