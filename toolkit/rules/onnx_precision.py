"""Nodes of an ONNX file that a runtime runs in another number format than the file says.

A runtime that fuses Q/DQ pairs runs an operator in integers only where it has a kernel for that and everything around
the operator is quantized as the kernel wants; elsewhere it dequantizes, computes in float and quantizes again. One
without a kernel for fp16 casts to fp32 and back. Both are taken, and both are slower than what was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.export import onnx_file
from toolkit.rules.onnx_graph import Finding, Graph, data_types

if TYPE_CHECKING:
    from toolkit.rules.table import OperatorRule, Table

QDQ, CAST = "qdq", "cast"  # names of the rules
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_NO_DATA = ("Cast", "Constant", "ConstantOfShape", "Shape", _QUANTIZE, _DEQUANTIZE, "DynamicQuantizeLinear")
_CUTS = ("Relu", "Clip")  # dropped where the range of what is quantized behind them is no wider


@dataclass(frozen=True)
class _Wiring:
    """Who computes and who reads a tensor of the main graph; a model's outputs are read by None."""

    producers: Mapping[str, Any]
    readers: Mapping[str, list[Any]]


def changed(graph: Graph, table: Table) -> list[Finding | None]:
    """For each node of the main graph why it runs in another format than the file says; None if it does not, or if the
    table does not tell."""
    wiring = _wiring(graph)
    nodes = list(graph.model.graph.node)
    found = [_in_float(node, graph, table, wiring) or _cast(node, graph, table) for node in nodes]
    cast = {name for node, each in zip(nodes, found, strict=True) if each and each.rule == CAST for name in node.output}
    return [each or _island(node, graph, table, wiring, cast) for node, each in zip(nodes, found, strict=True)]


def _wiring(graph: Graph) -> _Wiring:
    nodes = graph.model.graph.node
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for value in graph.model.graph.output:
        readers.setdefault(value.name, []).append(None)
    return _Wiring({name: node for node in nodes for name in node.output}, readers)


def is_between_pairs(node: Any, graph: Graph, producers: Mapping[str, Any]) -> bool:
    """Whether a node works on what DequantizeLinear made of something that is not constant."""
    if node.op_type in _NO_DATA:
        return False
    sources = [producers[name] for name in node.input if name in producers]
    return any(each.op_type == _DEQUANTIZE and each.input[0] not in graph.constants for each in sources)


def _in_float(node: Any, graph: Graph, table: Table, wiring: _Wiring) -> Finding | None:
    if not is_between_pairs(node, graph, wiring.producers):
        return None
    rule = table.operators.get(f"{node.domain}:{node.op_type}" if node.domain else node.op_type)
    if rule is None or rule.qdq is None:
        return None
    if not rule.qdq and not rule.dq:
        return _finding(
            node, f"{table.title} has no kernel for {node.op_type} in integers", "leave it out of quantization"
        )
    reason = _not_fused(node, graph, rule, table, wiring)
    if reason is None:
        return None
    instead = "quantize what stands around it, or leave it out of quantization"
    return _finding(node, f"{table.title} runs {node.op_type} in integers only between Q/DQ pairs; {reason}", instead)


def _finding(node: Any, reason: str, instead: str) -> Finding:
    return Finding(node.name, node.op_type, QDQ, reason, instead)


def _not_fused(node: Any, graph: Graph, rule: OperatorRule, table: Table, wiring: _Wiring) -> str | None:
    """What keeps a node from a kernel in integers; None if nothing does."""
    formats, quantized_inputs = set(), []
    for name in node.input:
        source = wiring.producers.get(name)
        if source is not None and source.op_type == _DEQUANTIZE:
            if source.input[0] not in graph.constants:
                formats.add(graph.dtypes.get(source.input[0], ""))
                quantized_inputs.append(source.input[0])
        elif name and name not in graph.constants and graph.dtypes.get(name, "fp32") == "fp32":
            return f"its input {name} is float"
    readers = [reader for name in node.output for reader in wiring.readers.get(name, [])]
    if len(readers) == 1 and readers[0] is not None and readers[0].op_type in _CUTS and "Clip" not in node.op_type:
        behind = wiring.readers.get(readers[0].output[0], [])
        if len(behind) == 1 and behind[0] is not None and _is_within(readers[0], behind[0], graph):
            readers = behind
    quantized = bool(readers) and all(reader is not None and reader.op_type == _QUANTIZE for reader in readers)
    if not quantized and node.op_type == "Gemm" and node.input[2:3] and node.input[2] not in wiring.producers:
        return "its bias is float, and its output is not quantized"
    known = rule.qdq if quantized else rule.dq
    if formats <= set(known or ()):
        return _kept(quantized_inputs, readers, graph, rule, table, wiring) if quantized else None
    if not quantized and rule.qdq and formats <= set(rule.qdq):
        other = next((reader.op_type for reader in readers if reader is not None and reader.op_type != _QUANTIZE), "")
        return f"its output goes to {other or 'the outside'}"
    return f"in {', '.join(known or ()) or 'no format'}, not in {', '.join(sorted(formats))}"


def _kept(
    inputs: list[str], outputs: list[Any], graph: Graph, rule: OperatorRule, table: Table, wiring: _Wiring
) -> str | None:
    """Whether a node is left in float because of formats that the runtime exchanges where one node alone reads a
    tensor: its tensors end in two formats, or in one that it has no kernel for. `inputs` are those that are dequantized
    for it, `outputs` the QuantizeLinear behind it."""
    final: dict[str, str] = {}
    for name in inputs:
        pair = wiring.producers.get(name)
        same = [pair] if pair is None or pair.op_type != _QUANTIZE else _equal(pair, graph, wiring)
        final[name] = _final(same, name, graph, table, wiring)
    for quantize in outputs[:1]:
        final[quantize.output[0]] = _final(_equal(quantize, graph, wiring), quantize.output[0], graph, table, wiring)
    kept = next((name for name, dtype in final.items() if dtype in table.exchanged), None)
    if kept is None or (len(set(final.values())) == 1 and final[kept] in (rule.shared or ())):
        return None
    return f"{kept} stays {final[kept]}, for several nodes read it, where it wants {table.exchanged[final[kept]]}"


def _equal(quantize: Any, graph: Graph, wiring: _Wiring) -> list[Any]:
    """A QuantizeLinear with those that do the same to the same tensor, which the runtime makes one."""
    siblings = [each for each in wiring.readers.get(quantize.input[0], []) if each is not None]
    own = _parameters(quantize, graph)
    return [each for each in siblings if each.op_type == _QUANTIZE and _parameters(each, graph) == own]


def _parameters(quantize: Any, graph: Graph) -> list[Any]:
    """Scale and zero point, by value where they are constant."""
    from onnx import numpy_helper

    return [
        name
        if name not in graph.constants or onnx_file.external(graph.constants[name])
        else numpy_helper.to_array(graph.constants[name]).tolist()
        for name in quantize.input[1:]
    ]


def _final(same: list[Any], name: str, graph: Graph, table: Table, wiring: _Wiring) -> str:
    """The format in which a quantized tensor ends."""
    dtype = graph.dtypes.get(name, "")
    if dtype not in table.exchanged:
        return dtype
    readers = []
    for each in [pair.output[0] for pair in same if pair is not None] or [name]:
        for pair in wiring.readers.get(each, []):
            dequantized = pair is not None and pair.op_type == _DEQUANTIZE
            readers += wiring.readers.get(pair.output[0], []) if dequantized else [pair]
    return table.exchanged[dtype] if len(readers) == 1 else dtype


def _is_within(cut: Any, quantize: Any, graph: Graph) -> bool:
    """Whether everything that a QuantizeLinear can store lies inside what Relu or Clip lets through."""
    from onnx import numpy_helper

    if quantize.op_type != _QUANTIZE or len(quantize.input) < 3:
        return False
    constants = [graph.constants.get(name) for name in quantize.input[1:3]]
    if any(each is None for each in constants):
        return False
    scale, zero = (numpy_helper.to_array(each) for each in constants)
    if zero.dtype.kind not in "iu" or scale.size != 1:
        return False
    limits = np.iinfo(zero.dtype)
    low, high = ((limit - int(zero.reshape(-1)[0])) * float(scale.reshape(-1)[0]) for limit in (limits.min, limits.max))
    least, most = (0.0, np.inf) if cut.op_type == "Relu" else _bounds(cut, graph)
    return bool(low >= least and high <= most)


def _bounds(clip: Any, graph: Graph) -> tuple[float, float]:
    """What a Clip lets through; a bound that is computed lets nothing through."""
    from onnx import helper, numpy_helper

    given = {each.name: helper.get_attribute_value(each) for each in clip.attribute}
    found = [given.get("min", -np.inf), given.get("max", np.inf)]
    for place, name in enumerate(clip.input[1:3]):
        if name:
            constant = graph.constants.get(name)
            found[place] = np.nan if constant is None else float(numpy_helper.to_array(constant).reshape(-1)[0])
    return found[0], found[1]


def _cast(node: Any, graph: Graph, table: Table) -> Finding | None:
    """A node whose number format becomes another one, for there is no kernel."""
    if node.op_type in _NO_DATA or not table.casts:
        return None
    rule = table.operators.get(f"{node.domain}:{node.op_type}" if node.domain else node.op_type)
    if rule is None:
        return None
    version = graph.opsets.get(node.domain or "ai.onnx")
    for parameter, dtype in data_types(node, graph).items():
        becomes = table.casts.get(dtype)
        if becomes is not None and not rule.takes(dtype, version, parameter):
            reason = f"{table.title} has no kernel for {node.op_type} in {dtype} and casts to {becomes}"
            return Finding(node.name, node.op_type, CAST, reason, f"keep it in {becomes}")
    return None


def _island(node: Any, graph: Graph, table: Table, wiring: _Wiring, cast: set[str]) -> Finding | None:
    """A node that has a kernel for its format, and is cast with all those around it that have none. `cast` are the
    tensors that those compute."""
    if node.op_type in _NO_DATA or not set(data_types(node, graph).values()) & set(table.casts):
        return None
    computed = [name for name in node.input if name in wiring.producers and name not in graph.constants]
    before = [name for name in computed if graph.dtypes.get(name) in table.casts]
    behind = [reader for name in node.output for reader in wiring.readers.get(name, [])]
    if not before or not behind or any(name not in cast for name in before):
        return None
    if any(reader is None or not cast.intersection(reader.output) for reader in behind):
        return None
    reason = f"{table.title} casts {node.op_type} with all that stand around it"
    return Finding(node.name, node.op_type, CAST, reason, "keep it in fp32")
