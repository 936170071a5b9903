"""Statistics of latencies: percentiles, and whether one build is faster than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

_RESAMPLES = 2000


def summarize(seconds: Sequence[float]) -> dict[str, float]:
    """Count, mean, p50, p90, p99, min and max of latencies, in milliseconds."""
    ms = np.asarray(seconds) * 1e3
    p50, p90, p99 = np.percentile(ms, [50, 90, 99])
    values = {
        "mean_ms": ms.mean(), "p50_ms": p50, "p90_ms": p90, "p99_ms": p99, "min_ms": ms.min(), "max_ms": ms.max(),
    }  # fmt: skip
    return {"count": len(ms), **{name: round(float(value), 4) for name, value in values.items()}}


@dataclass(frozen=True)
class Comparison:
    """How much of B's time A needs, with a 95 % interval: below 1, A is faster."""

    ratio: float
    low: float
    high: float
    verdict: Literal["faster", "slower", "undecided"]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(a: Sequence[float], b: Sequence[float], seed: int = 0) -> Comparison:
    """Ratio of mean times of A and B that ran the same examples, interleaved: a paired bootstrap over examples.

    `a[i]` and `b[i]` are seconds for example i. The verdict is about A: "faster" if the whole interval lies below
    1, "slower" if above.
    """
    first, second = np.asarray(a), np.asarray(b)
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(first), size=(_RESAMPLES, len(first)))
    ratios = first[chosen].sum(axis=1) / second[chosen].sum(axis=1)
    low, high = (float(value) for value in np.percentile(ratios, [2.5, 97.5]))
    verdict: Literal["faster", "slower", "undecided"] = "undecided"
    if high < 1:
        verdict = "faster"
    elif low > 1:
        verdict = "slower"
    return Comparison(float(first.sum() / second.sum()), low, high, verdict)
