"""ONNX files for ONNX Runtime on the CPU, whose provider takes every node that it has a kernel for. What falls back is
what runs in another number format than the file says: in float between Q/DQ pairs, in fp32 where fp16 is written.

The wheel for the CPU has no other provider that a model could be split with."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.asking import ask
from toolkit.coverage import Observed, Placement, partitions
from toolkit.coverage.onnx_nodes import load, placed
from toolkit.errors import missing_extra
from toolkit.rules import onnx_graph, onnx_precision

if TYPE_CHECKING:
    from toolkit.rules.table import Table

_ASK = Path(__file__).with_name("ask_onnxruntime.py")


def predict(path: Path, table: Table) -> list[Placement]:
    """Where the nodes of the main graph run as the file says. Raises InputError, MissingDependencyError."""
    graph = onnx_graph.read(load(path))
    whole = onnx_graph.opset(graph, table)
    refused = onnx_graph.findings(graph, table)
    changed = onnx_precision.changed(graph, table)
    found = [whole or first or second for first, second in zip(refused, changed, strict=True)]
    return placed(graph, found, table)


def parts(placements: Sequence[Placement]) -> int:
    """Runs in the file's order."""
    return partitions.runs(placements)


def observe(path: Path, timeout_seconds: float) -> Observed:
    """Which nodes the installed runtime runs in another number format, by the graph that it makes of the file. Raises
    MissingDependencyError."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise missing_extra("onnxruntime", "convert", "Asking ONNX Runtime")
    said = ask(_ASK, path, timeout_seconds, "ONNX Runtime")
    if isinstance(said, str):
        return Observed("ONNX Runtime (CPU)", None, reason=said)
    return Observed(f"ONNX Runtime {said['version']} (CPU)", frozenset(said["changed"]))
