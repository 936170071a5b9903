"""LiteRT files: by the tables of LiteRT, of its XNNPACK delegate, and of the Edge TPU. What is looked at is the first
graph of a file; one with a graph for each input length has the same network in all of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.asking import ask
from toolkit.coverage import Observed, Placement, partitions
from toolkit.errors import missing_extra
from toolkit.rules import litert_graph

if TYPE_CHECKING:
    from toolkit.rules.table import Table

_WRAPPER = "Named.model."  # toolkit.export.traceable: what a checkpoint is exported in
_ASK = Path(__file__).with_name("ask_litert.py")


def predict(path: Path, table: Table) -> list[Placement]:
    """Where the operators of the first graph run. Raises InputError, MissingDependencyError."""
    operators = litert_graph.operators(path)
    return [
        Placement(
            each.name,
            each.kind,
            each.module.removeprefix(_WRAPPER),
            tuple(map(str, each.inputs)),
            tuple(map(str, each.outputs)),
        ).judged(found, table)
        for each, found in zip(operators, litert_graph.findings(operators, table), strict=True)
    ]


def parts(placements: Sequence[Placement]) -> int:
    """As an interpreter cuts a graph for a delegate."""
    return partitions.epochs(placements)


def observe(path: Path, timeout_seconds: float) -> Observed:
    """What LiteRT's interpreter leaves to its XNNPACK delegate. Raises MissingDependencyError."""
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise missing_extra("ai-edge-litert", "litert", "Asking LiteRT's delegate")
    said = ask(_ASK, path, timeout_seconds, "LiteRT")
    if isinstance(said, str):
        return Observed("XNNPACK", None, reason=said)
    taken = delegated(said["operators"], said["delegates"])
    rest = frozenset(range(len(said["operators"]))) - taken
    unseen = rest & ending_in_variables(said["operators"])
    runtime = f"XNNPACK of ai-edge-litert {said['version']}"
    return Observed(runtime, rest - unseen, len(said["delegates"]), unseen=unseen)


def delegated(operators: Sequence[Mapping[str, Any]], delegates: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """The places of the operators that delegates replaced, from what each delegate reads and gives, as `ask_litert.py`
    tells it: all that lead from the one to the other, and what reads a tensor that stays inside."""
    producers = {name: place for place, each in enumerate(operators) for name in each["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        outside = set(delegate["inputs"])
        following = list(delegate["outputs"])
        while following:
            name = following.pop()
            place = producers.get(name)
            if place is not None and place not in taken and name not in outside:
                taken.add(place)
                following += operators[place]["inputs"]
    given = {name for delegate in delegates for name in delegate["outputs"]}
    for place, each in enumerate(operators):  # those that write a variable give nothing
        inner = [name for name in each["inputs"] if producers.get(name) in taken and name not in given]
        if place not in taken and inner:
            taken.add(place)
    return frozenset(taken)


def ending_in_variables(operators: Sequence[Mapping[str, Any]]) -> frozenset[int]:
    """The places of operators that lead to nothing but variables: a delegate that takes them alone gives no tensor by
    which that could be seen."""
    found: set[int] = set()
    readers: dict[int, list[int]] = {}
    for place, each in enumerate(operators):
        for name in each["inputs"]:
            readers.setdefault(name, []).append(place)
    for place in reversed(range(len(operators))):
        behind = [reader for name in operators[place]["outputs"] for reader in readers.get(name, [])]
        writes = operators[place]["operator"] == "ASSIGN_VARIABLE"
        if writes or (behind and all(reader in found for reader in behind)):
            found.add(place)
    return frozenset(found)
