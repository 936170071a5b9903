"""The nodes of an ONNX file's main graph as placements."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.coverage import Placement
from toolkit.export import onnx_file
from toolkit.probes.onnx import scopes
from toolkit.rules.onnx_graph import Finding, Graph

if TYPE_CHECKING:
    from toolkit.rules.table import Table


def load(path: Path) -> Any:
    """An ONNX model; without its weights if they are large. Raises InputError, MissingDependencyError."""
    return onnx_file.read(path, most=onnx_file.LARGE)


def placed(graph: Graph, found: Sequence[Finding | str | None], table: Table) -> list[Placement]:
    """One placement for each node: not taken with a finding, not known with the name of an operator."""
    nodes = graph.model.graph.node
    placements = []
    for node, module, each in zip(nodes, scopes(graph.model), found, strict=True):
        reads = tuple(name for name in node.input if name) + inner_inputs(node)
        name = node.name or next(iter(node.output), "")
        placement = Placement(name, node.op_type, module, reads, tuple(filter(None, node.output)))
        placements.append(placement.judged(each, table))
    return placements


def inner_inputs(node: Any) -> tuple[str, ...]:
    """What the graphs inside a node read."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return tuple(
        name for graph in graphs for each in graph.node for name in (*filter(None, each.input), *inner_inputs(each))
    )
