"""How long a query takes, and what of it is the model."""

from __future__ import annotations

from functools import partial

from toolkit.reports import charts, text
from toolkit.reports.blocks import Block, Figure, Table, Tag
from toolkit.reports.data import Report
from toolkit.reports.sections.verdict import KINDS

TITLE = "Latency"
WANTS = ("a record with timed queries", "toolkit bench BUNDLE -o record.json")


def blocks(report: Report) -> list[Block]:
    """Percentiles with their intervals, the whole distribution, and the parts of a query."""
    timed = [(record, label) for record, label in zip(report.records, report.labels(), strict=True) if record.latency]
    if not timed:
        return []
    rows = [
        (
            label, Tag(record.kind, KINDS[record.kind]), record.clock, found.count, text.interval(found.mean_ms),
            text.interval(found.p50_ms), text.interval(found.p90_ms), text.interval(found.p99_ms),
            text.number(found.max_ms),
            text.NONE if record.throughput_per_s is None else text.number(record.throughput_per_s),
        )
        for record, label in timed
        for found in [record.latency]
        if found is not None
    ]  # fmt: skip
    head = ("", "kind", "clock", "queries", "mean", "p50", "p90", "p99", "max", "per second")
    table = Table(head, rows, "Milliseconds from the raw example to the prediction, with 95 % intervals.")
    drawn = [
        (label if record.kind == "measured" else f"{label} ({record.kind})", record.latency.quantiles_ms)
        for record, label in timed
        if record.latency and len(record.latency.quantiles_ms) == 101 and record.latency.quantiles_ms[0] > 0
    ]
    made: list[Block] = []
    if drawn:
        budgets = {report.budgets_of(report.conversion_of(record)).max_latency_ms for record, _ in timed}
        most = budgets.pop() if len(budgets) == 1 else None
        made.append(
            Figure(
                "Distribution of the latency",
                "The share of the queries that took no longer than a time. Marks: p50, p90 and p99.",
                partial(charts.distributions, "Distribution of the latency", drawn, most=most),
                table,
            )
        )
    else:
        made.append(table)
    return [*made, *_parts(report)]


_PARTS = ("preprocessing", "inference", "postprocessing")


def _parts(report: Report) -> list[Block]:
    rows, bars = [], []
    for record, label in zip(report.records, report.labels(), strict=True):
        if not record.parts:
            continue
        found = {name: record.parts[name] for name in _PARTS if name in record.parts}
        rows.append((label, *(text.interval(found[n].mean_ms) if n in found else text.NONE for n in _PARTS)))
        parts = [(_PARTS.index(name), each.mean_ms.value) for name, each in found.items()]
        whole = sum(length for _, length in parts)
        share = sum(length for place, length in parts if place == 1) / whole if whole else 0.0
        bars.append(charts.Bar(label, parts, f"{text.number(whole)} ms, {100 * share:.0f} % the model"))
    if not bars:
        return []
    return [
        Figure(
            "Parts of a query",
            "Means: reading and encoding the example, the model in its engine, turning its outputs into a prediction.",
            partial(charts.bars, "Parts of a query", bars, legend=_PARTS),
            Table(("", *(f"{name}, ms" for name in _PARTS)), rows),
        )
    ]
