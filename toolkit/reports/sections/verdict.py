"""Is it good enough: every bundle on every device, against the budgets."""

from __future__ import annotations

from dataclasses import dataclass

from toolkit.bench.record import Record
from toolkit.gates import score as score_gate
from toolkit.reports import text
from toolkit.reports.blocks import Block, Card, Cards, Fact, Folded, Table, Tag, Text, Tone
from toolkit.reports.data import Budgets, Conversion, Point, Report

TITLE = "Is it good enough?"
WANTS = ("a record or a bundle", "toolkit bench BUNDLE -o record.json")

KINDS: dict[str, Tone] = {"measured": "plain", "emulated": "unknown", "estimated": "unknown"}
_COUNTED = ("count", "arena")  # protocols that tell no time


@dataclass(frozen=True)
class Check:
    """One budget: met or not; None if that is not known."""

    what: str
    limit: str
    found: str
    met: bool | None
    given_by: str

    @property
    def tag(self) -> Tag:
        if self.met is None:
            return Tag("? not known", "unknown")
        return Tag("✓ kept", "good") if self.met else Tag("✗ missed", "bad")

    @property
    def line(self) -> Tag:
        """The check in a line of a card."""
        sign, tone = self.tag.text[0], self.tag.tone
        return Tag(f"{sign} {self.what}: {self.found.partition(',')[0]}, {self.limit}", tone)


def of_record(record: Record, conversion: Conversion | None, budgets: Budgets) -> list[Check]:
    """A record against the budgets. A latency is the mean, as in a conversion, and undecided where the limit lies
    inside its interval."""
    checks = []
    if budgets.max_latency_ms is not None:
        met, found = None, text.NONE
        if record.latency is not None and record.protocol.name not in _COUNTED:
            mean, limit = record.latency.mean_ms, budgets.max_latency_ms
            met = True if mean.high <= limit else False if mean.low > limit else None
            over = sum(each > limit for each in record.latency.quantiles_ms)
            found = f"{text.interval(mean)} ms, about {over} % of the queries above it"
            if record.kind != "measured":
                met, found = None, f"{found} ({record.kind}, {record.clock})"
        elif record.sustained is not None:
            steady = record.sustained.steady_ms
            met, found = steady <= budgets.max_latency_ms, f"{text.milliseconds(steady)} p50 in steady state"
        checks.append(_check(budgets, "max_latency_ms", "latency", "ms", found, met))
    if budgets.max_size_mb is not None:
        size = record.bundle.artifact_bytes
        checks.append(_check(budgets, "max_size_mb", "size", "MB", text.size(size), size <= budgets.max_size_mb * 1e6))
    if budgets.max_memory_mb is not None:
        peak = record.memory.peak_rss_bytes if record.memory else None
        met = None if peak is None else peak <= budgets.max_memory_mb * 1e6
        checks.append(_check(budgets, "max_memory_mb", "memory", "MB", text.size(peak), met))
    before = conversion.float_score if conversion else None
    return [*checks, *_score(budgets, record.bundle.score, before)]


def of_conversion(conversion: Conversion, budgets: Budgets) -> list[Check]:
    """What a conversion knew itself, of a bundle that has no record."""
    point = conversion.result
    if point is None:
        return []
    checks = []
    if budgets.max_latency_ms is not None:
        met, limit = None, budgets.max_latency_ms
        if point.latency_ms is not None and point.latency_basis == "measured":
            met = point.latency_ms <= limit
        elif point.latency_low_ms is not None and point.latency_high_ms is not None:
            met = True if point.latency_high_ms <= limit else False if point.latency_low_ms > limit else None
        checks.append(_check(budgets, "max_latency_ms", "latency", "ms", latency_of(point), met))
    if budgets.max_size_mb is not None:
        met = None if point.size_bytes is None else point.size_bytes <= budgets.max_size_mb * 1e6
        checks.append(_check(budgets, "max_size_mb", "size", "MB", text.size(point.size_bytes), met))
    if budgets.max_memory_mb is not None:
        checks.append(_check(budgets, "max_memory_mb", "memory", "MB", text.NONE, None))
    return [*checks, *_score(budgets, point.score, conversion.float_score)]


def _score(budgets: Budgets, score: float | None, before: float | None) -> list[Check]:
    if budgets.min_score is None:
        return []
    value, relative = score_gate.parse(budgets.min_score)
    floor = None if relative and before is None else value * (before or 0) if relative else value
    met = None if score is None or floor is None else score >= floor
    limit = budgets.min_score if floor is None or not relative else f"{budgets.min_score} = {text.score(floor)}"
    return [Check("score", f"at least {limit}", text.score(score), met, budgets.given_by.get("min_score", ""))]


def _check(budgets: Budgets, name: str, what: str, unit: str, found: str, met: bool | None) -> Check:
    limit = f"at most {getattr(budgets, name):g} {unit}"
    return Check(what, limit, found, met, budgets.given_by.get(name, ""))


def latency_of(point: Point) -> str:
    """A conversion's latency with its kind."""
    if point.latency_ms is None:
        return text.NONE
    if point.latency_basis == "measured":
        return text.milliseconds(point.latency_ms)
    if point.latency_low_ms is None or point.latency_high_ms is None:
        return f"estimate {text.milliseconds(point.latency_ms)}"
    return f"estimate {text.number(point.latency_low_ms, 2)} to {text.number(point.latency_high_ms, 2)} ms"


def whole(checks: list[Check], failed: bool, accepted: bool) -> Tag:
    """All budgets together."""
    if failed:
        return Tag("✗ the run failed", "bad")
    if not accepted:
        return Tag("✗ refused by the conversion's gates", "bad")
    if any(check.met is False for check in checks):
        return Tag(f"✗ misses {', '.join(check.what for check in checks if check.met is False)}", "bad")
    if not checks:
        return Tag("? no budget was given", "unknown")
    unknown = [check.what for check in checks if check.met is None]
    if unknown:
        return Tag(f"? not known: {', '.join(unknown)}", "unknown")
    return Tag("✓ keeps every budget" if len(checks) > 1 else f"✓ keeps the budget of {checks[0].what}", "good")


def _record_card(record: Record, label: str, checks: list[Check], accepted: bool) -> Card:
    facts = []
    if record.latency is not None:
        p50, p99 = record.latency.p50_ms, record.latency.p99_ms
        clock = "" if record.kind == "measured" else f", {record.clock}"
        detail = f"{text.number(p50.low)} to {text.number(p50.high)}; p99 {text.milliseconds(p99.value)}{clock}"
        facts.append(Fact("latency, p50", text.milliseconds(p50.value), detail))
    if record.told is not None and "mean_ms" in record.told:
        said = "as a program of the device's says, of inputs of its own"
        facts.append(Fact("latency, mean", text.milliseconds(record.told["mean_ms"]), said))
    if record.sustained is not None:
        first = f"{text.milliseconds(record.sustained.first_minute_ms)} in the first minute"
        facts.append(Fact("p50, steady state", text.milliseconds(record.sustained.steady_ms), first))
    if record.instructions is not None:
        total = record.instructions.get("total") or record.instructions.get("instructions")
        counted = total if total is not None else sum(record.instructions.values())
        facts.append(Fact("instructions", f"{counted / 1e6:,.3g} M", "of one inference: a count, no time"))
    if record.bundle.score is not None:
        facts.append(Fact(record.bundle.score_name or "score", text.score(record.bundle.score), "in the conversion"))
    facts.append(Fact("size", text.size(record.bundle.artifact_bytes), "the artifact's file"))
    if record.memory is not None and record.memory.peak_rss_bytes is not None:
        delta = record.memory.model_delta_bytes
        detail = "of the process" + (f"; engine and model add {text.size(delta)}" if delta is not None else "")
        facts.append(Fact("peak memory", text.size(record.memory.peak_rss_bytes), detail))
    tags = [Tag(record.kind, KINDS[record.kind])]
    tags += [Tag("incomplete", "bad")] if record.failure else []
    tags += [Tag(f"{len(record.warnings)} warnings" if len(record.warnings) > 1 else "1 warning", "unknown")
             ] if record.warnings else []  # fmt: skip
    built = f"{record.bundle.engine} {record.bundle.precision}"
    elsewhere = [each for each in (record.bundle.name, record.device.title) if each not in label]
    verdict = whole(checks, record.failure is not None, accepted)
    return Card(label, " · ".join([*elsewhere, built]), tags, facts, verdict, [check.line for check in checks])


def _conversion_card(conversion: Conversion, checks: list[Check]) -> Card:
    point = conversion.result
    facts = []
    if point is not None:
        how = "as the conversion measured it" if point.latency_basis == "measured" else "nothing was run on the device"
        facts.append(Fact("latency, mean", latency_of(point), how if point.latency_ms is not None else ""))
        facts.append(Fact(conversion.score_name, text.score(point.score), _of_float(point.score, conversion)))
        facts.append(Fact("size", text.size(point.size_bytes), "the artifact's file"))
    basis = "measured" if point is not None and point.latency_basis == "measured" else "estimated"
    tags = [Tag(basis, KINDS[basis])] if point is not None and point.latency_ms is not None else []
    subtitle = f"for {conversion.target} · {conversion.engine} {conversion.precision} · not benchmarked"
    verdict = whole(checks, False, conversion.accepted)
    return Card(conversion.name, subtitle, tags, facts, verdict, [check.line for check in checks])


def _of_float(score: float | None, conversion: Conversion) -> str:
    if score is None or conversion.float_score is None:
        return ""
    return f"the float checkpoint: {text.score(conversion.float_score)}"


def cards(report: Report) -> list[Card]:
    """A card for every record, and for every bundle that has none."""
    return [card for card, _ in _judged(report)]


def _judged(report: Report) -> list[tuple[Card, list[Check]]]:
    made = []
    for record, label in zip(report.records, report.labels(), strict=True):
        conversion = report.conversion_of(record)
        checks = of_record(record, conversion, report.budgets_of(conversion))
        made.append((_record_card(record, label, checks, conversion is None or conversion.accepted), checks))
    benched = {record.bundle.content_hash for record in report.records}
    for conversion in report.conversions:
        if conversion.content_hash not in benched:
            checks = of_conversion(conversion, report.budgets_of(conversion))
            made.append((_conversion_card(conversion, checks), checks))
    return made


def blocks(report: Report) -> list[Block]:
    """A card for each, then every budget with what was found."""
    judged = _judged(report)
    if not judged:
        return []
    refused = [f"{each.name} was refused: {why}" for each in report.conversions for why in each.refusals]
    failed = [
        f"{label}: {record.failure.error}"
        for record, label in zip(report.records, report.labels(), strict=True)
        if record.failure
    ]
    made: list[Block] = [Text(said, kind="warning") for said in (*failed, *refused)]
    made.append(Cards([card for card, _ in judged]))
    rows = [(card.title, c.what, c.limit, c.found, c.tag, c.given_by) for card, checks in judged for c in checks]
    if rows:
        table = Table(("what", "budget", "limit", "found", "verdict", "asked for by"), rows)
        return [*made, Folded("Every budget, what was found, and who asked for it", [table])]
    ask = "No budget was given; say what is good enough, and the report tells whether it is."
    return [*made, Text(ask, "toolkit report … --max-latency 20ms --max-size 25MB")]
