"""How small a difference `toolkit compare` finds, and how often it finds one where there is none.

    python benchmarks/detection.py [--trials 200] [--seconds 2] [--load 1] [--jobs 2]

Workloads with known differences: a query is a number of small matrix products, and the other build makes 1, 2, 3, 5 or
10 % more of them. Each trial times both in turn exactly as `toolkit compare` does (`loops.interleave_for`), for
`--seconds`, and asks `statistics.compare` for its verdict; A/A trials have no difference. Meanwhile `--load` processes
of the benchmark's own make real work on the same cores: bursts of products and of copies through memory, of random
lengths. `--jobs` trials run at a time, each the others' load as well.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench import loops, statistics
from toolkit.devices import local
from toolkit.storage import write_json

DIFFERENCES = (0, 1, 2, 3, 5, 10)  # percent
UNITS = 200  # products of a query, so that 1 % is two of them
# The builds share it: where memory lies makes a difference of its own, and this one is to be known.
MATRIX = np.ones((48, 48), np.float32)
EXAMPLES = 16  # queries of a round, of different sizes as texts have different lengths
LEAST_ROUNDS = 6


def background(seed: int) -> None:
    """Bursts of work with pauses, for ever."""
    generator = np.random.default_rng(seed)
    matrix, memory = np.ones((256, 256), np.float32), np.ones(4_000_000, np.float32)
    while True:
        until = time.perf_counter() + generator.exponential(0.3)
        copies = generator.random() < 0.5
        while time.perf_counter() < until:
            if copies:
                memory.copy()
            else:
                matrix @ matrix
        time.sleep(generator.exponential(0.3))


def workload(percent: int) -> Callable[[], loops.Runner]:
    """A build whose queries make `percent` % more products."""

    def load() -> loops.Runner:
        def run(index: int) -> None:
            # Sizes differ by example and keep whole products at every difference.
            for _ in range((UNITS + 100 * (index % 4)) * (100 + percent) // 100):
                MATRIX @ MATRIX

        return loops.Runner(run)

    return load


def trial(percent: int, seconds: float, seed: int) -> statistics.Comparison:
    """A build that does more against one that does not."""
    builds = {"more": workload(percent), "less": workload(0)}
    times = loops.interleave_for(builds, EXAMPLES, seconds, LEAST_ROUNDS, seed)
    return statistics.compare(times["more"], times["less"], seed)


def asked_trial(asked: tuple[int, float, int]) -> tuple[int, statistics.Comparison]:
    """A trial in a process of its own, with the difference that it had."""
    return asked[0], trial(*asked)


def main() -> None:
    """Run the trials, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--load", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "detection.json")
    arguments = parser.parse_args()

    loads = [multiprocessing.Process(target=background, args=(seed,), daemon=True) for seed in range(arguments.load)]
    for process in loads:
        process.start()
    found: dict[int, list[statistics.Comparison]] = {percent: [] for percent in DIFFERENCES}
    # All differences in turn, so that the machine's day is the same for them.
    asked = [
        (percent, arguments.seconds, 100 * number + percent)
        for number in range(arguments.trials)
        for percent in DIFFERENCES
    ]
    with multiprocessing.Pool(arguments.jobs) as pool:
        for number, (percent, one) in enumerate(pool.imap(asked_trial, asked)):
            found[percent].append(one)
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {len(asked)}", end="", file=sys.stderr, flush=True)
            if percent == DIFFERENCES[-1]:
                write_json(arguments.output, record(found, arguments))  # what is there so far: all of them take long
    for process in loads:
        process.terminate()
    print(f"\n{'difference':>10} {'slower':>7} {'faster':>7} {'undecided':>9} {'ratio':>7} {'half interval':>14}")
    for each in (row(percent, found[percent]) for percent in DIFFERENCES):
        print(
            f"{each['percent']:>9} % {each['slower']:>7} {each['faster']:>7} {each['undecided']:>9} "
            f"{each['median_ratio']:>7.4f} {each['median_half_interval_percent']:>12.2f} %"
        )


def record(found: dict[int, list[statistics.Comparison]], arguments: argparse.Namespace) -> dict[str, Any]:
    """What is written."""
    return {
        "command": f"python benchmarks/detection.py --trials {arguments.trials} --seconds {arguments.seconds:g} "
        f"--load {arguments.load} --jobs {arguments.jobs}",
        "kind": "measured",
        "device": local.describe(),
        "trials": len(found[0]),
        "seconds": arguments.seconds,
        "background_processes": arguments.load,
        "trials_at_a_time": arguments.jobs,
        "curve": [row(percent, found[percent]) for percent in DIFFERENCES],
    }


def row(percent: int, found: list[statistics.Comparison]) -> dict[str, Any]:
    """What a difference's trials said."""
    verdicts = [each.verdict for each in found]
    halves = [(np.log(each.high) - np.log(each.low)) / 2 for each in found]
    return {
        "percent": percent,
        **{name: verdicts.count(name) for name in ("slower", "faster", "undecided")},
        "held": sum(each.low <= 1 + percent / 100 <= each.high for each in found),
        "median_ratio": float(np.median([each.ratio for each in found])),
        "median_half_interval_percent": float(np.expm1(np.median(halves)) * 100),
    }


if __name__ == "__main__":
    main()
