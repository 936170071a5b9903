"""Joules of an inference, where a meter can be read."""

from __future__ import annotations

from toolkit.reports import text
from toolkit.reports.blocks import Block, Table, Text
from toolkit.reports.data import Report

TITLE = "Energy"
WANTS = ("a device whose meter can be read: RAPL, INA3221, NVML or a battery", "toolkit bench BUNDLE -o record.json")


def blocks(report: Report) -> list[Block]:
    """One row per meter."""
    rows = [
        (
            label, each.meter, each.covers, text.number(1e3 * each.joules_per_inference), text.number(each.watts),
            text.number(each.idle_watts),
        )
        for record, label in zip(report.records, report.labels(), strict=True)
        for each in record.energy or ()
    ]  # fmt: skip
    if not rows:
        return []
    head = ("", "meter", "what it covers", "mJ per inference, idle subtracted", "watts", "watts when idle")
    without = [label for record, label in zip(report.records, report.labels(), strict=True) if not record.energy]
    said = [Text(f"Not available: {', '.join(without)}.", kind="small")] if without else []
    return [Table(head, rows), *said]
