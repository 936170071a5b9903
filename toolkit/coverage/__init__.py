"""Coverage: which operators of a file an engine runs as they should run, told from rule tables without the device.

    found = coverage.of(Path("model.onnx"), rules.load("tensorrt-10.3"), {"batch": 1, "length": 128})
    found.fallback.multiply_adds, found.partitions      # the share that falls back; the parts that are left

What counts is the share of multiply-adds and of bytes, not of nodes: one convolution outweighs a hundred reshapes. To
fall back means: of a delegate or an accelerator, to run elsewhere; of TensorRT, that no engine is built; of ONNX
Runtime on the CPU, to run in float although the file says integers, or in fp32 although it says fp16.

One file per runtime, each with the same three functions:

    predict(path, table) -> list[Placement]           by the rule table; the runtime is not needed
    parts(placements) -> int                           into how many parts the runtime cuts what it takes
    observe(path, timeout_seconds) -> Observed         what the runtime that is installed here does with the file
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from toolkit.coverage import costing, partitions

if TYPE_CHECKING:
    from toolkit.rules.onnx_graph import Finding
    from toolkit.rules.table import Table

TIMEOUT_SECONDS = 120.0
ONE_PART = "edgetpu-one-part"  # in targets/shared/limits.yaml

# The rule tables of an engine → the file that predicts by them, and the suffix of what it reads.
_MODULES = {
    "tensorrt": ("toolkit.coverage.tensorrt", ".onnx"),
    "tensorrt-rtx": ("toolkit.coverage.tensorrt", ".onnx"),
    "dla": ("toolkit.coverage.tensorrt", ".onnx"),
    "onnxruntime": ("toolkit.coverage.onnxruntime", ".onnx"),
    "litert": ("toolkit.coverage.litert", ".tflite"),
    "tflite-runtime": ("toolkit.coverage.litert", ".tflite"),
    "xnnpack": ("toolkit.coverage.litert", ".tflite"),
    "edgetpu": ("toolkit.coverage.litert", ".tflite"),
}


@dataclass(frozen=True)
class Placement:
    """Where an operator runs. `taken` is None where the table does not know the operator. `inputs` and `outputs` are
    names of tensors; `rule`, `reason` and `instead` say why it is not taken and what to do."""

    name: str
    operator: str
    module: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taken: bool | None = True
    rule: str = ""
    reason: str = ""
    instead: str = ""

    def judged(self, found: Finding | str | None, table: Table) -> Placement:
        """The same after a rule table was asked: it found a rule broken, or an operator that it does not know."""
        if isinstance(found, str):
            return replace(self, taken=None, rule=found, reason=f"{table.title} does not list {found}")
        if found is not None:
            return replace(self, taken=False, rule=found.rule, reason=found.reason, instead=found.instead)
        return self


@dataclass(frozen=True)
class Observed:
    """What a runtime did. `fallen` are the places of operators that it did not take, None if it gave no answer, which
    `reason` explains. It went no further than the place `until`, if that is given. `partitions` says how many parts it
    made of the rest, None where it makes none. Of `unseen` it does not show what became of them."""

    runtime: str
    fallen: frozenset[int] | None
    partitions: int | None = None
    until: int | None = None
    unseen: frozenset[int] = frozenset()
    reason: str = ""


@dataclass(frozen=True)
class Share:
    """A part of a model: of its operators, and from 0 to 1 of its multiply-adds and of the bytes that it moves (None
    where its costs are not known)."""

    operators: int
    multiply_adds: float | None
    bytes: float | None


@dataclass(frozen=True)
class Offender:
    """Operators of one kind in one PyTorch module that fall back, or are not known, for one reason."""

    module: str
    operator: str
    rule: str
    reason: str
    instead: str
    known: bool
    count: int
    multiply_adds: float | None


@dataclass(frozen=True)
class Coverage:
    """What a rule table says of a file. `note` says at which sizes costs were counted, and what was not; `counted` is
    whether all were."""

    table: str
    title: str
    operators: int
    fallback: Share
    unknown: Share
    partitions: int
    crossings: int
    offenders: list[Offender]
    counted: bool
    note: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class RuntimeCoverage(Protocol):
    """What every runtime's file offers."""

    def predict(self, path: Path, table: Table) -> list[Placement]:
        """Where a table says that the operators of a file's main graph run. Raises InputError."""

    def parts(self, placements: Sequence[Placement]) -> int:
        """How many parts the operators make that are taken."""

    def observe(self, path: Path, timeout_seconds: float) -> Observed:
        """What the installed runtime does. Raises MissingDependencyError."""


def runtime(engine: str) -> RuntimeCoverage:
    """The file for rule tables of an engine; KeyError for one that has none."""
    return cast(RuntimeCoverage, importlib.import_module(_MODULES[engine][0]))


def reads(engine: str, path: Path) -> bool:
    """Whether tables of an engine speak of files like this one."""
    return engine in _MODULES and _MODULES[engine][1] == path.suffix


def predict(path: Path, table: Table) -> list[Placement]:
    """Where each operator of a file's main graph runs, by a rule table. Raises InputError."""
    return one_part(runtime(table.engine).predict(path, table), table)


def one_part(placements: list[Placement], table: Table) -> list[Placement]:
    """The placements where a compiler cuts a model once: behind the first operator that is not taken, none is."""
    if ONE_PART not in table.statements:
        return placements
    first = next((n for n, each in enumerate(placements) if each.taken is False), len(placements))
    said = table.statements[ONE_PART]
    behind = [
        replace(each, taken=False, rule=ONE_PART, reason=said.statement, instead=said.instead) if each.taken else each
        for each in placements[first:]
    ]
    return [*placements[:first], *behind]


def of(path: Path, table: Table, sizes: Mapping[str, int]) -> Coverage:
    """What a table says of a file, in shares. `sizes` are those of its inputs' dynamic axes by name, as of
    `toolkit.costs.operations`; an axis that is not named is 1 if it is the first, else 128. Raises InputError."""
    placements = predict(path, table)
    counts = costing.of(path, len(placements), sizes)
    costs = counts.costs
    fallen = [n for n, each in enumerate(placements) if each.taken is False]
    unknown = [n for n, each in enumerate(placements) if each.taken is None]
    return Coverage(
        table.name,
        table.title,
        len(placements),
        _share(fallen, costs),
        _share(unknown, costs),
        runtime(table.engine).parts(placements),
        partitions.crossings(placements),
        _offenders(placements, costs),
        counts.complete,
        counts.note,
    )


def _share(places: Sequence[int], costs: Sequence[costing.Cost] | None) -> Share:
    if costs is None:
        return Share(len(places), None, None)
    products, moved = (sum(each.multiply_adds for each in costs), sum(each.bytes for each in costs))
    own = [costs[place] for place in places]
    return Share(
        len(places),
        sum(each.multiply_adds for each in own) / products if products else 0.0,
        sum(each.bytes for each in own) / moved if moved else 0.0,
    )


def _offenders(placements: Sequence[Placement], costs: Sequence[costing.Cost] | None) -> list[Offender]:
    """Operators that are not taken, by module, kind and reason; those with most multiply-adds first."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, each in enumerate(placements):
        if not each.taken:
            key = (each.module, each.operator, each.rule, each.reason, each.instead, each.taken is False)
            groups.setdefault(key, []).append(place)
    found = [
        Offender(module, operator, rule, reason, instead, known, len(places), _share(places, costs).multiply_adds)
        for (module, operator, rule, reason, instead, known), places in groups.items()
    ]
    return sorted(found, key=lambda each: (not each.known, -(each.multiply_adds or 0), -each.count))
