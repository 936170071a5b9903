"""ONNX graphs in an older operator set: the exporters write opset 18 and later, and boards in the field read 13 or 17.

Operators that came later are written as those that define them; what later versions of an operator added is dropped
where it says what was always so. Whatever is left over has no older form, and is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.errors import InputError
from toolkit.export import OLDEST_OPSET, onnx_file

_REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSumSquare",
)  # fmt: skip


class _Writer:
    """Nodes that take the place of one node, named after it."""

    def __init__(self, model: Any, graph: Any, node: Any, types: Mapping[str, int]) -> None:
        self.model, self.graph, self.node, self.types = model, graph, node, types
        self.made: list[Any] = []

    def number(self, name: str, value: float) -> str:
        """A constant of the type that the node works in."""
        import onnx

        kind = self.types.get(self.node.input[0], onnx.TensorProto.FLOAT)
        return self.constant(name, np.asarray(value, onnx.helper.tensor_dtype_to_np_dtype(kind)))

    def constant(self, name: str, value: Any) -> str:
        import onnx

        full = f"{self.node.output[0]}.{name}"
        self.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), full))
        return full

    def add(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        from onnx import helper

        output = output or f"{self.node.output[0]}.{len(self.made)}"
        made = helper.make_node(kind, list(inputs), [output], f"{self.node.name}.{kind}.{len(self.made)}", **attributes)
        made.metadata_props.extend(self.node.metadata_props)  # which tell the module that it came from
        self.made.append(made)
        return output

    def attribute(self, name: str, default: Any) -> Any:
        import onnx

        found = next((each for each in self.node.attribute if each.name == name), None)
        return default if found is None else onnx.helper.get_attribute_value(found)

    def known(self, place: int) -> Any:
        """The value of a constant input; None if it is left out. Raises InputError if it is not constant."""
        import onnx

        name = self.node.input[place] if place < len(self.node.input) else ""
        if not name:
            return None
        for graph in onnx_file.graphs(self.model.graph):
            for tensor in graph.initializer:
                if tensor.name == name:
                    return onnx.numpy_helper.to_array(tensor)
            for node in graph.node:
                if node.op_type == "Constant" and node.output[0] == name and node.attribute[0].HasField("t"):
                    return onnx.numpy_helper.to_array(node.attribute[0].t)
        raise InputError(
            f"The node '{self.node.name}' ({self.node.op_type}) computes its input '{name}', which must be constant in "
            "an older opset."
        )


def _types(model: Any) -> dict[str, int]:
    """Element types of the tensors of the main graph, as far as ONNX can tell."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # what the file itself says of its tensors is left
        graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info]
    return {value.name: value.type.tensor_type.elem_type for value in values if value.type.tensor_type.elem_type}


def _gelu(writer: _Writer) -> None:
    """x Φ(x), or its form with tanh."""
    given, result = writer.node.input[0], writer.node.output[0]
    half, one = (writer.number(name, value) for name, value in (("half", 0.5), ("one", 1.0)))
    if writer.attribute("approximate", b"none") == b"tanh":
        cube = writer.add("Mul", [writer.add("Mul", [given, given]), given])
        inner = writer.add("Add", [given, writer.add("Mul", [cube, writer.number("cubic", 0.044715)])])
        scale = writer.number("scale", math.sqrt(2 / math.pi))
        bent = writer.add("Tanh", [writer.add("Mul", [inner, scale])])
    else:
        root = writer.number("root", math.sqrt(2))
        bent = writer.add("Erf", [writer.add("Div", [given, root])])
    share = writer.add("Mul", [writer.add("Add", [bent, one]), half])
    writer.add("Mul", [given, share], result)


def _layer_normalization(writer: _Writer) -> None:
    """(x - mean) / sqrt(variance + epsilon) · scale + bias, over the axes from `axis` on, given from the end."""
    if len([name for name in writer.node.output if name]) > 1:
        raise InputError(f"The node '{writer.node.name}' gives its mean too, for which there is no older form.")
    given, result = writer.node.input[0], writer.node.output[0]
    axis = int(writer.attribute("axis", -1))
    if axis >= 0:
        raise InputError(f"The node '{writer.node.name}' counts its axis from the front; its rank is not known here.")
    axes = list(range(axis, 0))
    centred = writer.add("Sub", [given, writer.add("ReduceMean", [given], axes=axes)])
    variance = writer.add("ReduceMean", [writer.add("Mul", [centred, centred])], axes=axes)
    epsilon = writer.number("epsilon", writer.attribute("epsilon", 1e-5))
    scaled = writer.add("Div", [centred, writer.add("Sqrt", [writer.add("Add", [variance, epsilon])])])
    biased = len(writer.node.input) > 2 and writer.node.input[2]
    scaled = writer.add("Mul", [scaled, writer.node.input[1]], None if biased else result)
    if biased:
        writer.add("Add", [scaled, writer.node.input[2]], result)


def _hard_swish(writer: _Writer) -> None:
    """x · HardSigmoid(x) with slope 1/6."""
    share = writer.add("HardSigmoid", [writer.node.input[0]], alpha=1 / 6, beta=0.5)
    writer.add("Mul", [writer.node.input[0], share], writer.node.output[0])


def _mish(writer: _Writer) -> None:
    """x · tanh(softplus(x))."""
    bent = writer.add("Tanh", [writer.add("Softplus", [writer.node.input[0]])])
    writer.add("Mul", [writer.node.input[0], bent], writer.node.output[0])


def _reduction(writer: _Writer) -> None:
    """Axes as an attribute."""
    axes = writer.known(1)
    attributes: dict[str, Any] = {"keepdims": int(writer.attribute("keepdims", 1))}
    if axes is not None and axes.size:
        attributes["axes"] = [int(axis) for axis in axes]
    elif writer.attribute("noop_with_empty_axes", 0):
        writer.add("Identity", writer.node.input[:1], writer.node.output[0])
        return
    writer.add(writer.node.op_type, writer.node.input[:1], writer.node.output[0], **attributes)


def _shape(writer: _Writer) -> None:
    """A part of a shape is a slice of all of it."""
    start, end = int(writer.attribute("start", 0)), writer.attribute("end", None)
    whole = writer.add("Shape", writer.node.input)
    limits = [writer.constant("start", np.asarray([start])), writer.constant("end", np.asarray([end or 2**31 - 1]))]
    writer.add("Slice", [whole, *limits], writer.node.output[0])


def _reshape(writer: _Writer) -> None:
    """`allowzero` speaks of empty tensors, which no model is given."""
    writer.add("Reshape", writer.node.input, writer.node.output[0])


_Rule = Callable[[_Writer], None]
# Operators that are younger than a runtime may be, and how they are written without.
REPLACED: dict[str, _Rule] = {
    "Gelu": _gelu, "LayerNormalization": _layer_normalization, "HardSwish": _hard_swish, "Mish": _mish,
}  # fmt: skip
# Operators that were there before in another form.
_OLDER: dict[str, _Rule] = {**dict.fromkeys(_REDUCTIONS, _reduction), "Shape": _shape, "Reshape": _reshape}


def lower(model: Any, opset: int, avoid: Sequence[str] = ()) -> None:
    """Rewrite `model` in `opset`, without the operators `avoid`, of which `REPLACED` can replace some. A model in an
    older opset already stays there. Raises InputError naming what has no older form."""
    import onnx

    if opset < OLDEST_OPSET:
        raise InputError(f"Opset {opset}: the oldest one that graphs are written in is {OLDEST_OPSET}.")
    own = next(entry for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    types, after = _types(model), min(opset, own.version)
    for graph in onnx_file.graphs(model.graph):
        nodes = []
        for node in graph.node:
            nodes += _lowered(_Writer(model, graph, node, types), own.version, after, avoid)
        del graph.node[:]
        graph.node.extend(nodes)
    own.version = after
    onnx_file.drop_unread(model)
    imports = list(model.opset_import)
    model.ir_version = min(model.ir_version, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))


def _lowered(writer: _Writer, before: int, after: int, avoid: Sequence[str]) -> list[Any]:
    """What takes the place of one node."""
    import onnx

    node = writer.node
    if node.domain not in ("", "ai.onnx"):
        return [node]
    try:
        older = onnx.defs.get_schema(node.op_type, after, "")
    except onnx.defs.SchemaError:
        older = None
    if older is None or node.op_type in avoid:
        if node.op_type not in REPLACED:
            if older is not None:
                return [node]
            raise InputError(
                f"The node '{node.name}' is a {node.op_type}, which opset {after} does not have, and there is no rule "
                "that writes it in older operators."
            )
        REPLACED[node.op_type](writer)
        # What takes its place is written in the opset that it stands in now.
        made = (_Writer(writer.model, writer.graph, each, writer.types) for each in writer.made)
        return [node for each in made for node in _lowered(each, after, after, avoid)]
    newer = onnx.defs.get_schema(node.op_type, before, "")
    if newer.since_version == older.since_version:
        return [node]
    if node.op_type in _OLDER and (len(node.input) > len(older.inputs) or _unknown(node, older)):
        _OLDER[node.op_type](writer)
        return writer.made
    for attribute in _unknown(node, older):
        if (node.op_type, attribute.name) == ("Split", "num_outputs"):  # as many parts as it has outputs
            node.attribute.remove(attribute)
            continue
        default = newer.attributes[attribute.name].default_value
        if onnx.helper.get_attribute_value(attribute) != onnx.helper.get_attribute_value(default):
            raise InputError(f"The node '{node.name}' ({node.op_type}) needs '{attribute.name}', new since {after}.")
        node.attribute.remove(attribute)
    if len(node.input) > older.max_input or len(node.output) > older.max_output:
        raise InputError(f"The node '{node.name}' ({node.op_type}) has inputs that opset {after} does not know.")
    return [node]


def _unknown(node: Any, schema: Any) -> list[Any]:
    return [attribute for attribute in node.attribute if attribute.name not in schema.attributes]
