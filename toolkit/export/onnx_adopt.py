"""ONNX files of others, put into the form that the rest works on: weights as initializers, every node with a name of
its own, and no more nodes than it takes.

Module names are worth more than a few nodes: `onnxslim` drops them, so it is for graphs that have none.
"""

from __future__ import annotations

import logging
from typing import Any

from toolkit.errors import missing_extra
from toolkit.export import onnx_file, onnx_layers

OLDEST_TO_QUANTIZE = 13  # DequantizeLinear has a scale per channel from here on
_LARGEST = 1_500_000_000  # bytes of weights; larger models are not copied about in memory


def adopted(model: Any) -> tuple[Any, dict[str, Any]]:
    """(the model in that form, what was done): `slimmed` is the number of nodes `before` and `after`, or the reason why
    they were left; `raised` the opset before that was converted, or the reason why it was left; None if it is new
    enough. Raises MissingDependencyError without onnxslim."""
    lifted(model)
    named(model)
    weights = sum(onnx_file.stored_bytes(tensor) for tensor in model.graph.initializer)
    if weights >= _LARGEST:
        left = f"{weights / 1e9:.1f} GB of weights are not copied about in memory"
        return model, {"slimmed": left, "raised": left if _is_old(model) else None}
    from_opset = raised(model)
    model, slimmed = _slim(model)
    named(model)
    return model, {"slimmed": slimmed, "raised": from_opset}


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


def raised(model: Any) -> int | str | None:
    """Convert a graph from before opset 13 to it, if ONNX knows how: the opset that it had, the reason why it stays
    there, or None if it is new enough."""
    import onnx

    if not _is_old(model):
        return None
    before = _opset(model)
    try:
        newer = onnx.version_converter.convert_version(model, OLDEST_TO_QUANTIZE)
        onnx.checker.check_model(newer)
    except Exception as error:  # operators without an adapter raise RuntimeError, the checker has its own class
        return f"ONNX cannot convert it from opset {before}: {_first_line(error)}"
    model.CopyFrom(newer)
    return before


def _opset(model: Any) -> int | None:
    return next((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def _is_old(model: Any) -> bool:
    return (_opset(model) or OLDEST_TO_QUANTIZE) < OLDEST_TO_QUANTIZE


def _slim(model: Any) -> tuple[Any, dict[str, int] | str]:
    if any(entry.key == onnx_layers.SCOPES for node in model.graph.node for entry in node.metadata_props):
        return model, "its nodes name PyTorch modules, which slimming drops"
    import onnx

    try:
        import onnxslim
    except ImportError as error:
        raise missing_extra("onnxslim", "convert", "Slimming an ONNX graph") from error
    logging.getLogger("onnxslim").setLevel(logging.ERROR)
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    try:
        slim = onnxslim.slim(copied)
        onnx.checker.check_model(slim)
    except Exception as error:  # it is a third party's optimizer: what it cannot take is left as it is
        return model, f"onnxslim cannot take it: {_first_line(error)}"
    before, after = _count(model), _count(slim)
    if [value.name for value in slim.graph.output] != [value.name for value in model.graph.output]:
        return model, "onnxslim renames its outputs"
    if after >= before:
        return model, "onnxslim finds nothing to drop"
    if slim.ByteSize() > 1.02 * model.ByteSize():
        return model, "onnxslim makes it larger"
    return slim, {"before": before, "after": after}


def _first_line(error: Exception) -> str:
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line.rpartition("` failed: ")[2]  # behind the place in ONNX's source


def _count(model: Any) -> int:
    return sum(len(graph.node) for graph in onnx_file.graphs(model.graph))
