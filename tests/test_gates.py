"""Gates: what each lets through, what it refuses, and that it says why."""

from __future__ import annotations

import numpy as np
import pytest

from toolkit.bench.statistics import Comparison
from toolkit.errors import InputError
from toolkit.gates import classes, economy, memory, parity, score, size, speed
from toolkit.gates.speed import Latency

REFERENCE = np.array([[1.0, -1.0], [0.2, 0.1], [-3.0, 2.0]], dtype=np.float32)


# Parity


def test_parity_passes_within_the_tolerance_only() -> None:
    assert parity.check(REFERENCE, REFERENCE + 9e-4).passed
    verdict = parity.check(REFERENCE, REFERENCE + np.float32(2e-3))
    assert not verdict.passed
    assert "0.002 over 3 answers (limit 0.001)" in verdict.reason


def test_parity_refuses_a_flipped_label_inside_the_tolerance() -> None:
    reference = np.array([[0.5001, 0.5]], dtype=np.float32)
    verdict = parity.check(reference, np.array([[0.5, 0.5001]], dtype=np.float32))
    assert not verdict.passed
    assert "1 answers differ" in verdict.reason


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("in_reference", [True, False])
def test_parity_refuses_what_is_no_number(value: float, in_reference: bool) -> None:
    broken = REFERENCE.copy()
    broken[1, 0] = value
    pair = (broken, REFERENCE) if in_reference else (REFERENCE, broken)
    assert not parity.check(*pair).passed


def test_parity_compares_the_examples_that_ran() -> None:
    assert parity.check(REFERENCE, REFERENCE[:2]).passed
    assert "over 2 answers" in parity.check(REFERENCE, REFERENCE[:2]).reason


# Score


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("99%", (0.99, True)),
        (" 97.5% ", (0.975, True)),
        ("0.83", (0.83, False)),
        ("0", (0.0, False)),
        ("1", (1, False)),
    ],
)
def test_min_score_is_a_share_or_a_score(text: str, parsed: tuple[float, bool]) -> None:
    assert score.parse(text) == (pytest.approx(parsed[0]), parsed[1])


@pytest.mark.parametrize("text", ["", "%", "high", "83", "101%", "-0.1", "nan", "inf", "0.8 %%", "1e9%"])
def test_min_score_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--min-score"):
        score.parse(text)


def test_score_floor_is_relative_to_the_float_checkpoint_or_absolute() -> None:
    assert score.check(0.792, 0.8, "99%", "accuracy").passed
    assert not score.check(0.791, 0.8, "99%", "accuracy").passed
    assert score.check(0.83, 0.95, "0.83", "accuracy").passed
    refused = score.check(0.82, 0.8, "0.83", "accuracy")
    assert not refused.passed
    assert refused.reason == "accuracy 0.8200, the float checkpoint's is 0.8000, floor 0.8300 (--min-score 0.83)"


# Size


def test_size_budget_is_in_decimal_megabytes_and_inclusive() -> None:
    assert size.check(25_000_000, 25).passed
    assert not size.check(25_000_001, 25).passed
    assert "--max-size 25 MB" in size.check(30_000_000, 25).reason
    assert size.check(10**12, None).passed


# Speed

MEASURED = Latency(2.0, "measured")


def test_a_float_build_has_nothing_to_be_slower_than() -> None:
    assert speed.check(MEASURED, None, None).passed


@pytest.mark.parametrize(("verdict", "passed"), [("faster", True), ("undecided", True), ("slower", False)])
def test_a_measured_build_is_refused_by_its_interval(verdict: str, passed: bool) -> None:
    against = Comparison(1.4, 1.3, 1.5, verdict)  # type: ignore[arg-type]
    answer = speed.check(MEASURED, Latency(1.4, "measured"), against)
    assert answer.passed == passed
    assert answer.reason == "2.00 ms, 1.40x its float build's time (1.30-1.50)"


def test_an_estimated_build_is_refused_by_its_value() -> None:
    faster, slower = Latency(2, "estimate", 1, 4), Latency(3, "estimate", 1, 9)
    assert speed.check(faster, slower, None).passed
    refused = speed.check(slower, faster, None)
    assert not refused.passed
    assert refused.reason == "estimate 1-9 ms, its float build: estimate 1-4 ms"


def test_latency_budget_of_a_measurement_and_of_an_estimate() -> None:
    assert speed.check_budget(MEASURED, None).passed
    assert speed.check_budget(MEASURED, 2.0).passed
    assert not speed.check_budget(MEASURED, 1.9).passed
    estimate = Latency(4, "estimate", 2, 8)
    assert speed.check_budget(estimate, 2.5).passed  # it may be that fast
    assert not speed.check_budget(estimate, 1.9).passed
    assert "--max-latency 1.9 ms" in speed.check_budget(estimate, 1.9).reason


# Memory


def test_memory_budget_takes_a_measurement() -> None:
    assert memory.check(150_000_000, 150).passed
    refused = memory.check(151_000_000, 150)
    assert not refused.passed
    assert refused.reason == "151 MB at most in a Python process that runs it here (--max-memory 150 MB)"
    assert not memory.check(None, 150).passed
    assert memory.check(None, None).passed


# Economy


@pytest.mark.parametrize(
    ("verdict", "interval", "size_after", "passed"),
    [
        ("faster", (0.8, 0.9), 10_000_000, True),
        ("faster", (0.8, 0.9), 11_000_000, True),  # larger, and that is what it costs
        ("undecided", (0.9, 1.1), 9_800_000, True),
        ("undecided", (0.9, 1.1), 9_900_000, False),  # 1 % is not worth a stage
        ("slower", (1.01, 1.2), 5_000_000, True),  # it may be by 1 % only
        ("slower", (1.01, 1.2), 9_900_000, False),
        ("slower", (1.06, 1.2), 5_000_000, False),
    ],
)
def test_a_stage_pays_if_it_is_faster_or_smaller_and_not_much_slower(
    verdict: str, interval: tuple[float, float], size_after: int, passed: bool
) -> None:
    against = Comparison(0.9, *interval, verdict)  # type: ignore[arg-type]
    answer = economy.check(10_000_000, size_after, MEASURED, Latency(1.8, "measured"), against)
    assert answer.passed == passed
    assert f"2.00 ms → 1.80 ms: 0.90x the time ({interval[0]:.2f}-{interval[1]:.2f})" in answer.reason


def test_a_stage_that_is_estimated_is_judged_by_value() -> None:
    fast, slow = Latency(2, "estimate", 1, 4), Latency(3, "estimate", 1, 9)
    assert economy.check(10, 10, slow, fast, None).passed
    assert not economy.check(10, 10, fast, fast, None).passed
    assert not economy.check(10, 5, fast, slow, None).passed
    assert economy.check(10, 5, None, None, None).passed
    assert economy.check(10, 10, None, None, None).reason.endswith("neither faster nor smaller")


# Classes


def test_what_the_mean_may_lose_each_class_may_lose_besides() -> None:
    change = {"recall_before": 0.9, "recall_after": 0.83, "change": -0.07, "low": -0.09, "high": -0.05}
    assert not classes.check({"bad": change}).passed
    assert classes.check({"bad": change}, allowed=0.03).passed
    assert "limit -0.08" in classes.check({"bad": change}, allowed=0.03).reason
