"""A record of what the steps of a benchmark gave."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

import toolkit
from toolkit.bench import record as records
from toolkit.bench import statistics
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted
from toolkit.devices import Device, Outcome, Settings
from toolkit.errors import MissingDependencyError, ToolkitError
from toolkit.runtime.manifest import Manifest
from toolkit.storage import sha256_json

_NOISY_PERCENT = 5.0  # a floor that is worth a warning
# What makes one device another; the rest of what it says of itself may differ from day to day.
_FINGERPRINT = ("cpu_model", "architecture", "isa", "cores", "ram_gb", "gpu", "soc", "browser", "device", "name")


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


def assembled(
    device: Device,
    facts: Mapping[str, Any],
    manifest: Manifest,
    protocol: records.Protocol,
    steps: Sequence[dict[str, Any]],
    outcome: Outcome,
    wanted: Wanted,
) -> Record:
    """The record of a run: of all steps that ended, and why the others did not."""
    made = _begun(device, facts, manifest, protocol)
    made.conditions, made.others = outcome.conditions, outcome.others
    made.failure = records.Failure.model_validate(outcome.failed) if outcome.failed else None
    # A device that did less than it was asked for says so in its result.
    found = [
        ({**step, **result.get("as_run", {})}, result)
        for step, result in zip(steps, outcome.results, strict=True)
        if result is not None
    ]
    return warned(_with_modules(_filled(made, found, wanted), manifest.artifact), wanted)


def failed(device: Device, manifest: Manifest, protocol: records.Protocol, error: ToolkitError) -> Record:
    """The record of a device that ran nothing: it stands beside those of other devices."""
    facts: dict[str, Any] = {}
    with contextlib.suppress(ToolkitError):
        facts = device.describe()
    made = _begun(device, facts, manifest, protocol)
    made.failure = records.Failure(kind="error", error=str(error), exit_code=error.exit_code)
    return made


def _begun(device: Device, facts: Mapping[str, Any], manifest: Manifest, protocol: records.Protocol) -> Record:
    return Record(
        kind=device.kind,
        clock=device.clock,
        created=now(),
        toolkit=toolkit.__version__,
        bundle=bundle_of(manifest),
        device=device_of(device.address, facts),
        protocol=protocol,
    )


Step = tuple[dict[str, Any], dict[str, Any]]  # what was asked, what it gave
AnyRecord = TypeVar("AnyRecord", Record, records.ComparisonRecord)


def _filled(made: Record, found: Sequence[Step], wanted: Wanted) -> Record:
    """A record with all that the steps gave."""
    starts = [(step, result) for step, result in found if step["what"] == "start"]
    made.cold_start = start_of([result for step, result in starts if step["cold"]])
    made.warm_start = start_of([result for step, result in starts if not step["cold"]])
    if starts:
        made.memory = memory_of([result for _, result in starts])
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


def start_of(results: Sequence[Mapping[str, Any]]) -> records.ColdStart | None:
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


def memory_of(results: Sequence[Mapping[str, Any]]) -> records.Memory:
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


def _with_modules(made: Record, artifact: Path) -> Record:
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
