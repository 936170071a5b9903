"""Loops that time: runs until an engine is warm, and builds that take turns. Needs nothing but numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_WARM_UP_WINDOW = 8  # runs
_WARM_UP_STEP = 0.02
_WARM_UP_STABLE = 2  # windows


@dataclass(frozen=True)
class Runner:
    """A build that is loaded: `run` takes the number of an example."""

    run: Callable[[int], Any]
    close: Callable[[], None] = lambda: None


def warm_up(run: Callable[[int], Any], count: int, most_seconds: float = 20.0) -> tuple[int, bool]:
    """Run all `count` examples once, for an engine may prepare itself for each size of input, and then on until times
    are stable: until a window of runs was not faster than the fastest before it by more than 2 %, twice in a row.
    Returns the runs made, and whether that came within `most_seconds`.

    What is compared is the windows' medians over the same examples, so that lengths and a burst of other work do not
    look like an engine that still gets faster.
    """
    for index in range(count):
        run(index)
    began, made = time.perf_counter(), count
    window = min(count, _WARM_UP_WINDOW)
    fastest, stable = float("inf"), 0
    while stable < _WARM_UP_STABLE:
        if time.perf_counter() - began > most_seconds:
            return made, False
        times = []
        for _ in range(max(1, _WARM_UP_WINDOW // window)):
            for index in range(window):
                started = time.perf_counter()
                run(index)
                times.append(time.perf_counter() - started)
        made += len(times)
        median = float(np.median(times))
        stable = stable + 1 if median > (1 - _WARM_UP_STEP) * fastest else 0
        fastest = min(fastest, median)
    return made, True


def interleave(
    builds: Mapping[str, Callable[[], Runner]],
    count: int,
    rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[list[float]]]:
    """Seconds per build, round and example.

    All builds take turns on every example, in a shuffled order, so that a change of the machine's speed hits them
    alike. Every round loads them anew, because the same file is some percent faster or slower wherever its memory
    happens to lie; and because the first to be loaded fares worse than the last, an odd round loads in the reverse of
    the order before: `statistics.compare` takes two rounds together. Every second example warms up: an engine may
    prepare itself for each length of input, so examples should come in the order of their lengths.
    """
    generator = np.random.default_rng(seed)
    times: dict[str, list[list[float]]] = {name: [] for name in builds}
    order = list(builds)
    for round_number in range(rounds):
        order = [order[int(i)] for i in generator.permutation(len(order))] if round_number % 2 == 0 else order[::-1]
        runners = {name: builds[name]() for name in order}
        # In turn, for builds that are warmed one after the other are cold again when they are timed.
        for index in range(0, count, 2):
            for runner in runners.values():
                runner.run(index)
        for name in order:
            times[name].append([])
        for index in range(count):
            for position in generator.permutation(len(order)):
                name = order[int(position)]
                started = time.perf_counter()
                runners[name].run(index)
                times[name][-1].append(time.perf_counter() - started)
            if progress:
                progress(round_number * count + index + 1, rounds * count)
        for runner in runners.values():
            runner.close()
    return times


def per_example(times: Sequence[Sequence[float]]) -> list[float]:
    """The median over rounds of each example: a burst of other work on the machine touches one round."""
    return [float(value) for value in np.median(np.asarray(times), axis=0)]


def interleave_for(
    builds: Mapping[str, Callable[[], Runner]],
    count: int,
    seconds: float,
    least_rounds: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[list[float]]]:
    """`interleave` with as many rounds as `seconds` hold, an even number from `least_rounds`: two at a time until the
    next two would not end in time."""
    times: dict[str, list[list[float]]] = {name: [] for name in builds}
    began, made, took = time.perf_counter(), 0, 0.0
    while made < least_rounds or time.perf_counter() - began + took <= seconds:
        started = time.perf_counter()
        for name, found in interleave(builds, count, 2, seed + made).items():
            times[name] += found
        took = time.perf_counter() - started
        made += 2
        if progress:
            progress(min(int((time.perf_counter() - began) * 10), int(seconds * 10)), int(seconds * 10))
    return times
