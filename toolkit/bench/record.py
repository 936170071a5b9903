"""The record of a benchmark, one bundle on one device, and that of a comparison of bundles on one. Their JSON Schemas
are `docs/bench-record.schema.json` and `docs/comparison-record.schema.json`.

Every number says what it is: times are in milliseconds, sizes in bytes, energy in joules, and a value that was taken
from samples has a 95 % interval. What a device cannot tell is null, never 0.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Value(_Strict):
    """A statistic of samples and its 95 % interval, by a bootstrap over rounds and blocks of successive samples."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


class Distribution(_Strict):
    """Times of one part of a query in milliseconds."""

    count: int
    mean_ms: Value
    p50_ms: Value
    p90_ms: Value
    p99_ms: Value
    min_ms: float
    max_ms: float
    quantiles_ms: list[float] = Field(description="The 0th to the 100th percentile")


class Bundle(_Strict):
    """What was measured."""

    name: str
    content_hash: str
    task: str
    target: str
    engine: str
    precision: str
    artifact_bytes: int
    bundle_bytes: int
    score: float | None = Field(description="Of the conversion, on held-out examples, through the artifact")
    score_name: str | None


class Device(_Strict):
    """Where it was measured. `fingerprint` is a hash of what does not change from day to day."""

    address: str
    title: str
    fingerprint: str
    facts: dict[str, Any]


class Protocol(_Strict):
    """How it was measured."""

    name: Literal["quick", "mlperf", "sustain", "count", "arena", "answers"]
    seconds: float | None = None
    least_queries: int | None = None
    rounds: int | None = None
    threads: int | None
    cores: list[int] | None = None
    memory_limit_bytes: int | None = None
    sizes: dict[str, int] | None = None
    examples: int
    examples_from: str
    seed: int
    warm_up_runs: list[int] | None = None
    stable: bool | None = Field(None, description="Whether times were stable before they were taken")


class Noise(_Strict):
    """The bundle against itself in the same run: half of the rounds against the other half. A difference below
    `floor_percent` cannot be seen under these conditions."""

    floor_percent: float
    ratio: float
    low: float
    high: float
    rounds: int


class ColdStart(_Strict):
    """From the start of a process to its first answer; medians of `starts` processes. `resident` is the share of the
    bundle's and the engine's files that was in memory beforehand: 0 as after a boot. None: the cache was not dropped,
    and the files may have been in it."""

    process_ms: float
    load_ms: float
    first_inference_ms: float
    starts: int
    resident: float | None


class Memory(_Strict):
    """Of a process that holds one copy of the bundle. `model_delta_bytes` is what its private memory (private dirty)
    grew by from before the engine was imported to after the first inference: the engine's own is in it."""

    before_load: dict[str, int | None]
    after_load: dict[str, int | None]
    after_first_inference: dict[str, int | None]
    running: dict[str, int | None]
    peak_rss_bytes: int | None
    model_delta_bytes: int | None
    gpu_bytes: int | None


class Energy(_Strict):
    """What one meter showed while queries ran, less what it shows when nothing runs."""

    meter: str
    covers: str
    joules_per_inference: float
    watts: float
    idle_watts: float


class Operator(_Strict):
    """One operator of the graph as the runtime ran it, and the module of the model that it came from."""

    name: str
    kind: str
    ms: float = Field(description="In one inference")
    share: float
    where: str | None
    module: str | None


class SweepPoint(_Strict):
    """One point of a sweep; inputs are encoded beforehand."""

    threads: int
    batch: int
    length: int | None
    inference: Distribution
    examples_per_s: float


class Window(_Strict):
    """A window of a sustained run."""

    at_s: float
    count: int
    p50_ms: float
    p99_ms: float
    watts: dict[str, float]
    conditions: dict[str, Any]


class Sustained(_Strict):
    """Latency under a load that does not end. `slowdown` is the median of the last fifth over that of the first
    minute; `throttled_after_s` is when the latency first stayed 5 % above the first minute's to the end."""

    seconds: float
    first_minute_ms: float
    steady_ms: float
    slowdown: float
    throttled_after_s: float | None
    windows: list[Window]


class Failure(_Strict):
    """Why a run ended before its end: the parts of the record that it had reached are there."""

    kind: Literal["error", "memory", "timeout", "crash", "connection"]
    error: str
    exit_code: int


class Record(_Strict):
    """One bundle on one device."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["measured", "emulated", "estimated"]
    clock: str
    created: str = Field(description="ISO 8601, UTC")
    toolkit: str = Field(description="Version of this toolkit")
    bundle: Bundle
    device: Device
    protocol: Protocol
    engine: dict[str, Any] | None = None
    latency: Distribution | None = Field(None, description="From the raw example to the prediction")
    parts: dict[str, Distribution] = Field({}, description="preprocessing, inference, postprocessing")
    round_p50_ms: list[float] = Field([], description="The median of each round, for later comparisons")
    throughput_per_s: float | None = Field(None, description="One query after the other")
    noise: Noise | None = None
    cold_start: ColdStart | None = None
    warm_start: ColdStart | None = None
    memory: Memory | None = None
    energy: list[Energy] | None = Field(None, description="null: no meter on this device can be read")
    operators: list[Operator] | None = None
    operators_from: str | None = None
    sweep: list[SweepPoint] | None = None
    sustained: Sustained | None = None
    instructions: dict[str, float] | None = Field(None, description="Of one inference, by class; emulated CPUs")
    arena: dict[str, Any] | None = Field(None, description="Memory of a microcontroller's interpreter, in bytes")
    cycles: dict[str, Any] | None = Field(None, description="Estimate of a compiler for an NPU")
    answers: dict[str, Any] | None = Field(None, description="How the device's answers compare with the bundle's own")
    told: dict[str, Any] | None = Field(None, description="What a user's own program for benchmarks says, and no more")
    conditions: dict[str, Any] = {}
    others: dict[str, Any] = {}
    warnings: list[str] = []
    failure: Failure | None = None


class Ratio(_Strict):
    """How much of the first bundle's time another takes, with a 95 % interval: below 1, it is faster."""

    bundle: str
    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "undecided"]
    how: Literal["in turn", "stored"] = Field(
        "in turn", description="in turn: both in this run, query by query; stored: against a record of another run"
    )


class ComparisonRecord(_Strict):
    """Bundles against the first of them, on one device."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["measured", "emulated"]
    clock: str
    created: str
    toolkit: str
    bundles: list[Bundle]
    device: Device
    protocol: Protocol
    latency: list[Distribution] = Field([], description="Of each bundle; per example the median of the rounds")
    ratios: list[Ratio] = []
    noise: Noise | None = Field(None, description="The first bundle against itself, as one more in turn")
    conditions: dict[str, Any] = {}
    others: dict[str, Any] = {}
    warnings: list[str] = []
    failure: Failure | None = None


SCHEMAS: dict[str, type[BaseModel]] = {"bench": Record, "comparison": ComparisonRecord}


if __name__ == "__main__":
    import json
    import sys

    print(json.dumps(SCHEMAS[sys.argv[1]].model_json_schema(), indent=2, ensure_ascii=False))
