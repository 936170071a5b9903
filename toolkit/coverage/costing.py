"""What the operators of a file's main graph cost, those inside them included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import costs
from toolkit.costs.litert import LENGTH
from toolkit.errors import InputError
from toolkit.export import onnx_file

LENGTH_OF_AXIS = 128  # of a dynamic axis that nobody gave a size, other than the first


@dataclass(frozen=True)
class Cost:
    """Multiply-adds and bytes of an operator in one inference."""

    multiply_adds: int
    bytes: int


@dataclass(frozen=True)
class Counts:
    """The costs of a file's operators, in its order; None: they are not known. `note` says at which sizes they were
    counted and what could not be, `complete` that nothing is missing."""

    costs: list[Cost] | None
    complete: bool
    note: str


def of(path: Path, count: int, sizes: Mapping[str, int]) -> Counts:
    """The costs of a file's `count` operators at the sizes of its dynamic axes."""
    try:
        used = complete(path, sizes)
        operations = costs.operations(path, used)
        outer = _outer(path)
    except InputError as error:
        return Counts(None, False, f"multiply-adds and bytes are not known: {error}")
    if len(outer) != len(operations) or max(outer, default=0) >= count:
        return Counts(None, False, "multiply-adds and bytes are not known: the file's graphs cannot be told apart")
    found = [Cost(0, 0)] * count
    for place, operation in zip(outer, operations, strict=True):
        before = found[place]
        found[place] = Cost(before.multiply_adds + operation.multiply_adds, before.bytes + operation.bytes)
    uncounted = sum(each.runs > 0 and each.shape is None for each in operations)
    notes = []
    if used:
        notes.append("counted at " + ", ".join(f"{name}={size}" for name, size in used.items()))
    if uncounted:
        notes.append(f"{uncounted} operators could not be counted")
    return Counts(found, not uncounted, "; ".join(notes))


def complete(path: Path, sizes: Mapping[str, int]) -> dict[str, int]:
    """The sizes of a file's dynamic axes: those that are given, 1 for another first axis, 128 for the rest; of a LiteRT
    file with a graph for each length that of its first graph. Raises InputError."""
    if path.suffix == ".tflite":
        length = _first_length(path)
        return {} if length is None else {LENGTH: length}
    model = onnx_file.read(path, weights=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    found: dict[str, int] = {}
    for value in model.graph.input:
        if value.name in constants:
            continue
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_value <= 0:
                name = dimension.dim_param or f"{value.name}[{axis}]"
                found.setdefault(name, sizes.get(name, 1 if axis == 0 else LENGTH_OF_AXIS))
    return found


def _first_length(path: Path) -> int | None:
    """The input length that a LiteRT file's first graph is for; None if it is for all."""
    from ai_edge_litert import schema_py_generated as schema

    from toolkit.engines.litert import length_of

    try:
        model = schema.Model.GetRootAs(path.read_bytes(), 0)
        entries = [model.SignatureDefs(place) for place in range(model.SignatureDefsLength())]
        names = [entry.SignatureKey().decode() for entry in entries if entry.SubgraphIndex() == 0]
    except Exception as error:  # struct.error, IndexError, …: whatever the bytes lead to
        raise InputError(f"{path} is no LiteRT file that can be read: {error}") from error
    try:
        return length_of(names[0]) if names else None
    except ValueError:  # somebody else's name
        return None


def _outer(path: Path) -> list[int]:
    """For each of `costs.operations` the place of the operator of the main graph that it is, or lies in."""
    return _outer_onnx(path) if path.suffix == ".onnx" else _outer_litert(path)


def _outer_onnx(path: Path) -> list[int]:
    """The nodes of the main graph come first, those inside them after that, in their order."""
    graph = onnx_file.read(path, weights=False).graph
    return [*range(len(graph.node)), *(place for place, node in enumerate(graph.node) for _ in range(_inside(node)))]


def _inside(node: Any) -> int:
    """How many nodes lie inside a node."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return sum(len(graph.node) + sum(map(_inside, graph.node)) for graph in graphs)


def _outer_litert(path: Path) -> list[int]:
    """A composite is counted as what it is made of."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    composite = schema.BuiltinOperator.STABLEHLO_COMPOSITE

    def inside(operator: Any) -> int:
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) != composite:
            return 1
        return sum(map(inside, model.subgraphs[operator.builtinOptions2.decompositionSubgraphIndex].operators))

    return [place for place, operator in enumerate(model.subgraphs[0].operators) for _ in range(inside(operator))]
