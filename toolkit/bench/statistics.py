"""Statistics of latencies: percentiles, and whether one build is faster than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

_RESAMPLES = 2000
# 97.5 % quantiles of Student's distribution by degrees of freedom, from 1.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


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


def compare(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], seed: int = 0) -> Comparison:
    """Ratio of the mean times of A and B that ran the same examples in the same rounds of `measure.interleave`.

    `a[r][i]` and `b[r][i]` are seconds for example i in round r. The interval, on the logarithm of the ratio, covers
    both things that another measurement would draw anew: the loads (Student's t over pairs of rounds, the two of a pair
    having loaded in opposite orders) and the examples (a paired bootstrap over their medians). The verdict is about A:
    "faster" if the whole interval lies below 1, "slower" if above. Raises ValueError unless there are four rounds or a
    greater even number.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 2 or first.shape != second.shape or len(first) < 4 or len(first) % 2:
        raise ValueError(f"an even number of rounds from 4 is needed, with the same examples: {first.shape}")
    rounds = np.log(first.sum(axis=1) / second.sum(axis=1))
    pairs = rounds.reshape(-1, 2).mean(axis=1)
    over_loads = _STUDENT[min(len(pairs) - 1, len(_STUDENT)) - 1] * pairs.std(ddof=1) / np.sqrt(len(pairs))

    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, first.shape[1], size=(_RESAMPLES, first.shape[1]))
    medians = np.median(first, axis=0), np.median(second, axis=0)
    resampled = np.log(medians[0][chosen].sum(axis=1) / medians[1][chosen].sum(axis=1))
    low, high = np.percentile(resampled, [2.5, 97.5])
    half = float(np.hypot(over_loads, (high - low) / 2))

    center = float(pairs.mean())
    verdict: Literal["faster", "slower", "undecided"] = "undecided"
    if half < abs(center):
        verdict = "faster" if center < 0 else "slower"
    return Comparison(float(np.exp(center)), float(np.exp(center - half)), float(np.exp(center + half)), verdict)
