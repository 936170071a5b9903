"""Timing the kernels of engines on this machine: a target's calibration."""

from __future__ import annotations

import datetime
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from toolkit import costs, engines, kernels
from toolkit.costs.work import PRODUCTS, Work
from toolkit.devices import local
from toolkit.errors import InputError, MissingDependencyError
from toolkit.kernels import Kernel
from toolkit.target import Calibration, KernelTime, Target

ROUNDS = 5
_WARM_UP = 3
_LEAST_RUNS = 7
_LEAST_SECONDS = 0.01  # of one kernel in one round
_RESTLESS = 1.15  # rounds that differ by more, in the median

Progress = Callable[[int, int], None]


def _silent(done: int, total: int) -> None:
    """For whom nothing is shown."""


@dataclass(frozen=True)
class Measured:
    """Calibrations, how much their rounds differed (the median over kernels of the slowest round by the fastest), and
    what should be known of them: engines that are left out, and why figures may be worse than the machine's."""

    calibrations: list[Calibration]
    spread: float
    notes: list[str]


def of_target(
    target: Target, threads: Sequence[int], *, seed: int = 0, rounds: int = ROUNDS, progress: Progress = _silent
) -> Measured:
    """Calibrate all engines of a target's CPU that are installed here, for each number of threads.

    Raises InputError if this machine does not stand for the target, or has fewer cores, and MissingDependencyError if
    none of the engines is installed.
    """
    if not local.stands_for(target):
        raise InputError(
            f"This machine is no '{target.name}': it is measured here, so it must have that CPU's architecture and "
            "vector extensions. Run the command there."
        )
    for count in threads:
        if count > local.cores():
            raise InputError(f"--threads {count}: this machine has {local.cores()} cores.")
    wanted = [each.name for each in target.engines if each.processor == "cpu" and each.name in kernels.names()]
    if not wanted:
        raise InputError(f"Target '{target.name}' has no engine on its CPU that can be calibrated.")
    missing: list[MissingDependencyError] = []
    found: list[str] = []
    for name in wanted:
        try:
            kernels.check(name)
            found.append(name)
        except MissingDependencyError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    pairs = [(engine, count) for engine in found for count in threads]
    calibrations, spreads = [], []
    for number, (engine, count) in enumerate(pairs):

        def step(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(pairs) * total)

        calibration, spread = measure(engine, count, seed=seed, rounds=rounds, progress=step)
        calibrations.append(calibration)
        spreads.append(spread)
    notes = [*map(str, missing), *_doubts(max(spreads), load, max(threads))]
    return Measured(calibrations, max(spreads), notes)


def _doubts(spread: float, load: float, threads: int) -> list[str]:
    """Why figures may be worse than the machine's."""
    made = []
    if spread > _RESTLESS:
        made.append(f"rounds differed by {spread - 1:.0%} in the median: something else ran, or the clock moved.")
    if load + threads > local.cores() + 0.5:
        made.append(f"the load was {load:.1f} before it began: other programs took part of the cores.")
    return made


def measure(
    engine: str, threads: int, *, seed: int = 0, rounds: int = ROUNDS, progress: Progress = _silent
) -> tuple[Calibration, float]:
    """The calibration of an engine with a number of threads, and how much rounds differed: the median over kernels of
    the slowest round's time by the fastest's.

    Every round loads all kernels anew, one after the other in another order, so that a change of the machine's speed
    hits no class of them alone. Of each kernel the fastest round counts, for other programs only add time. Raises
    MissingDependencyError without the engine.
    """
    module = kernels.get(engine)
    runtime = engines.get(engine)
    wanted = kernels.of_engine(engine)
    generator = np.random.default_rng(seed)
    times: dict[Kernel, list[float]] = {kernel: [] for kernel in wanted}
    with tempfile.TemporaryDirectory() as folder:
        files = {kernel: Path(folder) / f"{kernel.name}{module.SUFFIX}" for kernel in wanted}
        inputs = {kernel: module.write(kernel, path, seed) for kernel, path in files.items()}
        for done in range(rounds):
            for place, number in enumerate(generator.permutation(len(wanted))):
                kernel = wanted[int(number)]
                loaded = runtime.load(files[kernel], threads)
                times[kernel].append(median_seconds(loaded, inputs[kernel]))
                loaded.close()
                progress(done * len(wanted) + place + 1, rounds * len(wanted))
        counted = {kernel: costs.of_engine(path, {}, engine) for kernel, path in files.items()}
    seconds = {kernel: min(found) for kernel, found in times.items()}
    many, few = launches = kernels.launches(engine)
    operator = max(0.0, (seconds[many] - seconds[few]) / (many.repeats - few.repeats))
    call = max(0.0, seconds[few] - few.repeats * operator)
    calibration = Calibration(
        engine=engine,
        version=runtime.version(),
        threads=threads,
        operator_us=_rounded(operator * 1e6),
        call_us=_rounded(call * 1e6),
        kernels=list(_times({k: took for k, took in seconds.items() if k not in launches}, counted, call)),
    )
    return calibration, statistics.median(max(found) / min(found) for found in times.values())


def median_seconds(engine: engines.Engine, inputs: engines.Arrays) -> float:
    """The median time of an inference once the engine is warm."""
    for _ in range(_WARM_UP):
        engine.run(inputs)
    found: list[float] = []
    while len(found) < _LEAST_RUNS or sum(found) < _LEAST_SECONDS:
        started = time.perf_counter()
        engine.run(inputs)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _times(
    seconds: dict[Kernel, float], counted: dict[Kernel, list[costs.Operation]], call: float
) -> Iterator[KernelTime]:
    """Per operation, without what an inference costs beside them."""
    for kernel, took in seconds.items():
        kinds = Counter(each.kind for each in counted[kernel] if each.work == kernel.work and each.runs)
        kind = kinds.most_common(1)[0][0]  # what the engine makes of it; at the ends it may quantize
        own = [each for each in counted[kernel] if each.kind == kind]
        each = max(took - call, took / 10) / kernel.repeats
        yield KernelTime(
            work=kernel.work,
            kind=kind,
            precision=kernel.dtype,
            multiply_adds=round(statistics.mean(one.multiply_adds for one in own)),
            weight_bytes=round(statistics.mean(one.weight_bytes for one in own)),
            activation_bytes=round(statistics.mean(one.activation_bytes for one in own)),
            repeats=kernel.repeats,
            time_us=_rounded(each * 1e6),
        )


def _rounded(value: float) -> float:
    """Four digits are more than a measurement has."""
    return float(f"{value:.4g}")


def source(calibrations: Sequence[Calibration], seed: int, rounds: int) -> str:
    """Where the numbers come from, for the profile's sources."""
    described = local.describe()
    versions = ", ".join(dict.fromkeys(f"{one.engine} {one.version}" for one in calibrations))
    counts = ", ".join(dict.fromkeys(str(one.threads) for one in calibrations))
    return (
        f"toolkit targets calibrate, {datetime.date.today().isoformat()}: {described['cpu_model']}, "
        f"{described['cores']} cores, {described['system']}; {versions}; threads {counts}; fastest of {rounds} rounds, "
        f"seed {seed}"
    )


def rates(calibration: Calibration) -> list[tuple[str, str, str, str]]:
    """Per class of work and precision how many kernels were timed, and at which rates they ran."""
    found: dict[tuple[Work, str], list[float]] = {}
    for kernel in calibration.kernels:
        key = (kernel.work, kernel.precision)
        if kernel.multiply_adds:
            found.setdefault(key, []).append(2e-3 * kernel.multiply_adds / kernel.time_us)
        elif kernel.activation_bytes:
            bytes_ = kernel.activation_bytes + kernel.weight_bytes
            found.setdefault(key, []).append(1e-3 * bytes_ / kernel.time_us)
    return [
        (
            work,
            precision,
            str(len(reached)),
            f"{min(reached):.3g} to {max(reached):.3g} {'G operations/s' if work in PRODUCTS else 'GB/s'}",
        )
        for (work, precision), reached in found.items()
    ]
