"""Where, when and how it was measured, and what to know before believing it."""

from __future__ import annotations

from typing import Any

from toolkit.bench.record import ComparisonRecord, Record
from toolkit.reports import text
from toolkit.reports.blocks import Block, Folded, Table, Tag, Text
from toolkit.reports.data import Report
from toolkit.reports.sections.verdict import KINDS

TITLE = "How far to believe it"
WANTS = ("a record", "toolkit bench BUNDLE -o record.json")
Measured = Record | ComparisonRecord
_MEANING = {
    "measured": "run on the device that is named, timed by its clock",
    "emulated": "run on an emulation of the device: answers and counts are those of such a device, times are not",
    "estimated": "computed from what is known of the device; nothing was run on it",
}


def blocks(report: Report) -> list[Block]:
    """The honesty box: kinds and clocks, noise, warnings; below it everything that is known of devices and runs."""
    made: list[Block] = []
    labelled: list[tuple[Measured, str]] = list(zip(report.records, report.labels(), strict=True))
    labelled += [(each, " against ".join(bundle.name for bundle in each.bundles)) for each in report.comparisons]
    for record, label in labelled:
        made += [Text(f"{label}: {warning}", kind="warning") for warning in record.warnings]
        if record.failure:
            made.append(Text(f"{label} ended early ({record.failure.kind}): {record.failure.error}", kind="warning"))
    rows = [
        (
            label, Tag(record.kind, KINDS[record.kind]), record.clock, _noise(record), _stable(record),
            _protocol(record), text.moment(record.created), record.device.fingerprint,
        )
        for record, label in labelled
    ]  # fmt: skip
    if rows:
        made.append(
            Table(
                (
                    "",
                    "kind",
                    "clock",
                    "noise floor",
                    "stable before timing",
                    "protocol",
                    "when",
                    "device's fingerprint",
                ),
                rows,
                "The noise floor is how far the bundle differs from itself in the same run; differences below it "
                "cannot be seen. "
                + " ".join(f"{kind.capitalize()}: {_MEANING[kind]}." for kind in sorted({r.kind for r, _ in labelled})),
            )
        )
    for record, label in labelled:
        made.append(Folded(f"{label}: device, conditions, versions", _details(record)))
    for conversion in report.conversions:
        facts = [
            ("made on", conversion.made_on or text.NONE), ("score", conversion.score_how),
            ("latency", conversion.latency_how), ("content hash", conversion.content_hash),
            *sorted(conversion.versions.items()),
        ]  # fmt: skip
        made.append(Folded(f"{conversion.name}: how it was converted", [Table(("", ""), facts)]))
    return made


def _noise(record: Measured) -> str:
    return text.NONE if record.noise is None else f"{record.noise.floor_percent:g} % ({record.noise.rounds} rounds)"


def _stable(record: Measured) -> str:
    return text.NONE if record.protocol.stable is None else "yes" if record.protocol.stable else "no"


def _protocol(record: Measured) -> str:
    found = record.protocol
    parts = [found.name, f"{found.threads} threads" if found.threads not in (None, 1) else "1 thread"]
    parts += [f"at least {text.seconds(found.seconds)}"] if found.seconds is not None else []
    parts += [f"{found.examples} examples ({found.examples_from})"]
    parts += [f"sizes {text.plain(found.sizes)}"] if found.sizes else []
    parts += [f"cores {text.plain(found.cores)}"] if found.cores else []
    parts += [f"memory limited to {text.size(found.memory_limit_bytes)}"] if found.memory_limit_bytes else []
    return ", ".join(parts)


def _details(record: Measured) -> list[Block]:
    def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
        return [(text.words(str(name)), text.plain(value)) for name, value in found.items()]

    facts = {"address": record.device.address, **record.device.facts}
    made: list[Block] = [Table(("device", ""), rows(facts))]
    states = [(name, found) for name, found in record.conditions.items() if isinstance(found, dict)]
    if states:
        names = list(dict.fromkeys(key for _, found in states for key in found))
        cells = [(text.words(key), *(text.plain(found.get(key)) for _, found in states)) for key in names]
        made.append(Table(("conditions", *(text.words(name) for name, _ in states)), cells))
    if record.others:
        made.append(Table(("what else ran", ""), rows(record.others)))
    if isinstance(record, Record) and record.engine:
        made.append(Table(("engine", ""), rows(record.engine)))
    bundles = [record.bundle] if isinstance(record, Record) else record.bundles
    run = {
        **{f"content hash of {bundle.name}": bundle.content_hash for bundle in bundles},
        "task": bundles[0].task, "targets": list(dict.fromkeys(bundle.target for bundle in bundles)),
        "toolkit": record.toolkit, "seed": record.protocol.seed, "warm-up runs": record.protocol.warm_up_runs,
    }  # fmt: skip
    return [*made, Table(("run", ""), rows(run))]
