"""The layers of an ONNX graph: the nodes that carry weights, under the names that the PyTorch model gave them."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SCOPES = "pkg.torch.onnx.name_scopes"  # metadata that torch.onnx writes: the modules around an operator
_FAR = 6  # nodes between a fused operator and the next one that still knows its module
LEAST_TABLE = 1 << 14  # weights; a smaller table is not worth its scales


@dataclass(frozen=True)
class Layer:
    """A linear layer, a convolution or an embedding table. `axis` is the weight's axis of output channels (of a table:
    its rows)."""

    name: str
    node: Any  # onnx.NodeProto
    weight: str
    activation: str
    axis: int

    @property
    def is_table(self) -> bool:
        return bool(self.node.op_type == "Gather")

    @property
    def is_convolution(self) -> bool:
        return bool(self.node.op_type == "Conv")


def find(model: Any) -> list[Layer]:
    """All layers of a model, in the graph's order, each under a name of its own."""
    import onnx

    weights = {
        initializer.name: tuple(initializer.dims)
        for initializer in model.graph.initializer
        if initializer.data_type == onnx.TensorProto.FLOAT and len(initializer.dims) >= 2
    }
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    found: list[Layer] = []
    taken: set[str] = set()
    for node in model.graph.node:
        axis = _channels(node, weights)
        if axis is None:
            continue
        place = 0 if node.op_type == "Gather" else 1
        name = _module(node) or _module_behind(node, readers) or node.input[place]
        while name in taken:
            name += "'"
        taken.add(name)
        found.append(Layer(name, node, node.input[place], node.input[1 - place], axis))
    return found


def _channels(node: Any, weights: dict[str, tuple[int, ...]]) -> int | None:
    """The axis of a weight's output channels; None for a node that is no layer."""
    given = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type == "Gather" and len(weights.get(node.input[0], ())) == 2:
        rows, width = weights[node.input[0]]
        by_row = "axis" not in given or given["axis"].i == 0
        return 0 if by_row and rows * width >= LEAST_TABLE else None
    if len(node.input) < 2 or node.input[1] not in weights or node.input[0] in weights:
        return None
    if node.op_type == "Conv":
        return 0
    if len(weights[node.input[1]]) != 2:
        return None
    if node.op_type == "MatMul":
        return 1
    if node.op_type == "Gemm" and not ("transA" in given and given["transA"].i):
        return 0 if "transB" in given and given["transB"].i else 1
    return None


def _module(node: Any) -> str | None:
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 and scopes[-2] else None
    return None


def _module_behind(node: Any, readers: dict[str, list[Any]]) -> str | None:
    """The module of what reads a node's output; `parent.a_b_c` where several modules were packed into one node."""
    ends: list[str] = []
    nodes: Iterable[Any] = [node]
    for _ in range(_FAR):
        nodes = [reader for each in nodes for output in each.output for reader in readers.get(output, [])]
        ends = list(dict.fromkeys(filter(None, map(_module, nodes))))
        if ends:
            break
    if len(ends) < 2:
        return ends[0] if ends else None
    parent = ends[0].rpartition(".")[0]
    if any(name.rpartition(".")[0] != parent for name in ends):
        return ends[0]
    return f"{parent}." + "_".join(name.rpartition(".")[2] for name in ends)


# Operators with weights of their own that no method here knows, and the inputs that hold them.
_UNKNOWN = {"LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2), "ConvTranspose": (1,), "Einsum": (0, 1)}


def left_out(model: Any, found: Iterable[Layer]) -> list[str]:
    """What of a graph has weights and is no layer that can be quantized, in words."""
    from toolkit.export import onnx_file

    layers = {layer.node.name for layer in found}
    known = {tensor.name for tensor in onnx_file.tensors(model) if len(tensor.dims) >= 2}
    counts: dict[str, int] = {}
    for graph in onnx_file.graphs(model.graph):
        for node in graph.node:
            weights = [name for place in _UNKNOWN.get(node.op_type, (1,)) for name in node.input[place : place + 1]]
            if (node.name in layers and graph is model.graph) or not known & set(weights):
                continue
            if graph is not model.graph and node.op_type in ("Conv", "MatMul", "Gemm", *_UNKNOWN):
                counts[f"{node.op_type} inside another node"] = counts.get(f"{node.op_type} inside another node", 0) + 1
            elif node.op_type in _UNKNOWN:
                counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return [f"{count} x {kind} stays in float" for kind, count in counts.items()]
