"""What the engines of a target would take of a model, what falls back, and what it may cost, before anything is sent to
a device."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from toolkit import checkpoint as checkpoints
from toolkit import costs, coverage, estimate, model_file, rules, steps, tasks
from toolkit.coverage import Coverage, Observed, costing
from toolkit.errors import InputError, MissingDependencyError, ToolkitError
from toolkit.estimate import Row
from toolkit.export import OLDEST_OPSET
from toolkit.gates import coverage as gate
from toolkit.gates.speed import Latency
from toolkit.runner import Reporter
from toolkit.runtime import manifest as manifests
from toolkit.storage import read_json
from toolkit.target import EngineSupport, Precision, Target

LENGTH = 128  # tokens at which a checkpoint of texts is looked at


@dataclass(frozen=True)
class EngineCoverage:
    """What one engine of a target takes. `limit` is the share of the multiply-adds that may fall back, None without
    one; `passed` is None where there is no limit or the share is not known. `observed` is what the runtime that is
    installed here does, if it was asked. `latency` is an estimate from the target's profile, and `costs` its parts;
    both are None where the profile says too little, or where `uncounted` says why the costs are not known."""

    engine: str
    processor: str | None
    coverage: Coverage
    limit: float | None
    observed: Observed | None
    latency: Latency | None = None
    costs: Sequence[Row] | None = None
    uncounted: str = ""

    @property
    def passed(self) -> bool | None:
        exceeds = gate.exceeds(self.coverage.as_dict(), self.limit)
        unknown = self.limit is None or (self.coverage.fallback.multiply_adds is None and not exceeds)
        return None if unknown else not exceeds

    def as_dict(self) -> dict[str, Any]:
        seen = self.observed
        return {
            "engine": self.engine,
            "processor": self.processor,
            **self.coverage.as_dict(),
            "limit": self.limit,
            "passed": self.passed,
            "estimate": self.latency
            and {"ms": self.latency.ms, "low_ms": self.latency.low_ms, "high_ms": self.latency.high_ms},
            "modules": [
                {"module": name, "operators": kinds, "ms": ms} for name, kinds, ms in by_module(self.costs or ())
            ],
            "observed": seen
            and {
                "runtime": seen.runtime,
                "operators": None if seen.fallen is None else len(seen.fallen),
                "partitions": seen.partitions,
                "stopped_at": seen.until,
                "reason": seen.reason,
            },
        }


def of(
    path: Path,
    target: Target,
    *,
    sizes: Mapping[str, int] | None = None,
    ask: bool = False,
    cache_dir: str | None = None,
    allow_code: bool = False,
    reporter: Reporter | None = None,
) -> list[EngineCoverage]:
    """What each engine and other runtime of a target takes of a file, of a bundle's artifact, or of a checkpoint, which
    is exported to float for it. `ask` also asks the runtimes that are installed here. Raises InputError.

    `sizes` are those of dynamic axes by name; `length` is 128 for a checkpoint if it is not given.
    """
    given = dict(sizes or {})
    if path.suffix in model_file.SUFFIXES:
        if not path.is_file():
            raise InputError(f"{path} is not a file.")
        return _of_file(path, target, given, ask)
    if (path / manifests.FILE_NAME).exists():
        manifest = manifests.read(path)
        manifests.verify_files(manifest)
        return _of_file(manifest.artifact, target, given, ask, manifest.engine)
    if (path / "artifact.json").is_file():
        return _of_file(path / read_json(path / "artifact.json")["path"], target, given, ask)
    return _of_checkpoint(path, target, given, ask, cache_dir=cache_dir, allow_code=allow_code, reporter=reporter)


def _of_checkpoint(
    path: Path, target: Target, sizes: dict[str, int], ask: bool, **exporting: Any
) -> list[EngineCoverage]:
    """A checkpoint, exported in float for every engine of a target that has a rule table."""
    task = tasks.of(checkpoints.check_folder(path))
    engines = [each for each in target.engines if each.coverage_rules]
    if not engines:
        raise InputError(
            f"{path} is a checkpoint, and there is no engine of target '{target.name}' with a rule table to export it "
            "for; give an ONNX or a LiteRT file."
        )
    unknown = sorted(set(sizes) - {"batch", "length"})
    if unknown:
        raise InputError(f"--size {unknown[0]}: of a checkpoint batch and length can be given.")
    length = sizes.setdefault("length", min(LENGTH, checkpoints.inspect(path, task).model_limit))
    found = []
    with tempfile.TemporaryDirectory(prefix="toolkit-inspect-") as folder:
        for engine in engines:
            output = Path(folder) / engine.name
            opset = engine.onnx_opset_max if (engine.onnx_opset_max or 0) >= OLDEST_OPSET else None
            steps.export(str(path), str(output), engine=engine.name, lengths=[length], opset=opset, **exporting)
            file = output / read_json(output / "artifact.json")["path"]
            found.append(_one(file, target, engine.name, sizes, ask))
    return found


def _tables(target: Target) -> dict[str, tuple[str, str | None, float | None]]:
    """The runtimes of a target that have a rule table: name → (table, processor, limit)."""
    found: dict[str, tuple[str, str | None, float | None]] = {}
    for engine in target.engines:
        if engine.coverage_rules:
            found[engine.name] = (engine.coverage_rules, engine.processor, engine.fallback_limit)
    for other in target.other_runtimes:
        if other.rules:
            found[other.name] = (other.rules, other.processor, None)
    return found


def _of_file(
    path: Path, target: Target, sizes: Mapping[str, int], ask: bool, engine: str | None = None
) -> list[EngineCoverage]:
    """A file on all runtimes that read it, or on the one engine that it was made for, if the target has that."""
    tables = _tables(target)
    fitting = [name for name, (table, *_) in tables.items() if coverage.reads(rules.load(table).engine, path)]
    fitting = [engine] if engine in fitting else fitting
    if not fitting:
        known = ", ".join(f"{name} ({table})" for name, (table, *_) in tables.items()) or "none"
        raise InputError(
            f"{path}: no runtime of target '{target.name}' that has a rule table reads {path.suffix} files; those that "
            f"have one: {known}."
        )
    used = costing.complete(path, sizes)
    for name, size in sizes.items():
        if name not in used:
            raise InputError(f"--size {name}: {path} has no such dynamic axis; it has: {', '.join(used) or 'none'}.")
        if used[name] != size:
            raise InputError(f"--size {name}={size}: {path} is looked at in its first graph, of {name} {used[name]}.")
    return [_one(path, target, name, sizes, ask) for name in fitting]


def _one(path: Path, target: Target, name: str, sizes: Mapping[str, int], ask: bool) -> EngineCoverage:
    table_name, processor, limit = _tables(target)[name]
    table = rules.load(table_name)
    observed = None
    if ask:
        try:
            observed = coverage.runtime(table.engine).observe(path, coverage.TIMEOUT_SECONDS)
        except MissingDependencyError as error:
            observed = Observed(table.title, None, reason=str(error))
    engine = next((each for each in target.engines if each.name == name), None)
    latency, parts, why = _estimated(path, target, engine, sizes) if engine else (None, None, "")
    return EngineCoverage(name, processor, coverage.of(path, table, sizes), limit, observed, latency, parts, why)


def _estimated(
    path: Path, target: Target, engine: EngineSupport, sizes: Mapping[str, int]
) -> tuple[Latency | None, list[Row] | None, str]:
    """What one inference may take, its parts, and why its costs are not known."""
    precision = cast(Precision, model_file.precision_of(path))
    try:
        operations = costs.of_engine(path, costing.complete(path, sizes), engine.name)
    except ToolkitError as error:  # ONNX Runtime is not installed, or does not take the file
        return None, None, str(error)
    return (
        estimate.latency(target, engine, precision, operations),
        estimate.rows(target, engine, precision, operations),
        "",
    )


def by_module(parts: Sequence[Row]) -> list[tuple[str, str, float]]:
    """(PyTorch module, its operators, milliseconds), the most expensive first; "" is the model itself."""
    times: dict[str, float] = {}
    kinds: dict[str, Counter[str]] = {}
    for row in parts:
        name = row.operation.module
        times[name] = times.get(name, 0.0) + row.ms
        kinds.setdefault(name, Counter())[row.operation.kind] += 1
    return [
        (name, ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in kinds[name].most_common(3)), ms)
        for name, ms in sorted(times.items(), key=lambda item: -item[1])
    ]


HEAD = (
    "engine",
    "rule table",
    "operators",
    "fall back",
    "of multiply-adds",
    "of bytes",
    "not known",
    "parts",
    "crossings",
)
OFFENDERS_HEAD = ("PyTorch module", "operators", "of multiply-adds", "rule", "why", "instead")


def rows(found: list[EngineCoverage]) -> list[tuple[str, ...]]:
    """One row per engine, under `HEAD`."""
    return [
        (
            each.engine, each.coverage.table, str(each.coverage.operators), str(each.coverage.fallback.operators),
            _percent(each.coverage.fallback.multiply_adds), _percent(each.coverage.fallback.bytes),
            str(each.coverage.unknown.operators), str(each.coverage.partitions), str(each.coverage.crossings),
        )
        for each in found
    ]  # fmt: skip


def offender_rows(found: Coverage, most: int) -> list[tuple[str, ...]]:
    """One row per module, operator and reason, under `OFFENDERS_HEAD`; those with most multiply-adds first, at most
    `most` of them."""
    return [
        (
            each.module or "(the model)", f"{each.count} {each.operator}", _percent(each.multiply_adds),
            each.rule if each.known else "not in the table", each.reason,
            each.instead or f"see `toolkit targets rules {found.table} {each.operator}`",
        )
        for each in found.offenders[:most]
    ]  # fmt: skip


def verdict(each: EngineCoverage) -> str:
    """One line on an engine: within its limit, above it, or why neither is said."""
    fallen = each.coverage.fallback
    said = f"{each.engine}: {fallen.operators} operators fall back"
    if fallen.multiply_adds is not None:
        said += f", {gate.percent(fallen.multiply_adds)} of the multiply-adds"
    if each.limit is None:
        return f"{said}; the target sets no limit"
    outcome = {True: "within the limit", False: "ABOVE THE LIMIT", None: "not known"}[each.passed]
    return f"{said}; {gate.allowed(each.limit)}: {outcome}"


def observation(observed: Observed, operators: int) -> str:
    """One line on what an installed runtime did."""
    if observed.fallen is None:
        return f"{observed.runtime} gives no answer: {observed.reason}"
    said = f"{observed.runtime}, asked: {len(observed.fallen)} of {operators} operators fall back"
    if observed.partitions is not None:
        said += f", {observed.partitions} part{'' if observed.partitions == 1 else 's'}"
    return said + (f"; it stopped at the operator number {observed.until}" if observed.until is not None else "")


def estimated(each: EngineCoverage) -> str:
    """One line on what an inference may take."""
    if each.uncounted:
        return f"no estimate: {each.uncounted}"
    if each.latency is None:
        return "no estimate: the profile has no peak rate or calibration for this engine and precision"
    return f"an inference takes, by the profile: {each.latency}; most likely {each.latency.ms:.2g}"


TIMES_HEAD = ("PyTorch module", "operators", "estimate")


def time_rows(parts: Sequence[Row], most: int) -> list[tuple[str, ...]]:
    """One row per module, under `TIMES_HEAD`, at most `most`."""
    total = sum(row.ms for row in parts) or 1.0
    return [
        (name or "(the model)", kinds, f"{ms:.3g} ms ({gate.percent(ms / total)})")
        for name, kinds, ms in by_module(parts)[:most]
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else gate.percent(share)
