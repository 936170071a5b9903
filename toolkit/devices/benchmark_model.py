"""LiteRT's own program for benchmarks, `benchmark_model`, as a user has it for a device: what it is called with, and
what it says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.errors import InputError

_MOST_SECONDS = 150.0  # after which it ends by itself, unless it is told otherwise
_NAMES = {
    "min": "min_ms", "max": "max_ms", "avg": "mean_ms", "std": "std_ms", "p5": "p5_ms", "median": "median_ms",
    "p95": "p95_ms",
}  # fmt: skip
_TIMINGS = {"Init": "init_ms", "First inference": "first_inference_ms", "Warmup (avg)": "warm_up_mean_ms"}


def arguments(step: Mapping[str, Any], model: str, threads: int) -> list[str]:
    """What it is called with for a step `times`. Raises InputError for what it cannot do."""
    if step.get("sizes") or step.get("point"):
        raise InputError(
            "benchmark_model makes its own inputs, of the sizes that the file has; leave --batch, --length and --sweep "
            "out."
        )
    seconds = float(step["seconds"])
    return [
        f"--graph={model}",
        f"--num_threads={threads}",
        f"--num_runs={max(1, round(step['queries']))}",
        f"--min_secs={seconds:g}",
        f"--max_secs={max(_MOST_SECONDS, 2 * seconds):g}",
    ]


def on_cores(command: Sequence[str], cores: Sequence[int]) -> list[str]:
    """A command on some cores, by the device's own `taskset`."""
    return ["taskset", f"{sum(1 << core for core in cores):x}", *command] if cores else list(command)


def read(said: str) -> dict[str, Any]:
    """What it told of its inferences, times in milliseconds, and nothing that it did not tell. Raises InputError if it
    told nothing."""
    counts = re.findall(r"count=(\d+)((?: \w+=[-+\w.]+(?:\(all same\))?)*)", said)
    if not counts or counts[-1][0] == "0":
        raise InputError("benchmark_model told of no inference")
    count, rest = counts[-1]  # the one before is of the warm-up
    values = {name: float(value) for name, value in re.findall(r"(\w+)=([-+\d.e]+)", rest)}
    if "avg" not in values:  # it tells one number where all times are the same
        values = dict.fromkeys(("min", "max", "avg"), values["curr"])
    found: dict[str, Any] = {"count": int(count)}
    found |= {_NAMES[name]: value / 1e3 for name, value in values.items() if name in _NAMES}
    timings = re.search(r"nference timings in us: (.+)", said)
    for part in timings[1].split(", ") if timings else ():
        name, _, value = part.partition(": ")
        if name in _TIMINGS:
            found[_TIMINGS[name]] = float(value) / 1e3
    memory = re.search(r"emory footprint.* \(MB\): init=([\d.]+) overall=([\d.]+)", said)
    if memory:
        found |= {"init_mb": float(memory[1]), "overall_mb": float(memory[2])}
    return found
