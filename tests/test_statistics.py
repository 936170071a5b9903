"""Statistics of latencies: one build against itself is not told apart, a real difference is."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.bench.loops import Runner, interleave, per_example
from toolkit.bench.statistics import compare, distribution, halves, independent, summarize

EXAMPLES = 40
ROUNDS = 6


def latencies(generator: np.random.Generator) -> np.ndarray:
    """Seconds per example as they are met: a spread of input lengths and a tail to the right."""
    return 2e-3 * generator.lognormal(0, 0.3, EXAMPLES)


def measured(generator: np.random.Generator, base: np.ndarray, first: int) -> np.ndarray:
    """[ROUNDS, EXAMPLES] seconds of a build: every load is some percent off, the one that loads first in a round is 3 %
    slower, and every run differs a little. `first` is 0 if the build loads first in even rounds, else 1."""
    loads = generator.normal(1, 0.02, (ROUNDS, 1))
    order = np.where(np.arange(ROUNDS)[:, None] % 2 == first, 1.03, 1.0)
    return base * loads * order * generator.lognormal(0, 0.05, (ROUNDS, EXAMPLES))


def test_a_build_against_itself_is_undecided() -> None:
    undecided = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        base = latencies(generator)
        undecided += compare(measured(generator, base, 0), measured(generator, base, 1), seed).verdict == "undecided"
    assert undecided >= 190  # a 95 % interval


@pytest.mark.parametrize(("factor", "verdict"), [(0.8, "faster"), (1.25, "slower")])
def test_a_difference_of_a_fifth_is_found(factor: float, verdict: str) -> None:
    for seed in range(50):
        generator = np.random.default_rng(seed)
        base = latencies(generator)
        found = compare(measured(generator, factor * base, 0), measured(generator, base, 1), seed)
        assert found.verdict == verdict
        assert found.low < found.ratio < found.high
        assert abs(found.ratio - factor) < 0.05


def test_a_difference_is_found_while_other_work_breaks_in() -> None:
    """A tenth of the runs is met by a burst that takes as long as ten of them: 5 % are found all the same, and A/A
    is undecided."""
    verdicts: dict[float, list[str]] = {1.0: [], 1.05: []}
    for seed in range(100):
        generator = np.random.default_rng(seed)
        base = latencies(generator)
        bursts = np.where(generator.random((2, 20, EXAMPLES)) < 0.1, 10 * base, 0)
        runs = base * generator.lognormal(0, 0.03, (2, 20, EXAMPLES))
        for factor, found in verdicts.items():
            found.append(compare(factor * runs[0] + bursts[0], runs[1] + bursts[1], seed).verdict)
    assert verdicts[1.0].count("undecided") >= 95
    assert verdicts[1.05].count("slower") >= 95


def test_opposite_orders_cancel() -> None:
    """A build that is 5 % slower whenever it loads first is 0 % slower."""
    base = latencies(np.random.default_rng(0))
    first = base * np.asarray([1.05, 1, 1.05, 1])[:, None]
    second = base * np.asarray([1, 1.05, 1, 1.05])[:, None]
    found = compare(first, second)
    assert found.ratio == pytest.approx(1, abs=1e-9)
    assert found.high - found.low < 1e-9


def test_the_same_examples_are_compared() -> None:
    """Differences between examples cancel: shuffled against each other, the same times say nothing."""
    generator = np.random.default_rng(1)
    base = latencies(generator)
    rounds = np.tile(base, (ROUNDS, 1))
    assert compare(0.98 * rounds, rounds).verdict == "faster"
    assert compare(0.98 * rounds, np.tile(generator.permutation(base), (ROUNDS, 1))).verdict == "undecided"


def test_ratio_is_of_sums_and_seeded() -> None:
    found = compare([[1.0, 3.0]] * 4, [[2.0, 6.0]] * 4)
    assert (found.ratio, found.verdict) == (pytest.approx(0.5), "faster")
    assert (found.low, found.high) == (pytest.approx(0.5), pytest.approx(0.5))
    a, b = np.random.default_rng(0).lognormal(0, 1, (2, ROUNDS, 40))
    assert compare(a, b, seed=1) == compare(a, b, seed=1)
    assert compare(a, b, seed=1).low != compare(a, b, seed=2).low


@pytest.mark.parametrize("shape", [(40,), (3, 40), (5, 40), (2, 40)])
def test_too_few_rounds_are_an_error(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="even number of rounds"):
        compare(np.ones(shape), np.ones(shape))


def test_every_round_loads_anew_and_the_next_in_reverse() -> None:
    loaded: list[str] = []
    open_now: list[str] = []

    def load(name: str) -> Runner:
        loaded.append(name)
        open_now.append(name)
        ran: list[int] = []
        return Runner(ran.append, lambda: open_now.remove(name))

    times = interleave({name: lambda name=name: load(name) for name in "abc"}, 5, 4)
    assert open_now == []
    rounds = [loaded[start : start + 3] for start in range(0, len(loaded), 3)]
    assert len(rounds) == 4
    assert rounds[1] == rounds[0][::-1]
    assert rounds[3] == rounds[2][::-1]
    assert {name: np.asarray(values).shape for name, values in times.items()} == dict.fromkeys("abc", (4, 5))


def test_a_burst_in_one_round_does_not_show() -> None:
    assert per_example([[1.0, 2.0], [1.0, 50.0], [1.2, 2.2]]) == [1.0, 2.2]


def test_summary_is_in_milliseconds() -> None:
    summary = summarize([0.001, 0.002, 0.003, 0.004, 0.010])
    assert summary == {
        "count": 5, "mean_ms": 4.0, "p50_ms": 3.0, "p90_ms": 7.6, "p99_ms": 9.76, "min_ms": 1.0, "max_ms": 10.0,
    }  # fmt: skip


# --- distributions


def test_intervals_of_a_distribution_hold_what_they_are_of() -> None:
    """Over many measurements of the same thing, 95 % intervals hold the true median and mean in about 95 % of them."""
    held = {"p50_ms": 0, "mean_ms": 0}
    for seed in range(40):
        generator = np.random.default_rng(seed)
        rounds = [1e-3 * generator.lognormal(0, 0.1, 60) * generator.normal(1, 0.02) for _ in range(8)]
        found = distribution(rounds, seed)
        for name, truth in (("p50_ms", 1.0), ("mean_ms", float(np.exp(0.005)))):
            held[name] += found[name]["low"] <= truth <= found[name]["high"]
    assert min(held.values()) >= 33


def test_a_distribution_of_one_value_is_that_value() -> None:
    found = distribution([[0.002] * 10] * 4)
    assert found["count"] == 40
    assert found["p50_ms"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert found["quantiles_ms"] == [2.0] * 101


def test_halves_of_what_drifts_are_equal() -> None:
    """A machine that gets slower by 1 % every round favours neither half."""
    rounds = [[1e-3 * 1.01**number] * 20 for number in range(8)]
    assert halves(rounds).ratio == pytest.approx(1, abs=1e-9)


def test_halves_need_pairs() -> None:
    for count in (1, 3, 5):
        with pytest.raises(ValueError, match="even number of rounds"):
            halves([[1e-3]] * count)


def test_measurements_of_two_days() -> None:
    undecided = found = 0
    for seed in range(200):
        generator = np.random.default_rng(seed)
        before, after = generator.lognormal(0, 0.02, 8), generator.lognormal(0, 0.02, 8)
        undecided += independent(after, before).verdict == "undecided"
        found += independent(1.1 * after, before).verdict == "slower"
    assert undecided >= 185
    assert found == 200
    assert independent([1.0, 1.0], [2.0, 2.0]).verdict == "faster"
