"""The nodes of an ONNX model with what decides their cost: which tensors are constants, which are held in integers."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from toolkit.costs import onnx_arithmetic as arithmetic
from toolkit.costs.onnx_shapes import Shape, inner_graphs, type_name
from toolkit.probes.onnx import scope, scopes

_BYTES = {
    "float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4, "float16": 2, "bfloat16": 2,
    "int16": 2, "uint16": 2, "int4": 0.5, "uint4": 0.5, "int2": 0.25, "uint2": 0.25, "object": 0,
}  # fmt: skip
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def item_bytes(kind: str) -> float:
    """Bytes of an element of a type, by numpy's name for it."""
    return _BYTES.get(kind, 1)


@dataclass(frozen=True)
class Constant:
    """A tensor that never changes: its shape and its bytes, as far as they are known before anything runs. What is
    dequantized keeps the bytes that it is read from."""

    shape: Shape | None
    bytes: float | None


@dataclass(frozen=True)
class Graph:
    """What the nodes of one graph see: by a tensor's name the node that computes it, the nodes that read it (None is
    whoever runs the graph), and constants."""

    producers: ChainMap[str, Any]
    readers: dict[str, list[Any]]
    constants: ChainMap[str, Constant]


@dataclass(frozen=True)
class Node:
    """A node of any graph of a model. `inner`: it lies inside an If, a Loop or the like."""

    proto: Any
    graph: Graph
    module: str
    attributes: dict[str, Any]
    inner: bool

    @property
    def kind(self) -> str:
        return str(self.proto.op_type)

    @property
    def outputs(self) -> list[str]:
        return [name for name in self.proto.output if name]

    @property
    def is_constant(self) -> bool:
        """Whether its outputs never change, so that nothing is left to do after loading."""
        return bool(self.outputs) and all(name in self.graph.constants for name in self.outputs)

    @property
    def is_integer(self) -> bool:
        """Whether a kernel for small integers does this node's work: its own, or one that it and the Q/DQ around it
        make. Products need no QuantizeLinear behind them."""
        if arithmetic.is_integer(self.kind, self.attributes):
            return True
        if self.kind in (_QUANTIZE, _DEQUANTIZE):
            return False
        changing = [name for name in self.proto.input if name and name not in self.graph.constants]
        if not changing or any(self.source(name) is None for name in changing):
            return False
        if arithmetic.has_products(self.kind):
            return len(self.proto.input) > 1 and self.source(self.proto.input[1]) is not None
        return all(self.is_quantized(name) for name in self.outputs)

    @property
    def is_absorbed(self) -> bool:
        """Whether it is Q/DQ that became part of the integer kernels beside it."""
        if self.kind == _QUANTIZE:
            producer = self.graph.producers.get(self.proto.input[0])
            return producer is not None and node_of(producer, self.graph).is_integer
        if self.kind == _DEQUANTIZE:
            readers = self.graph.readers.get(self.proto.output[0], [])
            return all(reader is not None and node_of(reader, self.graph).is_integer for reader in readers)
        return False

    def source(self, name: str) -> str | None:
        """The tensor of small integers that a DequantizeLinear makes `name` of; None if none does."""
        producer = self.graph.producers.get(name)
        return str(producer.input[0]) if producer is not None and producer.op_type == _DEQUANTIZE else None

    def is_quantized(self, name: str) -> bool:
        """Whether an output is read by QuantizeLinear alone."""
        readers = self.graph.readers.get(name, [])
        return bool(readers) and all(reader is not None and reader.op_type == _QUANTIZE for reader in readers)


def node_of(proto: Any, graph: Graph, module: str = "", inner: bool = False) -> Node:
    import onnx

    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in proto.attribute if not a.HasField("g")}
    return Node(proto, graph, module, attributes, inner)


def nodes(model: Any) -> list[Node]:
    """All nodes, numbered as `onnx_shapes.observed` numbers them."""
    outermost = Graph(ChainMap(), {}, ChainMap())
    return list(_nodes(model.graph, outermost, scopes(model), inner=False))


def _nodes(graph: Any, outer: Graph, modules: list[str], inner: bool) -> Iterator[Node]:
    here = Graph(outer.producers.new_child(), {}, outer.constants.new_child())
    for value in graph.output:
        here.readers.setdefault(value.name, []).append(None)
    for proto in graph.node:
        here.producers.update(dict.fromkeys(proto.output, proto))
        within = [each for held in inner_graphs(proto) for each in held.node]
        for reader in (proto, *within):
            for name in reader.input:
                here.readers.setdefault(name, []).append(reader)
    for tensor in graph.initializer:
        here.constants[tensor.name] = _constant(tensor)
    for proto in graph.node:
        _fold(proto, here)
    for proto, module in zip(graph.node, modules, strict=True):
        yield node_of(proto, here, module, inner)
    for proto, module in zip(graph.node, modules, strict=True):
        for attribute in proto.attribute:
            if attribute.HasField("g"):
                inside = [scope(each) or module for each in attribute.g.node]
                yield from _nodes(attribute.g, here, inside, inner=True)


def _fold(proto: Any, graph: Graph) -> None:
    """Note what never changes: constants, and what is computed from them alone."""
    if proto.op_type == "Constant":
        tensor = next((attribute.t for attribute in proto.attribute if attribute.HasField("t")), None)
        graph.constants[proto.output[0]] = Constant((), 0) if tensor is None else _constant(tensor)
        return
    inputs = [name for name in proto.input if name]
    random = proto.op_type.startswith("Random") or proto.op_type in ("Bernoulli", "Multinomial", "Dropout")
    if not inputs or random or any(name not in graph.constants for name in inputs) or next(inner_graphs(proto), None):
        return
    if proto.op_type == _DEQUANTIZE:
        graph.constants[proto.output[0]] = graph.constants[proto.input[0]]
    else:
        graph.constants.update(dict.fromkeys(filter(None, proto.output), Constant(None, None)))


def _constant(tensor: Any) -> Constant:
    return Constant(tuple(tensor.dims), math.prod(tensor.dims) * item_bytes(type_name(tensor.data_type)))
