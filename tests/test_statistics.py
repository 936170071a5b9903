"""Statistics of latencies: one build against itself is not told apart, a real difference is."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.bench.statistics import compare, summarize

EXAMPLES = 60


def latencies(generator: np.random.Generator) -> np.ndarray:
    """Seconds as they are met: a spread of input lengths and a tail to the right."""
    return 2e-3 * generator.lognormal(0, 0.3, EXAMPLES)


def test_a_build_against_itself_is_undecided() -> None:
    undecided = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        undecided += compare(latencies(generator), latencies(generator), seed).verdict == "undecided"
    # A 95 % interval misses once in twenty; three standard deviations below 190 of 200 is 180.
    assert 180 <= undecided < 200


@pytest.mark.parametrize(("factor", "verdict"), [(0.9, "faster"), (1.1, "slower")])
def test_a_difference_of_a_tenth_is_found_on_the_same_examples(factor: float, verdict: str) -> None:
    for seed in range(50):
        generator = np.random.default_rng(seed)
        base = latencies(generator)
        noise = generator.normal(1, 0.05, EXAMPLES)
        found = compare(factor * base * noise, base, seed)
        assert found.verdict == verdict
        assert found.low < found.ratio < found.high
        assert abs(found.ratio - factor) < 0.03


def test_the_pairing_is_what_finds_it() -> None:
    """Differences between examples cancel: shuffled against each other, the same times say nothing."""
    generator = np.random.default_rng(1)
    base = latencies(generator)
    assert compare(0.98 * base, base).verdict == "faster"
    assert compare(0.98 * base, generator.permutation(base)).verdict == "undecided"


def test_ratio_is_of_sums_and_seeded() -> None:
    found = compare([1.0, 3.0], [2.0, 6.0])
    assert (found.ratio, found.low, found.high, found.verdict) == (0.5, 0.5, 0.5, "faster")
    a, b = np.random.default_rng(0).lognormal(0, 1, (2, 40))
    assert compare(a, b, seed=1) == compare(a, b, seed=1)
    assert compare(a, b, seed=1).low != compare(a, b, seed=2).low


def test_summary_is_in_milliseconds() -> None:
    summary = summarize([0.001, 0.002, 0.003, 0.004, 0.010])
    assert summary == {
        "count": 5, "mean_ms": 4.0, "p50_ms": 3.0, "p90_ms": 7.6, "p99_ms": 9.76, "min_ms": 1.0, "max_ms": 10.0,
    }  # fmt: skip
