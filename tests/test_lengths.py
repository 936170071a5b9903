"""Input lengths: the truncation length and the buckets, against every possible choice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.tasks import lengths


def padded(tokens: list[int], buckets: list[int]) -> int:
    """Tokens computed when each input takes the shortest bucket that holds it."""
    return sum(next(b for b in buckets if b >= min(count, buckets[-1])) for count in tokens)


def every_choice(max_length: int, most: int) -> list[list[int]]:
    steps = range(lengths.STEP, max_length, lengths.STEP)
    return [
        [*chosen, max_length] for count in range(most) for chosen in itertools.combinations(steps, count)
    ]  # fewest buckets first


@settings(deadline=None)
@given(
    tokens=st.lists(st.integers(1, 90), min_size=1, max_size=40),
    max_length=st.integers(8, 64),
    most=st.integers(1, 4),
)
def test_buckets_are_the_best_of_all_choices(tokens: list[int], max_length: int, most: int) -> None:
    buckets = lengths.choose_buckets(tokens, max_length, most)
    best = min(every_choice(max_length, most), key=lambda choice: padded(tokens, choice))
    assert padded(tokens, buckets) == padded(tokens, best)
    assert len(buckets) == len(best)  # no bucket that saves nothing


@settings(deadline=None)
@given(tokens=st.lists(st.integers(1, 600), min_size=1, max_size=200), max_length=st.integers(8, 512))
def test_buckets_ascend_to_the_longest(tokens: list[int], max_length: int) -> None:
    buckets = lengths.choose_buckets(tokens, max_length)
    assert buckets[-1] == max_length
    assert all(a < b for a, b in itertools.pairwise(buckets))
    assert 1 <= len(buckets) <= lengths.MOST_BUCKETS
    assert all(bucket % lengths.STEP == 0 for bucket in buckets[:-1])


def test_buckets_follow_the_lengths() -> None:
    assert lengths.choose_buckets([7, 8, 30, 31, 32, 60], 128) == [8, 32, 64, 128]
    assert lengths.choose_buckets([128, 128], 128) == [128]


def test_max_length_covers_the_real_inputs_within_the_models_limit() -> None:
    assert lengths.choose_max_length([5] * 100, 512) == lengths.ALWAYS_COVERED
    assert lengths.choose_max_length([300] * 1000, 512) == 304
    assert lengths.choose_max_length([300] * 1000, 256) == 256
    assert lengths.choose_max_length([5] * 1000 + [500], 512) == lengths.ALWAYS_COVERED  # one of a thousand is cut


def test_round_up_and_statistics() -> None:
    assert [lengths.round_up(value) for value in (1, 8, 9)] == [8, 8, 16]
    assert lengths.statistics([1, 2, 3, 10]) == pytest.approx({
        "count": 4, "mean": 4.0, "max": 10, "p50": 2.5, "p90": 7.9, "p99": 9.79,
    })  # fmt: skip
