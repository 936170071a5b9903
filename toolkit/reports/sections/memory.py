"""How much memory a process takes that holds the bundle."""

from __future__ import annotations

from functools import partial

from toolkit.bench.record import Record
from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Tag
from toolkit.reports.data import Report
from toolkit.reports.sections.verdict import KINDS

TITLE = "Memory"
WANTS = ("a record with starts", "toolkit bench BUNDLE -o record.json")


def _sizes(record: Record) -> dict[str, int | None]:
    memory = record.memory
    arena = record.arena or {}
    running = memory.running if memory else {}
    found: dict[str, int | None] = {
        "file": record.bundle.artifact_bytes,
        "added by engine and model": memory.model_delta_bytes if memory else None,
        "private dirty, running": running.get("private_dirty_bytes"),
        "proportional set, running": running.get("pss_bytes"),
        "peak resident set": memory.peak_rss_bytes if memory else None,
        "GPU": memory.gpu_bytes if memory else None,
    }
    total = arena.get("arena_bytes") or arena.get("total_bytes")
    if isinstance(total, int):
        found["arena of the interpreter"] = total
    return found


def blocks(report: Report) -> list[Block]:
    """A bar for every kind of memory that the device tells."""
    rows = []
    bars: dict[str, list[charts.Bar]] = {}
    told = [
        (record, label)
        for record, label in zip(report.records, report.labels(), strict=True)
        if record.memory is not None or record.arena
    ]
    for place, (record, label) in enumerate(told):
        for name, size in _sizes(record).items():
            rows.append((label, name, text.size(size), Tag(record.kind, KINDS[record.kind])))
            if size is not None:
                kind = "" if record.kind == "measured" else f" ({record.kind})"
                named = f"{name}, {label}{kind}" if len(told) > 1 else f"{name}{kind}"
                bars.setdefault(name, []).append(charts.Bar(named, [(place, max(size, 0) / 1e6)], text.size(size)))
    if not rows:
        return []
    return [
        Figure(
            "Memory",
            "Of a process with one copy of the bundle. The resident set counts pages that other processes have, too; "
            "private dirty ones are what no other has and no file can give back.",
            partial(charts.bars, "Memory", [bar for found in bars.values() for bar in found]),
            Table(("", "what", "size", "kind"), rows),
        )
    ]
