"""Statistics of latencies: percentiles, and whether one build is faster than another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_DISTRIBUTION_RESAMPLES = 300
_BLOCKS = 20  # of a round
_LONGEST = 1.25  # of an example's usual time, that a run of it counts
_MOST_OF_A_ROUND = 4000  # samples that are resampled
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


def distribution(rounds: Sequence[Sequence[float]], seed: int = 0) -> dict[str, Any]:
    """Count, mean, percentiles with their 95 % intervals, and quantiles of latencies in milliseconds.

    `rounds[r]` are the seconds of successive queries. Successive queries are alike and rounds differ, so the bootstrap
    draws rounds, and of each of them blocks of successive queries.
    """
    ms = [np.asarray(each, dtype=np.float64) * 1e3 for each in rounds if len(each)]
    pooled = np.concatenate(ms)
    resampled = np.asarray([_statistics(each) for each in _resampled(ms, seed)])
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    found: dict[str, Any] = {"count": len(pooled)}
    for place, (name, value) in enumerate(zip(_NAMES, _statistics(pooled), strict=True)):
        # The interval of a percentile's bootstrap need not hold the percentile itself, which a reader would not see.
        ends = min(low[place], value), max(high[place], value)
        found[name] = {"value": _rounded(value), "low": _rounded(ends[0]), "high": _rounded(ends[1])}
    found |= {"min_ms": _rounded(pooled.min()), "max_ms": _rounded(pooled.max())}
    found["quantiles_ms"] = [_rounded(value) for value in np.percentile(pooled, np.arange(101))]
    return found


_NAMES = ("mean_ms", "p50_ms", "p90_ms", "p99_ms")


def _statistics(ms: NDArray[np.float64]) -> list[float]:
    return [float(ms.mean()), *(float(value) for value in np.percentile(ms, [50, 90, 99]))]


def _rounded(value: float) -> float:
    return round(float(value), 5)


def _resampled(rounds: Sequence[NDArray[np.float64]], seed: int) -> Iterator[NDArray[np.float64]]:
    """As many samples as there are, drawn by rounds and blocks; of very many, a part that is as good."""
    generator = np.random.default_rng(seed)
    blocks = [np.array_split(each, min(_BLOCKS, len(each))) for each in (part[:_MOST_OF_A_ROUND] for part in rounds)]
    for _ in range(_DISTRIBUTION_RESAMPLES):
        drawn = []
        for number in generator.integers(len(blocks), size=len(blocks)):
            chosen = generator.integers(len(blocks[number]), size=len(blocks[number]))
            drawn += [blocks[number][place] for place in chosen]
        yield np.concatenate(drawn)


def halves(rounds: Sequence[Sequence[float]]) -> Comparison:
    """A bundle against itself: the rounds 1, 4, 5, 8, … against the rounds 2, 3, 6, 7, …, by their medians.

    Student's t over pairs of rounds, of which every second one is turned around, so that a machine that gets steadily
    slower favours neither. Raises ValueError unless there are four rounds or a greater even number."""
    if len(rounds) < 4 or len(rounds) % 2:
        raise ValueError(f"an even number of rounds from 4 is needed: {len(rounds)}")
    medians = np.log([float(np.median(each)) for each in rounds])
    pairs = medians[0::2] - medians[1::2]
    pairs[1::2] *= -1
    return _interval(float(pairs.mean()), _student(pairs))


def independent(a: Sequence[float], b: Sequence[float]) -> Comparison:
    """How much of B's time A needs, by the medians of rounds that were measured at different times.

    Welch's t on their logarithms. What differs between two days is not in the interval: it only says what the rounds
    say. Raises ValueError for fewer than two rounds of each.
    """
    if min(len(a), len(b)) < 2:
        raise ValueError(f"two rounds of each are needed: {len(a)}, {len(b)}")
    first, second = np.log(np.asarray(a)), np.log(np.asarray(b))
    parts = [each.var(ddof=1) / len(each) for each in (first, second)]
    variance = float(sum(parts))
    center = float(first.mean() - second.mean())
    if variance == 0:
        return _interval(center, 0.0)
    freedom = variance**2 / sum(part**2 / (len(each) - 1) for part, each in zip(parts, (first, second), strict=True))
    quantile = _STUDENT[max(1, min(int(freedom), len(_STUDENT))) - 1]
    return _interval(center, quantile * float(np.sqrt(variance)))


def _student(pairs: NDArray[np.float64]) -> float:
    """Half of the 95 % interval of the mean of `pairs`."""
    return float(_STUDENT[min(len(pairs) - 1, len(_STUDENT)) - 1] * pairs.std(ddof=1) / np.sqrt(len(pairs)))


def _interval(center: float, half: float) -> Comparison:
    verdict: Literal["faster", "slower", "undecided"] = "undecided"
    if half < abs(center):
        verdict = "faster" if center < 0 else "slower"
    return Comparison(float(np.exp(center)), float(np.exp(center - half)), float(np.exp(center + half)), verdict)


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
    "faster" if the whole interval lies below 1, "slower" if above.

    A run that other work broke into counts as a quarter longer than the example's usual, the median over the rounds,
    and no more: one such run can be longer than all others of its round together (winsorizing, as for any mean of
    contaminated samples: Tukey, The Future of Data Analysis, 1962). Raises ValueError unless there are four rounds or
    a greater even number.
    """
    first, second = np.asarray(a), np.asarray(b)
    if first.ndim != 2 or first.shape != second.shape or len(first) < 4 or len(first) % 2:
        raise ValueError(f"an even number of rounds from 4 is needed, with the same examples: {first.shape}")
    usual = np.median(first, axis=0), np.median(second, axis=0)
    held = [np.minimum(times, _LONGEST * median) for times, median in zip((first, second), usual, strict=True)]
    rounds = np.log(held[0].sum(axis=1) / held[1].sum(axis=1))
    pairs = rounds.reshape(-1, 2).mean(axis=1)
    over_loads = _student(pairs)

    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, first.shape[1], size=(_RESAMPLES, first.shape[1]))
    resampled = np.log(usual[0][chosen].sum(axis=1) / usual[1][chosen].sum(axis=1))
    low, high = np.percentile(resampled, [2.5, 97.5])
    half = float(np.hypot(over_loads, (high - low) / 2))

    return _interval(float(pairs.mean()), half)
