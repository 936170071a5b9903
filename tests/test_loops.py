"""The loops that time, on a clock that only moves when something runs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from toolkit.bench import loops


class Clock:
    """A clock whose time is spent by runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    made = Clock()
    monkeypatch.setattr(loops, "time", made)
    return made


def test_warm_up_ends_once_times_are_stable(clock: Clock) -> None:
    ran: list[int] = []

    def run(index: int) -> None:
        ran.append(index)
        clock.now += 0.010 if len(ran) > 60 else 0.020 - len(ran) * 1e-4  # 10 ms in the end

    made, stable = loops.warm_up(run, 10)
    assert stable
    assert made == len(ran) > 60
    assert set(ran[:10]) == set(range(10))  # every example first


def test_warm_up_of_what_never_settles_ends_in_time(clock: Clock) -> None:
    took = 1.0

    def run(index: int) -> None:
        nonlocal took
        took *= 0.99
        clock.now += took

    made, stable = loops.warm_up(run, 4, most_seconds=30.0)
    assert not stable
    assert clock.now < 60.0
    assert made > 4


def test_a_burst_does_not_look_like_warming_up(clock: Clock) -> None:
    ran = 0

    def run(index: int) -> None:
        nonlocal ran
        ran += 1
        clock.now += 0.5 if ran == 5 else 0.010

    made, stable = loops.warm_up(run, 8)
    assert stable
    assert made <= 8 * 5


def test_rounds_fill_the_time_and_are_even(clock: Clock) -> None:
    def runner() -> loops.Runner:
        def run(index: int) -> None:
            clock.now += 0.1

        return loops.Runner(run)

    found = loops.interleave_for({"a": runner, "b": runner}, 10, seconds=60.5, least_rounds=4)
    # A round of two builds takes 1.0 s to warm up half of the examples and 2.0 s to time them.
    assert len(found["a"]) == len(found["b"]) == 20
    assert clock.now <= 60.5
    few = loops.interleave_for({"a": runner, "b": runner}, 10, seconds=0.1, least_rounds=6)
    assert len(few["a"]) == 6
