"""The data of a report: what was measured, what the conversions say of themselves, and the budgets that were asked for.

`toolkit report -o report.json` writes it, and reads it again as one of its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from toolkit.bench.record import ComparisonRecord, Record

SCHEMA_VERSION = 1
Basis = Literal["measured", "estimate"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Budgets(_Strict):
    """Limits on a model; `given_by` says where each that is there comes from. `min_score` is a share of the float
    checkpoint's ("99%") or absolute ("0.83")."""

    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_memory_mb: float | None = None
    min_score: str | None = None
    given_by: dict[str, str] = {}

    def over(self, other: Budgets) -> Budgets:
        """These, and of what is not given here the other's."""
        given = self.model_dump(exclude_none=True, exclude={"given_by"})
        merged = {**other.model_dump(exclude={"given_by"}), **given}
        return Budgets(**merged, given_by={**other.given_by, **{name: self.given_by.get(name, "") for name in given}})


class Point(_Strict):
    """Something that a conversion made and judged: a candidate, or what a stage left behind."""

    name: str
    stage: str | None = None
    kept: bool = True
    outcome: str = ""
    score: float | None = None
    score_examples: int | None = None
    size_bytes: int | None = None
    latency_ms: float | None = None
    latency_low_ms: float | None = None
    latency_high_ms: float | None = None
    latency_basis: Basis | None = None
    before_ms: float | None = Field(None, description="Latency before the stage, timed in turn with `latency_ms`")


class Pair(_Strict):
    """A needs this much of B's time, with a 95 % interval."""

    a: str
    b: str
    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "undecided"]
    where: str
    source: str
    kind: Literal["measured", "emulated", "estimated"]


class Stage(_Strict):
    """One receipt, in short."""

    title: str
    stage: str
    seconds: float | None
    peak_rss_bytes: int | None
    cached: bool
    reason: str


class Layer(_Strict):
    """One layer of a table of sensitivity."""

    layer: str
    score: float
    score_change: float
    divergence: float
    bytes_saved: int


class Sensitivity(_Strict):
    """What each layer costs when it alone is quantized."""

    name: str
    method: str
    examples: int
    float_score: float
    layers: list[Layer]
    keep: list[str] = []
    floor: float | None = None
    score: float | None = None


class Conversion(_Strict):
    """What a bundle says of how it was made."""

    name: str
    content_hash: str
    task: str
    target: str
    engine: str
    precision: str
    accepted: bool
    refusals: list[str]
    chosen: str | None
    score_name: str
    score_how: str
    latency_how: str
    made_on: str | None
    data: str | None = Field(description="Hash of the prepared data: scores are compared on the same only")
    float_score: float | None
    behaviour: str | None
    validation: str | None
    budgets: Budgets
    chain: list[Point] = Field(description="From the float checkpoint to the bundle, in order")
    candidates: list[Point]
    tried: list[Point] = Field(description="Shapes that the compression looked at")
    pairs: list[Pair]
    stages: list[Stage]
    versions: dict[str, str]

    @property
    def result(self) -> Point | None:
        """The candidate that is in the bundle."""
        return next((point for point in self.candidates if point.name == self.chosen), None)


class Run(_Strict):
    """One record of a history."""

    when: str
    commit: str | None
    subject: str | None
    value: float
    low: float
    high: float
    floor_percent: float | None = Field(description="Noise of the run; a change below it is none")
    toolkit: str


class Change(_Strict):
    """From this run on the times are others: its interval and those of the runs before it, widened by their noise,
    do not meet."""

    place: int
    ratio: float
    confirmed: bool = Field(description="The run after it says the same; the last run has none")


class Series(_Strict):
    """The same measurement of the same bundle's name on the same device, run after run."""

    name: str
    device: str
    fingerprint: str
    how: str
    kind: Literal["measured", "emulated", "estimated"]
    what: str
    unit: str
    runs: list[Run]
    changes: list[Change]


class Report(_Strict):
    """Everything that a report shows."""

    schema_version: int = SCHEMA_VERSION
    toolkit: str
    asked: Budgets = Budgets()
    records: list[Record] = []
    conversions: list[Conversion] = []
    sensitivities: list[Sensitivity] = []
    comparisons: list[ComparisonRecord] = []
    pairs: list[Pair] = []
    history: list[Series] = []
    left_out: list[str] = Field([], description="Files of a history that hold no record of this version")

    def conversion_of(self, record: Record) -> Conversion | None:
        """The conversion that made the bundle of a record."""
        wanted = record.bundle.content_hash
        return next((each for each in self.conversions if each.content_hash == wanted), None)

    def all_pairs(self) -> list[Pair]:
        """Ratios of comparisons, of stored records, and none of the conversions."""
        found = [
            Pair(
                a=ratio.bundle, b=each.bundles[0].name, where=each.device.title, kind=each.kind,
                source=f"compared {ratio.how}, {each.created[:10]}",
                **ratio.model_dump(include={"ratio", "low", "high", "verdict"}),
            )
            for each in self.comparisons
            for ratio in each.ratios
        ]  # fmt: skip
        return [*found, *self.pairs]

    def budgets_of(self, conversion: Conversion | None) -> Budgets:
        """What was asked for here, and else in the conversion."""
        return self.asked.over(conversion.budgets) if conversion else self.asked

    def labels(self) -> list[str]:
        """A short name for each record that no other has: the bundle, the device, whatever tells it from the rest."""
        bundles = {record.bundle.name for record in self.records}
        devices = {record.device.title for record in self.records}
        parts = []
        for record in self.records:
            named = [record.bundle.name] if len(bundles) > 1 or len(devices) == 1 else []
            named += [record.device.title] if len(devices) > 1 else []
            parts.append(named)
        for detail in (
            lambda record: f"{record.bundle.engine} {record.bundle.precision}",
            lambda record: record.kind,
            lambda record: record.device.address,
            lambda record: record.protocol.name,
            lambda record: f"{record.protocol.threads} threads" if record.protocol.threads != 1 else "1 thread",
            lambda record: record.created,
        ):
            parts = _told_apart(parts, [detail(record) for record in self.records])
        parts = _told_apart(parts, [f"run {number}" for number in range(1, len(parts) + 1)])
        return [", ".join(named) for named in parts]


def _told_apart(parts: Sequence[list[str]], details: Sequence[str]) -> list[list[str]]:
    """Names with a detail added where several are alike and it differs among them."""
    alike: dict[tuple[str, ...], set[str]] = {}
    for named, detail in zip(parts, details, strict=True):
        alike.setdefault(tuple(named), set()).add(detail)
    return [
        [*named, detail] if len(alike[tuple(named)]) > 1 else named
        for named, detail in zip(parts, details, strict=True)
    ]
