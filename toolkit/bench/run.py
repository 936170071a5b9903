"""Benching a bundle on a device: plan the steps, have the device run them, make the record."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import toolkit
from toolkit import bundle as bundles
from toolkit import devices, tasks
from toolkit.bench import record as records
from toolkit.bench import statistics
from toolkit.bench.record import Record
from toolkit.devices import Device, Settings
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runner import Reporter, Silent
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest
from toolkit.storage import sha256_json

MLPERF_SECONDS, MLPERF_QUERIES = 60.0, 1024  # the least of a single-stream run by MLPerf's rules
_MINIMUM_QUERIES = 50
_EXAMPLES = 64  # at most, of those that are given: every round runs all of them to warm up
_MOST = 2000  # that are read
_PROFILE_RUNS = 10
_NOISY_PERCENT = 5.0  # a floor that is worth a warning
# What makes one device another; the rest of what it says of itself may differ from day to day.
_FINGERPRINT = ("cpu_model", "architecture", "isa", "cores", "ram_gb", "gpu", "soc", "browser", "device", "name")


@dataclass(frozen=True)
class Wanted:
    """What is to be measured, and for how long. `precision_percent` is the noise floor above which a run is refused;
    None: a high one is only warned of."""

    seconds: float = 5.0
    protocol: str = "quick"
    threads: int | None = None
    data: str | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    sweep: Mapping[str, Sequence[int]] = field(default_factory=dict)  # threads, batch, length
    sustain_seconds: float | None = None
    operators: bool = False
    precision_percent: float | None = None
    starts: int = 3  # of either kind
    rounds: int = 8
    seed: int = 0


def examples_of(manifest: Manifest, data: str | None, seed: int = 0, most: int = _EXAMPLES) -> tuple[list[Any], str]:
    """(examples as JSON that the bundle's pipeline can read, where they come from). Raises InputError."""
    if data is None:
        return [entry["input"] for entry in bundles.golden_of(manifest)], "the bundle's golden examples"
    path = Path(data)
    if not path.exists():
        raise InputError(f"Data file {path} does not exist.")
    found = tasks.get(manifest.task).examples_of(path, _MOST)
    if not found:
        raise InputError(f"{path} holds no examples.")
    if len(found) > most:
        chosen = sorted(np.random.default_rng(seed).permutation(len(found))[:most])
        found = [found[int(place)] for place in chosen]
    return found, path.name


def read_bundle(folder: Path) -> Manifest:
    """The manifest of a whole bundle. Raises InputError."""
    manifest = manifests.read(folder)
    manifests.verify_files(manifest)
    return manifest


def bench(
    bundle: str,
    addresses: Sequence[str] = (devices.LOCAL,),
    wanted: Wanted | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> list[Record]:
    """Measure a bundle on devices and return a record for each, in their order.

    Devices that take this machine's processors are used one after the other, all others side by side. What was measured
    before something failed is in the record, with its `failure`. Raises InputError for a damaged bundle or an address
    that is none, MissingDependencyError for a device that is not reached.
    """
    wanted, reporter = wanted or Wanted(), reporter or Silent()
    settings = settings or Settings(cache=Path())
    manifest = read_bundle(Path(bundle))
    examples, origin = examples_of(manifest, wanted.data, wanted.seed)
    with connected(addresses, settings) as reached:

        def one(device: Device) -> Record:
            return _bench(device, manifest, examples, origin, wanted, settings, reporter)

        with ThreadPoolExecutor(max_workers=max(1, len(reached))) as pool:
            away = {device.address: pool.submit(one, device) for device in reached if not device.here}
            try:
                here = {device.address: one(device) for device in reached if device.here}
                return [away[d.address].result() if d.address in away else here[d.address] for d in reached]
            except BaseException:
                for device in reached:  # ends what still runs elsewhere: its thread is waited for
                    device.close()
                raise


@contextlib.contextmanager
def connected(addresses: Sequence[str], settings: Settings) -> Iterator[list[Device]]:
    """The devices at addresses, which are left at the end of the block."""
    with contextlib.ExitStack() as stack:
        reached = []
        for address in dict.fromkeys(addresses):
            device = devices.connect(address, settings)
            stack.callback(device.close)
            reached.append(device)
        yield reached


def _bench(
    device: Device,
    manifest: Manifest,
    examples: list[Any],
    origin: str,
    wanted: Wanted,
    settings: Settings,
    reporter: Reporter,
) -> Record:
    """One record."""
    title = f"bench {manifest.folder.name} on {device.address}"
    reporter.started(title)
    try:
        place = device.push(manifest.folder, "bundle")
        steps = [step for step in planned(manifest, place, examples, wanted, settings) if step["what"] in device.steps]
        if not steps:
            raise InputError(f"{device.address} can do nothing of what is wanted.")
        outcome = device.run(steps, lambda done, total, text: reporter.progress(title, done, total, text))
        facts = device.describe()
    except BaseException as error:
        reporter.failed(title, str(error))
        raise
    made = Record(
        kind=device.kind,
        clock=device.clock,
        created=now(),
        toolkit=toolkit.__version__,
        bundle=bundle_of(manifest),
        device=device_of(device.address, facts),
        protocol=protocol_of(wanted, settings, manifest, len(examples), origin),
        conditions=outcome.conditions,
        others=outcome.others,
        failure=records.Failure.model_validate(outcome.failed) if outcome.failed else None,
    )
    # A device that did less than it was asked for says so in its result.
    found = [
        ({**step, **result.get("as_run", {})}, result)
        for step, result in zip(steps, outcome.results, strict=True)
        if result is not None
    ]
    return warned(with_modules(_filled(made, found, wanted), manifest.artifact), wanted)


def planned(
    manifest: Manifest, place: str, examples: list[Any], wanted: Wanted, settings: Settings
) -> list[dict[str, Any]]:
    """All steps of a benchmark, for a bundle that lies at `place` on the device; not every device can do all."""
    shared: dict[str, Any] = {
        "bundle": place,
        "examples": examples,
        "threads": wanted.threads,
        "sizes": dict(wanted.sizes) or None,
        "seed": wanted.seed,
        "timeout_seconds": settings.timeout_seconds,
    }
    if wanted.sustain_seconds is not None:
        return [{**shared, "what": "sustain", "seconds": wanted.sustain_seconds}]
    steps = [{**shared, "what": "start", "cold": cold} for cold in (True, False) for _ in range(wanted.starts)]
    timed: dict[str, Any] = {"what": "times", "rounds": wanted.rounds, "seconds": wanted.seconds}
    if wanted.protocol == "mlperf":  # one load; the noise is measured beside it
        steps.append({**shared, **timed, "seconds": 5.0, "queries": 0, "noise": True})
        timed |= {"rounds": 1, "seconds": max(wanted.seconds, MLPERF_SECONDS), "queries": MLPERF_QUERIES}
    steps.append({**shared, "queries": _MINIMUM_QUERIES, **timed})
    threads = manifest.threads if wanted.threads is None else wanted.threads
    for sizes, count in _points(wanted, threads):
        point = {"rounds": 4, "seconds": min(wanted.seconds, 2.0), "queries": 20, "sizes": sizes, "threads": count}
        steps.append({**shared, "what": "times", **point, "point": True})
    if wanted.operators:
        steps.append({**shared, "what": "operators", "runs": _PROFILE_RUNS})
    steps += [{**shared, "what": name} for name in ("count", "arena", "cycles", "answers")]
    return steps


def _points(wanted: Wanted, threads: int) -> Iterator[tuple[dict[str, int], int]]:
    """The points of a sweep: sizes and threads; one of them is varied at a time."""
    for count in wanted.sweep.get("threads", ()):
        yield {**wanted.sizes} or {"batch": 1}, count
    for name in ("batch", "length"):
        for size in wanted.sweep.get(name, ()):
            yield {**wanted.sizes, name: size}, threads


def now() -> str:
    """The time of day for a record."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def bundle_of(manifest: Manifest) -> records.Bundle:
    """The bundle's part of a record."""
    score = (manifest.data.get("metrics") or {}).get("score") or {}
    return records.Bundle(
        name=manifest.folder.name,
        content_hash=manifest.data["content_hash"],
        task=manifest.task,
        target=str(manifest.data["target"]["name"]),
        engine=manifest.engine,
        precision=manifest.data["artifact"]["precision"],
        artifact_bytes=manifest.data["artifact"]["size_bytes"],
        bundle_bytes=sum(entry["bytes"] for entry in manifest.data["files"].values()),
        score=score.get("after"),
        score_name=score.get("name"),
    )


def device_of(address: str, facts: Mapping[str, Any]) -> records.Device:
    """The device's part of a record."""
    stable = {key: facts[key] for key in _FINGERPRINT if key in facts}
    title = facts.get("title") or facts.get("soc") or facts.get("cpu_model") or address
    return records.Device(address=address, title=str(title), fingerprint=sha256_json(stable)[:16], facts=dict(facts))


def protocol_of(wanted: Wanted, settings: Settings, manifest: Manifest, examples: int, origin: str) -> records.Protocol:
    """The protocol's part of a record, as far as it is known beforehand."""
    sustained = wanted.sustain_seconds is not None
    return records.Protocol.model_validate(
        {
            "name": "sustain" if sustained else wanted.protocol,
            "threads": wanted.threads or manifest.threads,
            "cores": list(settings.cores) or None,
            "memory_limit_bytes": settings.memory_bytes,
            "sizes": dict(wanted.sizes) or None,
            "examples": examples,
            "examples_from": origin,
            "seed": wanted.seed,
        }
    )


Step = tuple[dict[str, Any], dict[str, Any]]  # what was asked, what it gave
AnyRecord = TypeVar("AnyRecord", Record, records.ComparisonRecord)


def _filled(made: Record, found: Sequence[Step], wanted: Wanted) -> Record:
    """A record with all that the steps gave."""
    starts = [(step, result) for step, result in found if step["what"] == "start"]
    made.cold_start = _start([result for step, result in starts if step["cold"]])
    made.warm_start = _start([result for step, result in starts if not step["cold"]])
    if starts:
        made.memory = _memory([result for _, result in starts])
        made.engine = starts[0][1]["engine"]
    for step, result in found:
        if step["what"] == "times" and step.get("point"):
            made.sweep = [*(made.sweep or []), _point(step, result)]
        elif step["what"] == "times" and "told" in result:
            made.told, made.engine = result["told"], result["engine"]
            made.protocol.seconds, made.protocol.least_queries = step["seconds"], step["queries"]
            made.protocol.examples, made.protocol.examples_from = 0, "inputs of its own"
        elif step["what"] == "times" and step.get("noise"):
            made.noise = _noise(result["rounds"])
        elif step["what"] == "times":
            _add_times(made, step, result, wanted.seed)
        elif step["what"] == "sustain":
            made.sustained = sustained(result["windows"])
            made.engine = result["engine"]
            made.protocol.seconds = step["seconds"]
        elif step["what"] == "count":
            made.engine, made.answers, each = result["engine"], result["answers"], result["instructions"]
            made.instructions = {name: float(np.mean([one[name] for one in each])) for name in each[0]}
            made.protocol.name, made.protocol.threads, made.protocol.examples = "count", 1, len(each)
        elif step["what"] == "answers":
            made.engine, made.answers = made.engine or result["engine"], result["answers"]
        elif step["what"] == "arena":
            made.engine, made.answers, made.arena = result["engine"], result["answers"], result["arena"]
            made.protocol.name, made.protocol.threads, made.protocol.examples = (
                "arena",
                1,
                result["answers"]["examples"],
            )
        elif step["what"] == "cycles":
            made.cycles = result["cycles"]
        elif step["what"] == "operators":
            made.operators = _operators(result["operators"])
            made.operators_from = result["source"]
        made.warnings += [text for text in result.get("warnings", []) if text not in made.warnings]
    if made.engine is not None:
        made.protocol.threads = made.engine.get("threads", made.protocol.threads)
    if {step["what"] for step, _ in found} == {"answers"}:
        made.protocol.name, made.protocol.examples = "answers", found[0][1]["answers"]["examples"]
    return made


def _add_times(made: Record, step: Mapping[str, Any], result: Mapping[str, Any], seed: int) -> None:
    """Latency, its parts, throughput, noise and energy from timed rounds."""
    rounds = result["rounds"]
    whole = [np.sum([each[name] for name in each], axis=0) for each in rounds]
    made.latency = records.Distribution.model_validate(statistics.distribution(whole, seed))
    if step.get("sizes") is None:
        made.parts = {
            name: records.Distribution.model_validate(statistics.distribution([each[name] for each in rounds], seed))
            for name in rounds[0]
        }
    made.round_p50_ms = [round(float(np.median(each)) * 1e3, 5) for each in whole]
    count = sum(len(each) for each in whole)
    made.throughput_per_s = round(count / float(sum(each.sum() for each in whole)), 3)
    if len(rounds) >= 4:
        made.noise = _noise(rounds)
    made.engine = result["engine"]
    made.others = result.get("others") or made.others
    made.protocol.seconds, made.protocol.least_queries = step["seconds"], step["queries"]
    made.protocol.rounds, made.protocol.examples = step["rounds"], len(step["examples"])
    made.protocol.threads = step["threads"] or made.protocol.threads
    made.protocol.warm_up_runs, made.protocol.stable = result["warm_up_runs"], result["stable"]
    if result.get("energy"):
        made.energy = [_energy(each, count) for each in result["energy"]]


def _energy(found: Mapping[str, Any], count: int) -> records.Energy:
    watts = found["joules"] / found["seconds"]
    return records.Energy(
        meter=found["meter"],
        covers=found["covers"],
        joules_per_inference=(found["joules"] - found["idle_watts"] * found["seconds"]) / count,
        watts=watts,
        idle_watts=found["idle_watts"],
    )


def _noise(rounds: Sequence[Mapping[str, Sequence[float]]]) -> records.Noise:
    """Half of the rounds against the other half. The floor is how far the interval reaches away from equal."""
    found = statistics.halves([[sum(parts) for parts in zip(*each.values(), strict=True)] for each in rounds])
    return noise_of(found, len(rounds))


def noise_of(found: statistics.Comparison, rounds: int) -> records.Noise:
    """The noise of a bundle that was compared with itself."""
    floor = max(abs(np.log(found.low)), abs(np.log(found.high)))
    return records.Noise(
        floor_percent=round(float(np.expm1(floor)) * 100, 2), ratio=found.ratio, low=found.low, high=found.high,
        rounds=rounds,
    )  # fmt: skip


def _start(results: Sequence[Mapping[str, Any]]) -> records.ColdStart | None:
    if not results:
        return None

    def median(name: str) -> float:
        return round(float(np.median([result[name] for result in results])) * 1e3, 3)

    resident = [result.get("cold_resident") for result in results]
    return records.ColdStart(
        process_ms=median("process_s"),
        load_ms=median("load_s"),
        first_inference_ms=median("first_inference_s"),
        starts=len(results),
        resident=None if None in resident else round(float(np.median([r for r in resident if r is not None])), 4),
    )


def _memory(results: Sequence[Mapping[str, Any]]) -> records.Memory:
    """Of the start whose peak is the median one."""
    found = sorted((each["memory"] for each in results), key=lambda each: each["peak_rss_bytes"] or 0)
    middle = found[len(found) // 2]
    before, after = (middle[name].get("private_dirty_bytes") for name in ("before_load", "after_first_inference"))
    delta = after - before if before is not None and after is not None else None
    return records.Memory.model_validate({**middle, "model_delta_bytes": delta})


def _point(step: Mapping[str, Any], result: Mapping[str, Any]) -> records.SweepPoint:
    found = statistics.distribution([each["inference"] for each in result["rounds"]])
    sizes = step["sizes"]
    batch = sizes.get("batch", 1)
    return records.SweepPoint.model_validate(
        {
            "threads": step["threads"], "batch": batch, "length": sizes.get("length"), "inference": found,
            "examples_per_s": round(1e3 * batch / found["mean_ms"]["value"], 3),
        }
    )  # fmt: skip


def _operators(found: Sequence[Mapping[str, Any]]) -> list[records.Operator]:
    total = sum(each["seconds"] * each["calls"] for each in found) or 1.0
    return [
        records.Operator(
            name=each["name"],
            kind=each["kind"],
            ms=round(each["seconds"] * each["calls"] * 1e3, 6),
            share=round(each["seconds"] * each["calls"] / total, 6),
            where=each["where"],
            module=each.get("module"),
        )
        for each in found
    ]


def sustained(windows: Sequence[Mapping[str, Any]]) -> records.Sustained:
    """A curve and what it says. Latencies of windows are medians, so that a burst of other work does not look like a
    device that is throttled."""
    p50 = np.asarray([window["p50_s"] for window in windows]) * 1e3
    at = np.asarray([window["at_s"] for window in windows])
    first = float(np.median(p50[at < 60.0]))
    steady = float(np.median(p50[-max(1, len(p50) // 5) :]))
    above = p50 > 1.05 * first
    stays = int(np.argmin(above[::-1])) if not above.all() else len(above)  # windows at the end that are all above
    after = float(at[len(at) - stays]) if stays >= max(2, len(above) // 20) else None
    return records.Sustained(
        seconds=float(at[-1]),
        first_minute_ms=round(first, 5),
        steady_ms=round(steady, 5),
        slowdown=round(steady / first, 4),
        throttled_after_s=after,
        windows=[
            records.Window(
                at_s=round(window["at_s"], 3),
                count=window["count"],
                p50_ms=round(window["p50_s"] * 1e3, 5),
                p99_ms=round(window["p99_s"] * 1e3, 5),
                watts=window["watts"],
                conditions=window["conditions"],
            )
            for window in windows
        ],
    )


def warned(made: AnyRecord, wanted: Wanted) -> AnyRecord:
    """The record with what a reader should be warned of. A floor above the asked precision is a failure."""
    if made.noise is not None:
        floor = made.noise.floor_percent
        if wanted.precision_percent is not None and floor > wanted.precision_percent and made.failure is None:
            made.failure = records.Failure(
                kind="error",
                error=f"{made.device.address}: the noise floor of this run is {floor:.1f} %, above the asked "
                f"{wanted.precision_percent:g} %. Measure for longer with --seconds, or on a quieter machine.",
                exit_code=1,
            )
        elif floor > _NOISY_PERCENT:
            made.warnings.append(f"noise floor {floor:.1f} %: differences below that cannot be seen in this run")
    if made.protocol.stable is False:
        made.warnings.append("times were not stable yet when they were taken")
    heavy = made.others.get("heavy_processes") or []
    if heavy:
        busy = ", ".join(f"{each['name']} ({each['cores']:g} cores)" for each in heavy[:3])
        made.warnings.append(f"other work ran at the time: {busy}")
    stolen = made.others.get("stolen_cores")
    if stolen and stolen > 0.02:
        made.warnings.append(f"the hypervisor took {stolen:.2f} cores for others")
    for name in ("before", "after"):
        state = made.conditions.get(name) or {}
        throttle = state.get("throttled") or {}
        if throttle.get("now"):
            made.warnings.append(f"the device was held back {name} the run: {', '.join(throttle['now'])}")
        if state.get("governors") and set(state["governors"]) & {"powersave", "ondemand", "conservative", "schedutil"}:
            made.warnings.append(f"CPU governor {'/'.join(state['governors'])}: clocks change while it is measured")
            break
    return made


def with_modules(made: Record, artifact: Path) -> Record:
    """The record with the module of the model that every operator came from, where the file tells it."""
    if not made.operators:
        return made
    from toolkit.bench import modules

    try:
        places = modules.of_operators(artifact, made.bundle.engine, [each.name for each in made.operators])
    except MissingDependencyError as error:
        made.warnings.append(f"operators without their modules: {error}")
        return made
    for operator in made.operators:
        operator.module = places.get(operator.name)
    return made
