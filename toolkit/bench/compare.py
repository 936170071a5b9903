"""Comparing bundles on a device: all of them in turn in one run, or one of them against a stored record."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydantic import ValidationError

import toolkit
from toolkit import devices
from toolkit.bench import assembly, run, statistics
from toolkit.bench import record as records
from toolkit.bench.record import ComparisonRecord, Ratio, Record
from toolkit.bench.steps import Wanted, allowed_seconds
from toolkit.devices import Device, Settings
from toolkit.errors import InputError, RefusedError
from toolkit.runner import Reporter, Silent
from toolkit.runtime.manifest import Manifest

SECONDS = 20.0
_LEAST_ROUNDS = 6
_EXAMPLES = 30


def compare(
    bundles: Sequence[str],
    address: str = devices.LOCAL,
    wanted: Wanted | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> ComparisonRecord:
    """Time two bundles or more in turn, query by query, on the same examples; each against the first of them.

    The examples are those of `wanted.data`, or the first bundle's golden ones. Every round loads all bundles anew, and
    the first of them once more, which gives the noise floor. Raises InputError for bundles of different tasks.
    """
    wanted, reporter = wanted or Wanted(seconds=SECONDS), reporter or Silent()
    if len(bundles) < 2:
        raise InputError("Name two bundles or more, or a bundle and the record of another run with --baseline.")
    manifests = [run.read_bundle(Path(bundle)) for bundle in bundles]
    other = next((each for each in manifests if each.task != manifests[0].task), None)
    if other is not None:
        raise InputError(
            f"{manifests[0].folder} is for {manifests[0].task} and {other.folder} for {other.task}: they do not take "
            "the same examples."
        )
    with contextlib.ExitStack() as stack:
        settings = settings or Settings(cache=Path(stack.enter_context(tempfile.TemporaryDirectory())))
        (device,) = stack.enter_context(run.connected([address], settings))
        if "compare" not in device.steps:
            raise InputError(f"{address} cannot run bundles in turn; bench each of them there.")
        return _compare(device, manifests, wanted, settings, reporter)


def _compare(
    device: Device, manifests: Sequence[Manifest], wanted: Wanted, settings: Settings, reporter: Reporter
) -> ComparisonRecord:
    first = manifests[0]
    examples, origin = run.examples_of(first, wanted.data, wanted.seed, _EXAMPLES)
    title = f"compare {len(manifests)} bundles on {device.address}"
    reporter.started(title)
    try:
        places = [device.push(each.folder, f"bundle-{number}") for number, each in enumerate(manifests)]
        step = {
            "what": "compare", "bundles": places, "examples": examples, "threads": wanted.threads,
            "sizes": dict(wanted.sizes) or None, "seconds": wanted.seconds, "rounds": _LEAST_ROUNDS,
            "seed": wanted.seed, "timeout_seconds": allowed_seconds(settings, wanted.seconds),
        }  # fmt: skip
        outcome = device.run([step], lambda done, total, text: reporter.progress(title, done, total, text))
        facts = device.describe()
    except BaseException as error:
        reporter.failed(title, str(error))
        raise
    protocol = assembly.protocol_of(wanted, settings, first, len(examples), origin)
    made = ComparisonRecord(
        kind="emulated" if device.kind == "emulated" else "measured",
        clock=device.clock,
        created=assembly.now(),
        toolkit=toolkit.__version__,
        bundles=[assembly.bundle_of(each) for each in manifests],
        device=assembly.device_of(device.address, facts),
        protocol=protocol,
        conditions=outcome.conditions,
        others=outcome.others,
        failure=records.Failure.model_validate(outcome.failed) if outcome.failed else None,
    )
    result = outcome.results[0]
    if result is not None:
        _fill(made, result["times"], wanted)
        made.others, made.warnings = result["others"], result.get("warnings", [])
        made.protocol.rounds, made.protocol.seconds = len(result["times"][0]), wanted.seconds
    return assembly.warned(made, wanted)


def _fill(made: ComparisonRecord, times: Sequence[Sequence[Sequence[float]]], wanted: Wanted) -> None:
    """Ratios to the first, its noise, and everybody's latency. `times` are seconds by bundle, round and example, those
    of the first bundle once more at the end."""
    again = statistics.compare(times[-1], times[0], wanted.seed)
    made.noise = assembly.noise_of(again, len(times[0]))
    for bundle, found in zip(made.bundles, times, strict=False):
        medians = np.median(np.asarray(found), axis=0)
        made.latency.append(records.Distribution.model_validate(statistics.distribution([medians], wanted.seed)))
        if len(made.latency) > 1:
            made.ratios.append(Ratio(bundle=bundle.name, **statistics.compare(found, times[0], wanted.seed).as_dict()))


def with_stored(bundle: Record, stored: Record) -> Ratio:
    """A record against a stored one of the same device. Raises InputError where they cannot be compared."""
    if bundle.device.fingerprint != stored.device.fingerprint:
        raise InputError(
            f"The stored record was made on {stored.device.title} ({stored.device.fingerprint}), this one on "
            f"{bundle.device.title} ({bundle.device.fingerprint}): times of different devices are not compared."
        )
    if min(len(bundle.round_p50_ms), len(stored.round_p50_ms)) < 2:
        raise InputError("A record of a single round says nothing of its own noise; measure with the quick protocol.")
    ours, theirs = bundle.protocol, stored.protocol
    for name in ("threads", "cores", "memory_limit_bytes", "sizes", "examples", "examples_from", "seed"):
        if getattr(ours, name) != getattr(theirs, name):
            raise InputError(
                f"The stored record was measured with {name} {getattr(theirs, name)}, this one with "
                f"{getattr(ours, name)}: measure with the same."
            )
    found = statistics.independent(bundle.round_p50_ms, stored.round_p50_ms)
    return Ratio(bundle=bundle.bundle.name, how="stored", **found.as_dict())


def read(path: Path) -> Record:
    """A record that `toolkit bench -o` wrote. Raises InputError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        found = found[0] if isinstance(found, list) and len(found) == 1 else found
        return Record.model_validate(found)
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except (ValueError, ValidationError) as error:
        raise InputError(
            f"{path} is not the record of one bundle on one device: `toolkit bench -o` writes it."
        ) from error


def refuse_slower(ratios: Sequence[Ratio], noise: records.Noise | None, percent: float) -> None:
    """Raise RefusedError if a bundle is slower than the first by more than `percent`, or if the run was too noisy to
    tell."""
    for ratio in ratios:
        if ratio.verdict == "slower" and ratio.ratio > 1 + percent / 100:
            raise RefusedError(
                f"{ratio.bundle} takes {ratio.ratio:.3f} times as long ({ratio.low:.3f}-{ratio.high:.3f}): slower by "
                f"more than {percent:g} %."
            )
        if ratio.low <= 1 and ratio.high > 1 + percent / 100:
            floor = f"; the noise floor of this run is {noise.floor_percent:.1f} %" if noise else ""
            raise RefusedError(
                f"{ratio.bundle}: {ratio.ratio:.3f} ({ratio.low:.3f}-{ratio.high:.3f}) does not tell whether it is "
                f"slower by {percent:g} %{floor}. Measure for longer with --seconds, or on a quieter machine."
            )
