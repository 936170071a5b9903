"""Where two builds of one model part: what `toolkit bisect` does.

A difference in the answers says nothing about where it comes from, and behind a faulty layer all others differ too. So
the second model is run once with every module's value replaced by the first model's: then each module works on the
first model's inputs, and what it makes differently is its own doing. That takes one run for all modules, where halving
the graph takes a run for each step, and it finds several faults at once.

Both models are known by the PyTorch modules that they are made of (`toolkit.probes`). A module that an exporter made
one with others has no value of its own; the next module behind it is named, and what it holds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import plot
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.probes import OUTPUT, Probe
from toolkit.storage import explained, write_atomic

# Signal-to-noise ratio, in dB, below which a module computes something else, whatever its precision.
FLOOR_DB = {"fp32": 60.0, "bf16": 20.0, "fp16": 30.0, "int8": 8.0, "int4": 3.0}
# What a module may lie below the median of its role, in dB: like layers bear a precision about equally well.
OUTLIER_DB = 20.0
_EXACT_DB = 200.0


@dataclass(frozen=True)
class Difference:
    """How far a value is from the one it should be."""

    max_abs: float
    sqnr_db: float  # signal to quantization noise: 10 log10(Σ a² / Σ (a - b)²)
    cosine: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.max_abs)


@dataclass(frozen=True)
class Row:
    """One module: what came down to it, and what it adds."""

    module: str
    kind: str  # the operator that computes it in the second model
    holds: list[str]  # modules of the first model that the second has no value of, and that are in this one
    whole: Difference  # in a run of the second model alone
    own: Difference  # with the first model's inputs

    @property
    def role(self) -> str:
        """What the module is in the model, whichever layer it is in: its name without numbers, and what computes it."""
        parts = ["*" if part.isdigit() else part for part in self.module.split(".")]
        return f"{'.'.join(parts)} ({self.kind})"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Bisection:
    """What was found."""

    rows: list[Row]
    output: Difference
    faulty: list[Row]  # in the order of computation
    limits: dict[str, float]  # by role, in dB
    runs: dict[str, int]

    @property
    def first(self) -> Row | None:
        return self.faulty[0] if self.faulty else None

    def as_dict(self) -> dict[str, Any]:
        return {
            "first": self.first.module if self.first else None,
            "holds": self.first.holds if self.first else [],
            "faulty": [row.module for row in self.faulty],
            "output": asdict(self.output),
            "limits_db": self.limits,
            "runs": self.runs,
            "modules": [row.as_dict() for row in self.rows],
        }


class _Sums:
    """Sums over examples, from which a difference follows."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.product = self.largest = 0.0

    def add(self, expected: NDArray[Any], found: NDArray[Any]) -> None:
        a, b = expected.astype(np.float64).ravel(), found.astype(np.float64).ravel()
        with np.errstate(invalid="ignore", over="ignore"):
            error = a - b
            self.signal += float(a @ a)
            self.other += float(b @ b)
            self.noise += float(error @ error)
            self.product += float(a @ b)
            self.largest = (
                max(self.largest, float(np.abs(error).max(initial=0.0))) if np.isfinite(error).all() else math.inf
            )

    def difference(self) -> Difference:
        if not math.isfinite(self.largest):
            return Difference(math.inf, -_EXACT_DB, 0.0)
        ratio = self.signal / self.noise if self.noise else math.inf
        sqnr = _EXACT_DB if math.isinf(ratio) else 10 * math.log10(ratio) if ratio else -_EXACT_DB
        norms = math.sqrt(self.signal) * math.sqrt(self.other)
        return Difference(self.largest, min(sqnr, _EXACT_DB), self.product / norms if norms else 1.0)


def bisect(
    first: Probe,
    second: Probe,
    examples: Sequence[Arrays],
    precision: str = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Bisection:
    """Compare `second` with `first`, which is right, over encoded examples (one row each). `precision` is the second
    model's: how much its modules may differ. Raises InputError if the two have no module in common."""
    if not examples:
        raise InputError("There are no examples to compare the models on.")
    total = 3 * len(examples)
    expected, alone, forced = [], [], []
    for inputs in examples:
        expected.append(first.run(inputs, None, {}))
        progress(len(expected), total)
    for inputs in examples:
        alone.append(second.run(inputs, None, {}))
        progress(len(expected) + len(alone), total)
    names = aliases(list(first.modules), list(second.modules))
    names = {a: b for a, b in names.items() if all(fits(e[a], r[b]) for e, r in zip(expected, alone, strict=True))}
    names = _without_shells(names, expected[0], alone[0])
    last = channels_last(names, expected, alone)
    alone = [_as_first(values, last) for values in alone]
    folded = _folded(first, names)
    names = {folded.get(a, a): b for a, b in names.items()}
    if not names:
        raise InputError(
            "The two models have no module in common by name and shape, so there is nothing to compare inside. "
            "`toolkit check` compares their inputs and answers."
        )
    wanted = list(names.values())
    for inputs, values in zip(examples, expected, strict=True):
        given = {b: _as_second(values[a]) if b in last else values[a] for a, b in names.items()}
        forced.append(_as_first(second.run(inputs, wanted, given), last))
        progress(len(expected) + len(alone) + len(forced), total)
    order = [name for name in first.modules if name in names]
    holds, unmatched = _held(list(first.modules), order)
    rows = [
        Row(
            name, second.modules[names[name]], holds[name],
            difference(expected, alone, name, names[name]), difference(expected, forced, name, names[name]),
        )
        for name in order
    ]  # fmt: skip
    # What is behind the last module, and what has no tensor of its own there.
    output = difference(expected, alone, OUTPUT, OUTPUT)
    rows.append(Row(OUTPUT, "output", unmatched, output, difference(expected, forced, OUTPUT, OUTPUT)))
    limits = _limits(rows, precision)
    faulty = [row for row in rows if not row.own.is_finite or row.own.sqnr_db < limits[row.role]]
    runs = {"first": 1, "second": 2, "examples": len(examples)}
    return Bisection(rows, output, faulty, limits, runs)


def around(found: Bisection, margin: int = 3) -> list[Row]:
    """The rows that differ with some before and behind each; without any, those that differ most."""
    if not found.faulty:
        worst = sorted(found.rows, key=lambda row: row.own.sqnr_db)[: 2 * margin]
        return [row for row in found.rows if row in worst]
    places = [place for place, row in enumerate(found.rows) if row in found.faulty]
    return [r for i, r in enumerate(found.rows) if any(abs(i - place) <= margin for place in places)]


def write_plot(found: Bisection, path: Path) -> None:
    """A plot of what each module keeps of the signal, as an SVG file. Raises InputError if it cannot be written."""
    rows = [(row.module, row.own.sqnr_db, f"{row.own.sqnr_db:.1f} dB") for row in found.rows]
    picture = plot.bars(
        "Signal to noise of each module's own work",
        rows,
        legend="dB, on the first model's inputs; in the other colour: what differs",
        marked=[row.module for row in found.faulty],
    )
    with explained("writing the plot", path):
        write_atomic(path, picture)


def difference(expected: Sequence[Arrays], found: Sequence[Arrays], name: str, other: str) -> Difference:
    sums = _Sums()
    for right, said in zip(expected, found, strict=True):
        sums.add(right[name], said[other].reshape(right[name].shape))
    return sums.difference()


def aliases(first: Sequence[str], second: Sequence[str]) -> dict[str, str]:
    """The modules of `second` by their names in `first`.

    An exporter may wrap a model, so that all names begin with a part or two more, and leave out containers that are
    never called, as lists of layers are.
    """
    called = set(first)
    short: dict[str, list[str]] = {}
    for name in first:
        parts = name.split(".")
        kept = [p for i, p in enumerate(parts) if ".".join(parts[: i + 1]) in called]
        short.setdefault(".".join(kept), []).append(name)
    found: dict[str, str] = {}
    prefixes = {"", *(".".join(name.split(".")[:count]) + "." for name in second for count in (1, 2))}

    def named(prefix: str) -> dict[str, str]:
        matched = {}
        for name in second:
            if not name.startswith(prefix):
                continue
            rest = name.removeprefix(prefix)
            if rest in called:
                matched[rest] = name
            elif len(short.get(rest, ())) == 1:
                matched[short[rest][0]] = name
        return matched

    for prefix in sorted(prefixes):
        matched = named(prefix)
        if len(matched) > len(found):
            found = matched
    return {name: found[name] for name in first if name in found}


def fits(value: NDArray[Any], other: NDArray[Any]) -> bool:
    """Whether two values can be of one module: as many numbers, in one order or with channels last."""
    if value.ndim == 4 == other.ndim:
        return other.shape in (value.shape, _as_second(value).shape)
    return value.size == other.size and value.shape[-1] == other.shape[-1]


def channels_last(names: Mapping[str, str], expected: Sequence[Arrays], alone: Sequence[Arrays]) -> set[str]:
    """The modules of the second model whose images have their channels behind height and width.

    Where the shape does not tell, the layout is the one in which the values are alike; where they are not, that of the
    model's other images.
    """
    found, unsure = set(), []
    certain = [0, 0]
    for name, other in names.items():
        mine, value = expected[0][name], alone[0][other]
        if mine.ndim != 4 or value.ndim != 4:
            continue
        kept, moved = value.shape == mine.shape, value.shape == _as_second(mine).shape
        if kept and moved:
            unsure.append((name, other))
        else:
            certain[moved] += 1
            found |= {other} if moved else set()
    for name, other in unsure:
        mine, value = expected[0][name], alone[0][other]
        ratios = []
        for candidate in (value, value.transpose(0, 3, 1, 2)):
            sums = _Sums()
            sums.add(mine, candidate)
            ratios.append(sums.difference().sqnr_db)
        alike = max(ratios) > FLOOR_DB["bf16"]
        if ratios[1] > ratios[0] if alike else certain[1] > certain[0]:
            found.add(other)
    return found


def _as_second(value: NDArray[Any]) -> NDArray[Any]:
    """An image's channels behind its height and width."""
    return value.transpose(0, 2, 3, 1)


def _as_first(values: Arrays, last: set[str]) -> Arrays:
    """Values in PyTorch's layout; those of `last` have their channels at the end."""
    return {name: value.transpose(0, 3, 1, 2) if name in last else value for name, value in values.items()}


def _without_shells(names: Mapping[str, str], expected: Arrays, alone: Arrays) -> dict[str, str]:
    """The modules without those whose end the second model has not: it hands on the value of a module inside, while the
    first goes on from there, as with an activation that became the range of a quantizer."""
    kept = {}
    for name, other in names.items():
        inner = (n for n in names if n.startswith(f"{name}.") and np.array_equal(alone[names[n]], alone[other]))
        if not any(expected[n].shape != expected[name].shape or not _alike(expected[n], expected[name]) for n in inner):
            kept[name] = other
    return kept


def _alike(value: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool(np.allclose(value, other, rtol=1e-4, atol=1e-4 * float(np.abs(value).max(initial=0.0))))


def _folded(first: Probe, names: Mapping[str, str]) -> dict[str, str]:
    """Layers into whose weights an exporter folded the norm behind them: layer → norm, whose value it now has."""
    order = list(first.modules)
    return {
        name: following
        for name, following in itertools.pairwise(order)
        if name in names and following not in names and "BatchNorm" in first.modules[following]
    }


def _held(all_modules: Sequence[str], order: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """(by module with a value, the modules before it that have none: their work shows in its value; those behind the
    last)."""
    holds: dict[str, list[str]] = {name: [] for name in order}
    waiting: list[str] = []
    for name in all_modules:
        if name in holds:
            holds[name] = [each for each in waiting if not name.startswith(f"{each}.")]
            waiting = []
        else:
            waiting.append(name)
    return holds, waiting


def _limits(rows: Sequence[Row], precision: str) -> dict[str, float]:
    """By role, the ratio that a module's own work must reach."""
    if precision not in FLOOR_DB:
        raise InputError(f"Unknown precision '{precision}'; known: {', '.join(FLOOR_DB)}.")
    by_role: dict[str, list[float]] = {}
    for row in rows:
        by_role.setdefault(row.role, []).append(row.own.sqnr_db)
    floor = FLOOR_DB[precision]
    limits = {}
    for name, ratios in by_role.items():
        usual = statistics.median(ratios) - OUTLIER_DB if len(ratios) > 2 else floor
        limits[name] = max(floor, min(usual, FLOOR_DB["fp32"]))
    return limits
