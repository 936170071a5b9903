"""ONNX files for TensorRT: by the tables of its releases and of DLA, and by the parts that NVIDIA's parser makes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.coverage import Observed, Placement, partitions
from toolkit.coverage.onnx_nodes import load, placed
from toolkit.rules import onnx_graph
from toolkit.tensorrt import preflight

if TYPE_CHECKING:
    from toolkit.rules.table import Table

_NOT_IMPORTED = ("Invalid Node", "Assertion failed")  # what such an error begins with


def predict(path: Path, table: Table) -> list[Placement]:
    """Where the nodes of the main graph run. Raises InputError, MissingDependencyError."""
    graph = onnx_graph.read(load(path))
    whole = onnx_graph.opset(graph, table)
    found = onnx_graph.findings(graph, table)
    return placed(graph, [whole or each for each in found], table)


def parts(placements: Sequence[Placement]) -> int:
    """Runs in the file's order."""
    return partitions.runs(placements)


def observe(path: Path, timeout_seconds: float) -> Observed:
    """Which nodes the parser of TensorRT-RTX leaves out of all its parts. It names every operator that it lacks; at a
    node that it has and cannot import it stops. Raises MissingDependencyError."""
    said = preflight.answer(path, timeout_seconds)
    if isinstance(said, str):
        return Observed(preflight.PACKAGE, None, reason=said)
    taken = [frozenset(part) for part in said["parts"]]
    fallen = frozenset(range(len(load(path).graph.node))).difference(*taken)
    stopped = any(error["said"].startswith(_NOT_IMPORTED) for error in said["errors"])
    until = min(fallen) if stopped and fallen else None
    return Observed(f"the parser of TensorRT-RTX {said['version']}", fallen, len(taken), until)
