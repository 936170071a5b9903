"""The measuring loop, and the child process that benches one bundle.

    python -m toolkit.bench.measure REQUEST.json

The child imports what an app would import (numpy, tokenizers, the bundle's engine), so its memory and its cold
start are an app's. Needs nothing but the runtime.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench import statistics

_WARM_UP_WINDOW = 5
_WARM_UP_LIMIT = 60


@dataclass(frozen=True)
class Runner:
    """A build that is loaded: `run` takes the number of an example."""

    run: Callable[[int], Any]
    close: Callable[[], None] = lambda: None


def warm_up(run: Callable[[int], Any], count: int) -> int:
    """Run until two successive windows take about the same time; returns the runs made."""
    previous = float("inf")
    made = 0
    while made < _WARM_UP_LIMIT:
        started = time.perf_counter()
        for index in range(_WARM_UP_WINDOW):
            run((made + index) % count)
        took = time.perf_counter() - started
        made += _WARM_UP_WINDOW
        if took > 0.95 * previous:
            break
        previous = took
    return made


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


def _memory() -> dict[str, int | str]:
    """Resident and private memory of this process in bytes, as Linux tells it."""
    wanted = {"VmRSS": "rss_bytes", "VmHWM": "peak_rss_bytes"}
    found: dict[str, int | str] = dict.fromkeys(wanted.values(), "not available")
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            key, _, value = line.partition(":")
            if key in wanted:
                found[wanted[key]] = int(value.split()[0]) * 1024
    except OSError:
        pass
    return found


def bench_bundle(request: Mapping[str, Any], progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Cold start, latency over the given examples, throughput and memory of one bundle."""
    import toolkit

    before = _memory()
    started = time.perf_counter()
    pipeline = toolkit.load(request["bundle"], threads=request["threads"])
    loaded = time.perf_counter()
    files = pipeline.manifest.path("golden")
    examples = [pipeline.read(recorded, files) for recorded in request["examples"]]
    pipeline.predict(examples[0])
    first = time.perf_counter()
    after_first = _memory()

    warm_ups = warm_up(lambda i: pipeline.predict(examples[i]), len(examples))
    end_to_end: list[float] = []
    preprocessing: list[float] = []
    began = time.perf_counter()
    while len(end_to_end) < request["minimum_runs"] or time.perf_counter() - began < request["seconds"]:
        example = examples[len(end_to_end) % len(examples)]
        start = time.perf_counter()
        pipeline.encoder(example)
        middle = time.perf_counter()
        pipeline.predict(example)
        end_to_end.append(time.perf_counter() - middle)
        preprocessing.append(middle - start)
        elapsed = time.perf_counter() - began
        progress(int(min(elapsed, request["seconds"]) * 10), int(request["seconds"] * 10), "timing")
    memory = _memory()
    return {
        "latency": statistics.summarize(end_to_end),
        "preprocessing": statistics.summarize(preprocessing),
        "throughput_per_s": round(len(end_to_end) / sum(end_to_end), 2),
        "cold_start": {
            "process_ms": round((request["entered"] - request["started"]) * 1e3, 3),
            "load_ms": round((loaded - started) * 1e3, 3),
            "first_inference_ms": round((first - loaded) * 1e3, 3),
        },
        "memory": {
            "before_load_rss_bytes": before["rss_bytes"],
            "after_first_inference_rss_bytes": after_first["rss_bytes"],
            "peak_rss_bytes": memory["peak_rss_bytes"],
        },
        "warm_up_runs": warm_ups,
        "engine": pipeline.engine.describe(),
    }


def main(request_file: str) -> int:
    """Bench the bundle that `request_file` describes and write the record it names."""
    from toolkit.child import die_with_parent, reporter
    from toolkit.errors import ToolkitError
    from toolkit.storage import write_json

    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    request["entered"] = time.time()
    die_with_parent(int(request["parent"]))
    try:
        record = bench_bundle(request, reporter(int(request["progress"])))
    except ToolkitError as error:
        write_json(Path(request["result"]), {"error": str(error), "exit_code": error.exit_code})
        return 1
    write_json(Path(request["result"]), record)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
