"""ONNX files of others, put into the form that the rest works on: weights as initializers, every node with a name of
its own, and no more nodes than it takes.

Module names are worth more than a few nodes: `onnxslim` drops them, so it is for graphs that have none.
"""

from __future__ import annotations

import logging
from typing import Any

from toolkit.export import onnx_file, onnx_layers

OLDEST_TO_QUANTIZE = 13  # DequantizeLinear has a scale per channel from here on
_LARGEST = 1_500_000_000  # bytes of weights; larger models are not copied about in memory


def adopted(model: Any) -> tuple[Any, dict[str, int] | None]:
    """(the model in that form, nodes `before` and `after` slimming; None if it was left as it is)."""
    lifted(model)
    named(model)
    weights = sum(onnx_file.stored_bytes(tensor) for tensor in model.graph.initializer)
    slimmed = None
    if weights < _LARGEST:
        raised(model)
        model, slimmed = _slim(model)
        named(model)
    return model, slimmed


def lifted(model: Any) -> None:
    """Turn Constant nodes into initializers, in the graphs inside nodes too."""
    import onnx

    for graph in onnx_file.graphs(model.graph):
        kept = []
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            tensor = _constant(node) if node.op_type == "Constant" and node.output[0] not in outputs else None
            if tensor is None:
                kept.append(node)
                continue
            stored = onnx.TensorProto()
            stored.CopyFrom(tensor)
            stored.name = node.output[0]
            graph.initializer.append(stored)
        if len(kept) < len(graph.node):
            copied = [type(node).FromString(node.SerializeToString()) for node in kept]
            del graph.node[:]
            graph.node.extend(copied)


def _constant(node: Any) -> Any:
    """The tensor of a Constant node; None for kinds that are no tensor."""
    import numpy as np
    import onnx

    given = {attribute.name: attribute for attribute in node.attribute}
    if "value" in given:
        return given["value"].t
    numbers = {"value_float": np.float32, "value_int": np.int64, "value_floats": np.float32, "value_ints": np.int64}
    for name, dtype in numbers.items():
        if name in given:
            return onnx.numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(given[name]), dtype))
    return None


def named(model: Any) -> None:
    """Give every node a name that no other one has: quantizers know nodes by them."""
    taken: set[str] = set()
    for graph in onnx_file.graphs(model.graph):
        for number, node in enumerate(graph.node):
            name = node.name or f"{node.op_type}_{number}"
            while name in taken:
                name += "_"
            taken.add(name)
            node.name = name


def raised(model: Any) -> None:
    """Convert a graph from before opset 13 to it, if ONNX knows how; else it stays where it is."""
    import onnx

    own = next((entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)
    if own is None or own.version >= OLDEST_TO_QUANTIZE:
        return
    try:
        newer = onnx.version_converter.convert_version(model, OLDEST_TO_QUANTIZE)
        onnx.checker.check_model(newer)
    except Exception:  # operators without an adapter raise RuntimeError, the checker has its own class
        return
    model.CopyFrom(newer)


def _slim(model: Any) -> tuple[Any, dict[str, int] | None]:
    if any(entry.key == onnx_layers.SCOPES for node in model.graph.node for entry in node.metadata_props):
        return model, None
    import onnx
    import onnxslim

    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    try:
        slim = onnxslim.slim(copied)
        onnx.checker.check_model(slim)
    except Exception:  # it is a third party's optimizer: what it cannot take is left as it is
        return model, None
    before, after = _count(model), _count(slim)
    kept = [value.name for value in slim.graph.output] == [value.name for value in model.graph.output]
    if not kept or after >= before or slim.ByteSize() > 1.02 * model.ByteSize():
        return model, None
    return slim, {"before": before, "after": after}


def _count(model: Any) -> int:
    return sum(len(graph.node) for graph in onnx_file.graphs(model.graph))
