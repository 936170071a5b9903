"""What is to be measured, and the steps of a benchmark that measure it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.bench import runner
from toolkit.devices import Settings
from toolkit.runtime.manifest import Manifest

MLPERF_SECONDS, MLPERF_QUERIES = 60.0, 1024  # the least of a single-stream run by MLPerf's rules
_MINIMUM_QUERIES = 50
_PROFILE_RUNS = 10


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, and for how long. `precision_percent` is the noise floor above which a run is refused;
    None: a high one is only warned of."""

    seconds: float = 5.0
    protocol: str = "quick"
    threads: int | None = None
    data: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[int]] = field(default_factory=dict)  # threads, batch, length
    sustain_seconds: float | None = None
    operators: bool = False
    precision_percent: float | None = None
    starts: int = 3  # of either kind
    rounds: int = 8
    seed: int = 0


def allowed_seconds(settings: Settings, seconds: float) -> float | None:
    """How long a step may take that measures for so many seconds, if the user says nothing; None: as long as others."""
    longer = 2 * seconds + runner.DEFAULT_TIMEOUT_SECONDS / 2
    return settings.timeout_seconds or (longer if longer > runner.DEFAULT_TIMEOUT_SECONDS else None)


def planned(
    manifest: Manifest, place: str, examples: list[Any], wanted: Wanted, settings: Settings
) -> list[dict[str, Any]]:
    """All steps of a benchmark, for a bundle that lies at `place` on the device; not every device can do all."""
    shared: dict[str, Any] = {
        "bundle": place,
        "examples": examples,
        "threads": wanted.threads,
        "sizes": dict(wanted.sizes) or None,
        "seed": wanted.seed,
        "timeout_seconds": settings.timeout_seconds,
    }
    if wanted.sustain_seconds is not None:
        timeout = allowed_seconds(settings, wanted.sustain_seconds)
        return [{**shared, "what": "sustain", "seconds": wanted.sustain_seconds, "timeout_seconds": timeout}]
    steps = [{**shared, "what": "start", "cold": cold} for cold in (True, False) for _ in range(wanted.starts)]
    timed: dict[str, Any] = {"what": "times", "rounds": wanted.rounds, "seconds": wanted.seconds}
    if wanted.protocol == "mlperf":  # one load; the noise is measured beside it
        steps.append({**shared, **timed, "seconds": 5.0, "queries": 0, "noise": True})
        timed |= {"rounds": 1, "seconds": max(wanted.seconds, MLPERF_SECONDS), "queries": MLPERF_QUERIES}
    timeout = allowed_seconds(settings, float(timed["seconds"]))
    steps.append({**shared, "queries": _MINIMUM_QUERIES, **timed, "timeout_seconds": timeout})
    threads = manifest.threads if wanted.threads is None else wanted.threads
    for sizes, count in _points(wanted, threads):
        point = {"rounds": 4, "seconds": min(wanted.seconds, 2.0), "queries": 20, "sizes": sizes, "threads": count}
        steps.append({**shared, "what": "times", **point, "point": True})
    if wanted.operators:
        steps.append({**shared, "what": "operators", "runs": _PROFILE_RUNS})
    steps += [{**shared, "what": name} for name in ("count", "arena", "cycles", "answers")]
    return steps


def _points(wanted: Wanted, threads: int) -> Iterator[tuple[dict[str, int], int]]:
    """The points of a sweep: sizes and threads; one of them is varied at a time."""
    for count in wanted.sweep.get("threads", ()):
        yield {**wanted.sizes} or {"batch": 1}, count
    for name in ("batch", "length"):
        for size in wanted.sweep.get(name, ()):
            yield {**wanted.sizes, name: size}, threads
