"""The behaviour report, on answers whose differences are known, and the gate that guards single classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from toolkit.answers import classes as behaviour
from toolkit.gates import classes

NAMES = ["one", "two", "three", "four"]


def answers(labels: Any, right: Any) -> Any:
    """Logits that are right where `right` says so, and name the next class where not."""
    said = np.where(right, labels, (labels + 1) % len(NAMES))
    return np.eye(len(NAMES), dtype=np.float32)[said] * 4


@pytest.fixture
def labels() -> Any:
    return np.repeat(np.arange(4), 250)


def test_nothing_changed(labels: Any) -> None:
    logits = answers(labels, np.arange(1000) % 10 != 0)
    report = behaviour.describe(logits, logits, labels, NAMES, [""] * 1000)
    assert (report["flip_rate"], report["right_to_wrong"], report["wrong_to_right"]) == (0, 0, 0)
    assert report["calibration_error_before"] == report["calibration_error_after"]
    assert all(c["change"] == c["low"] == c["high"] == 0 for c in report["classes"].values())
    assert classes.check(report["classes"]).passed


def test_what_flipped_is_counted_and_listed(labels: Any) -> None:
    before = answers(labels, np.ones(1000, dtype=bool))
    wrong = np.zeros(1000, dtype=bool)
    wrong[[3, 400, 999]] = True
    after = answers(labels, ~wrong)
    texts = [f"text {index}" for index in range(1000)]
    report = behaviour.describe(before, after, labels, NAMES, texts)
    assert report["flip_rate"] == pytest.approx(0.003)
    assert report["flip_rate_low"] <= 0.003 <= report["flip_rate_high"]
    assert (report["right_to_wrong"], report["wrong_to_right"]) == (3, 0)
    assert len(report["worst"]) == behaviour.WORST
    assert {entry["example"] for entry in report["worst"][:3]} == {"text 3", "text 400", "text 999"}
    first = report["worst"][0]
    assert first["label"] == first["before"] != first["after"]
    assert first["probability_lost"] > 0.9 > 0.1 > report["worst"][3]["probability_lost"]


def test_a_class_that_collapses_is_refused_though_the_mean_holds(labels: Any) -> None:
    """Class three loses 30 points; the others win as much together: the mean stays within half a point."""
    generator = np.random.default_rng(0)
    before = answers(labels, generator.random(1000) < 0.85)
    right = before.argmax(axis=1) == labels
    for index in np.flatnonzero((labels == 2) & right)[:75]:
        right[index] = False
    for index in np.flatnonzero((labels != 2) & ~right)[:74]:
        right[index] = True
    after = answers(labels, right)
    accuracy = [(logits.argmax(axis=1) == labels).mean() for logits in (before, after)]
    assert abs(accuracy[0] - accuracy[1]) < 0.005
    verdict = classes.check(behaviour.class_changes(before, after, labels, NAMES))
    assert not verdict.passed
    assert verdict.reason.startswith("recall of 'three' ")
    assert "-0.3000" in verdict.reason


def test_a_small_class_is_not_refused_for_chance() -> None:
    """One example of seven flips: 14 points, and nothing is shown by it."""
    labels = np.asarray([0] * 500 + [1] * 7)
    before = np.eye(2)[labels] * 4
    after = before.copy()
    after[-1] = after[-1][::-1]
    changes = behaviour.class_changes(before, after, labels, ["many", "few"])
    assert changes["few"]["change"] == pytest.approx(-1 / 7)
    assert classes.check(changes).passed


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        low, high = behaviour.interval((generator.random(400) < 0.3).astype(float), seed=trial)
        held += low <= 0.3 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_calibration_error_of_known_cases() -> None:
    labels = np.asarray([0, 0, 0, 1])
    certain = np.asarray([[50.0, 0.0]] * 4)
    assert behaviour.calibration_error(certain, labels) == pytest.approx(0.25)
    honest = np.log(np.asarray([[0.75, 0.25]] * 4))
    assert behaviour.calibration_error(honest, labels) == pytest.approx(0.0, abs=1e-9)


REFERENCE = np.array([[1.0, -1.0], [0.2, 0.1], [-3.0, 2.0]], dtype=np.float32)


def test_agreement_counts_flips_per_reference_class() -> None:
    candidate = np.array([[1.0, -1.0], [0.1, 0.3], [-3.0, 2.0]], dtype=np.float32)
    found = behaviour.agreement(REFERENCE, candidate, ["bad", "good", "never"])
    assert found["flip_rate"] == pytest.approx(1 / 3)
    assert found["flip_rate_per_class"] == {"bad": 0.5, "good": 0.0, "never": None}
    assert found["largest_difference"] == pytest.approx(0.2, abs=1e-6)


def test_agreement_can_be_written_as_json() -> None:
    broken = REFERENCE.copy()
    broken[0, 0] = np.nan
    assert behaviour.agreement(REFERENCE, broken, ["bad", "good"])["largest_difference"] is None


def between(before: Any, after: Any) -> float:
    return behaviour.divergence(behaviour.targets(before), after)


def test_divergence_is_zero_for_the_same_answers_only() -> None:
    logits = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    assert between(logits, logits) == pytest.approx(0, abs=1e-9)
    assert between(logits, logits + 5) == pytest.approx(0, abs=1e-6)  # no answer changes
    assert between(logits, -logits) > between(logits, 0.9 * logits) > 0
    by_hand = np.log(0.5 / 0.25) * 0.5 + np.log(0.5 / 0.75) * 0.5
    assert between(np.zeros((1, 2)), np.log([[0.25, 0.75]])) == pytest.approx(by_hand)
