"""One step of a benchmark, in a process of its own on the device.

    python -m toolkit.bench.measure STEP.json

The process imports what an app would import (numpy, tokenizers, the bundle's engine), so its memory and its cold start
are an app's. A step is one of `STEPS`; its result is JSON. Needs nothing but the runtime. Times are in seconds, of
`time.perf_counter`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.bench import conditions, energy, loops, memory

Progress = Callable[[int, int, str], None]
PARTS = ("preprocessing", "inference", "postprocessing")
IDLE_SECONDS = 2.0
_WINDOW_SECONDS = 5.0  # of a curve


class _Timed:
    """A callable that adds up the seconds that it takes; its other attributes are those of what it stands for."""

    def __init__(self, called: Callable[..., Any], stands_for: Any) -> None:
        self.seconds = 0.0
        self._called, self._stands_for = called, stands_for

    def __call__(self, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return self._called(*arguments)
        finally:
            self.seconds += time.perf_counter() - started

    run = __call__  # of an engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stands_for, name)


def _on_gpu(folder: str, told: Mapping[str, Any], step: Mapping[str, Any]) -> Any:
    """A bundle's pipeline whose engine is on a GPU, in the way that `toolkit.devices.gpu_engines` prepared."""
    from toolkit.devices import gpu_engines
    from toolkit.runtime import manifest as manifests
    from toolkit.runtime import with_engine

    manifest = manifests.read(Path(folder))
    manifests.verify_files(manifest)
    return with_engine(manifest, gpu_engines.load(manifest, told, step.get("threads") or manifest.threads))


class Queries:
    """A loaded bundle and examples, raw or encoded: what is timed.

    With `sizes` (batch, length) the examples are encoded beforehand and repeated to that size, and only the inference
    is timed. Raises InputError if the bundle's file does not take them.
    """

    def __init__(self, step: Mapping[str, Any], folder: str | None = None) -> None:
        import toolkit

        folder = folder or str(step["bundle"])
        on_gpu = step.get("gpu", {}).get(folder)
        self.pipeline = _on_gpu(folder, on_gpu, step) if on_gpu else toolkit.load(folder, threads=step.get("threads"))
        files = self.pipeline.manifest.path("golden")
        self.examples = [self.pipeline.read(recorded, files) for recorded in step["examples"]]
        sizes = step.get("sizes")
        self._encoded = None
        if sizes:
            from toolkit.bench import sizes as resizing

            artifact = self.pipeline.manifest.data["artifact"]
            self._encoded = [resizing.resized(self.pipeline.encoder(each), artifact, sizes) for each in self.examples]
        self.pipeline.watch(lambda encoder: _Timed(encoder, encoder), lambda engine: _Timed(engine.run, engine))

    def __len__(self) -> int:
        return len(self.examples)

    def run(self, index: int) -> tuple[float, float, float]:
        """One query: the seconds of its `PARTS`. An engine hands its outputs over as arrays in this process's memory,
        so that none gives back the call before it has computed them."""
        encoder: Any = self.pipeline.encoder
        engine: Any = self.pipeline.engine
        encoder.seconds = engine.seconds = 0.0
        if self._encoded is not None:
            engine.run(self._encoded[index])
            return 0.0, engine.seconds, 0.0
        started = time.perf_counter()
        self.pipeline.predict(self.examples[index])
        whole = time.perf_counter() - started
        return encoder.seconds, engine.seconds, whole - encoder.seconds - engine.seconds

    def answers(self, index: int) -> Any:
        """What the engine gives for one example."""
        inputs = self._encoded[index] if self._encoded is not None else self.pipeline.encoder(self.examples[index])
        return self.pipeline.engine.run(inputs)

    def close(self) -> None:
        self.pipeline.close()


def start(step: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """A cold start as an app has it, and the memory that the model takes: alone in this process."""
    entered = step["entered"]
    before, gpu_before = memory.now(), memory.gpu_used()
    began = time.perf_counter()
    queries = Queries(step)
    loaded = time.perf_counter()
    after_load = memory.now()
    began_first = time.perf_counter()
    queries.run(0)
    first = time.perf_counter()
    after_first = memory.now()
    for index in range(len(queries)):
        queries.run(index)
    memory.reset_peak()
    for index in range(len(queries)):
        queries.run(index)
    running = memory.now()
    gpu_after = memory.gpu_used()
    return {
        "process_s": entered - step["spawned"],
        "load_s": loaded - began,
        "first_inference_s": first - began_first,
        "memory": {
            "before_load": before,
            "after_load": after_load,
            "after_first_inference": after_first,
            "running": running,
            "peak_rss_bytes": max(filter(None, (m["peak_rss_bytes"] for m in (after_first, running))), default=None),
            "gpu_bytes": gpu_after - gpu_before if gpu_before is not None and gpu_after is not None else None,
        },
        "engine": queries.pipeline.engine.describe(),
    }


def times(step: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Queries one after the other, in rounds that load the bundle anew, as the same file is some percent faster or
    slower wherever its memory happens to lie.

    `seconds` and `queries` are the least of all rounds together. A round takes the examples in an order drawn anew.
    """
    generator = np.random.default_rng(step["seed"])
    rounds: list[dict[str, list[float]]] = []
    warm_ups: list[int] = []
    stable = True
    meters = energy.find()
    idle = _idle_watts(meters)
    others = conditions.Others()
    spent, joules = 0.0, dict.fromkeys((meter.name for meter in meters), 0.0)
    for number in range(step["rounds"]):
        queries = Queries(step)
        progress(number, step["rounds"], f"round {number + 1} of {step['rounds']}: warming up")
        made, settled = loops.warm_up(queries.run, len(queries))
        warm_ups.append(made)
        stable = stable and settled
        parts: dict[str, list[float]] = {name: [] for name in PARTS}
        least = step["queries"] / step["rounds"]
        before = {meter.name: meter.read() for meter in meters}
        began = time.perf_counter()
        while len(parts["inference"]) < least or time.perf_counter() - began < step["seconds"] / step["rounds"]:
            for index in generator.permutation(len(queries)):
                for name, seconds in zip(PARTS, queries.run(int(index)), strict=True):
                    parts[name].append(seconds)
                if len(parts["inference"]) >= least and (
                    time.perf_counter() - began >= step["seconds"] / step["rounds"]
                ):
                    break
            progress(number, step["rounds"], f"round {number + 1} of {step['rounds']}: timing")
        spent += time.perf_counter() - began
        for meter in meters:
            joules[meter.name] += meter.read() - before[meter.name]
        rounds.append(parts)
        engine = queries.pipeline.engine.describe()
        queries.close()
    progress(step["rounds"], step["rounds"], "done")
    for meter in meters:
        meter.close()
    return {
        "rounds": rounds,
        "warm_up_runs": warm_ups,
        "stable": stable,
        "engine": engine,
        "others": others.read({os.getpid(), os.getppid()}),
        "energy": [
            {
                "meter": meter.name, "covers": meter.covers, "joules": joules[meter.name],
                "idle_watts": idle[meter.name], "seconds": spent,
            }
            for meter in meters
        ],
    }  # fmt: skip


def _idle_watts(meters: Sequence[energy.Meter]) -> dict[str, float]:
    """What every meter shows while this process waits."""
    if not meters:
        return {}
    before = {meter.name: meter.read() for meter in meters}
    began = time.perf_counter()
    time.sleep(IDLE_SECONDS)
    seconds = time.perf_counter() - began
    return {meter.name: (meter.read() - before[meter.name]) / seconds for meter in meters}


def compare(step: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Several bundles in turn on the same examples, and the first of them once more, against itself."""
    builds: dict[str, Callable[[], loops.Runner]] = {}

    def loading(folder: str) -> Callable[[], loops.Runner]:
        def load() -> loops.Runner:
            queries = Queries(step, folder)
            return loops.Runner(queries.run, queries.close)

        return load

    names = [*step["bundles"], step["bundles"][0]]
    for number, folder in enumerate(names):
        builds[str(number)] = loading(folder)
    others = conditions.Others()
    found = loops.interleave_for(
        builds, len(step["examples"]), step["seconds"], step["rounds"], step["seed"],
        lambda done, total: progress(done, total, f"timing {len(step['bundles'])} bundles in turn"),
    )  # fmt: skip
    return {
        "times": [found[str(number)] for number in range(len(names))],
        "others": others.read({os.getpid(), os.getppid()}),
    }


def sustain(step: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """One load that is kept busy for long: latencies in windows, with clocks, temperatures and watts beside them."""
    meters = energy.find()
    idle = _idle_watts(meters)
    queries = Queries(step)
    made, settled = loops.warm_up(queries.run, len(queries))
    window_seconds = min(_WINDOW_SECONDS, step["seconds"] / 20)
    windows: list[dict[str, Any]] = []
    began = time.perf_counter()
    index = 0
    while (at := time.perf_counter() - began) < step["seconds"]:
        before = {meter.name: meter.read() for meter in meters}
        taken: list[float] = []
        while time.perf_counter() - began - at < window_seconds:
            taken.append(sum(queries.run(index % len(queries))))
            index += 1
        seconds = time.perf_counter() - began - at
        windows.append(
            {
                "at_s": at,
                "count": len(taken),
                "p50_s": float(np.median(taken)),
                "p99_s": float(np.percentile(taken, 99)),
                "watts": {meter.name: (meter.read() - before[meter.name]) / seconds for meter in meters},
                "conditions": {
                    "clock_mhz": conditions.clocks(),
                    "temperature_c": conditions.temperatures(),
                    "throttled": conditions.throttled(),
                },
            }
        )
        progress(int(at * 10), int(step["seconds"] * 10), f"{at / 60:.0f} min: {np.median(taken) * 1e3:.2f} ms")
    engine = queries.pipeline.engine.describe()
    queries.close()
    for meter in meters:
        meter.close()
    return {"windows": windows, "idle_watts": idle, "warm_up_runs": [made], "stable": settled, "engine": engine}


def operators(step: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The time of every operator of the model, as its runtime's own profiler tells it."""
    from toolkit import profilers

    queries = Queries(step)
    arrays = [queries.pipeline.encoder(example) for example in queries.examples]
    manifest = queries.pipeline.manifest
    queries.close()
    profiler = profilers.get(manifest.engine)
    found = profiler.profile(manifest.artifact, step.get("threads") or manifest.threads, arrays, step["runs"])
    return {"operators": [each.as_dict() for each in found], "source": profiler.SOURCE}


def answers(step: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """What the engine answers to each example: of a device whose times mean nothing."""
    queries = Queries(step)
    found = [queries.answers(index) for index in range(len(queries))]
    return {
        "engine": queries.pipeline.engine.describe(),
        "answers": [
            {
                name: {"dtype": str(array.dtype), "shape": array.shape, "values": array.ravel().tolist()}
                for name, array in each.items()
            }
            for each in found
        ],
    }


Steps = Mapping[str, Callable[[Mapping[str, Any], Progress], dict[str, Any]]]
STEPS: Steps = {
    "start": start,
    "times": times,
    "compare": compare,
    "sustain": sustain,
    "operators": operators,
    "answers": answers,
}


def main(step_file: str, steps: Steps = STEPS) -> int:
    """Run the step of `steps` that `step_file` describes and write the result that it names."""
    entered = time.monotonic()
    from toolkit.child import die_with_parent
    from toolkit.errors import ToolkitError
    from toolkit.storage import write_json

    step = {**json.loads(Path(step_file).read_text(encoding="utf-8")), "entered": entered}
    die_with_parent(int(step["parent"]))
    shown = 0.0

    def progress(done: int, total: int, text: str) -> None:
        nonlocal shown
        if time.monotonic() - shown > 0.2 or done >= total:
            shown = time.monotonic()
            print(json.dumps({"done": done, "total": total, "text": text}), flush=True)

    try:
        result = steps[step["what"]](step, progress)
    except ToolkitError as error:
        kind = getattr(error, "kind", "error")
        write_json(Path(step["result"]), {"error": str(error), "kind": kind, "exit_code": error.exit_code})
        return 1
    write_json(Path(step["result"]), result)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
