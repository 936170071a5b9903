"""Directions out of an ONNX graph that gives token states: the mean over the tokens, padding left out, at length 1."""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.errors import InputError

MASK = "attention_mask"
OUTPUT = "direction"


def add_direction(model: Any) -> None:
    """Let the graph's first output be float[batch, width] of length 1, made of what it was: token states [batch,
    length, width] with an input `attention_mask`, or one vector each. Raises InputError for other outputs."""
    import onnx
    from onnx import helper

    given = model.graph.output[0]
    rank = _rank(given)
    kind = given.type.tensor_type.elem_type
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
        raise InputError(
            f"The output '{given.name}' holds {onnx.TensorProto.DataType.Name(kind).lower()}, no direction. Name "
            "another one with --graph-output."
        )
    if rank not in (2, 3):
        raise InputError(
            f"The output '{given.name}' has {'an unknown rank' if rank is None else f'{rank} axes'}; a direction is "
            "made of [batch, width], or of token states [batch, length, width]. Name another one with --graph-output."
        )
    nodes: list[Any] = []

    def add(kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [output], f"{OUTPUT}.{kind}.{len(nodes)}", **attributes))
        return output

    def constant(name: str, value: Any) -> str:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), f"{OUTPUT}.{name}"))
        return f"{OUTPUT}.{name}"

    last = given.name
    if rank == 3:
        if all(each.name != MASK for each in model.graph.input):
            raise InputError(f"The output '{given.name}' are token states, and the graph has no input '{MASK}'.")
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        mask = add("Cast", [MASK], f"{OUTPUT}.mask", to=kind)
        tokens, wide = constant("tokens", [1]), constant("wide", [2])
        if opset < 13:
            raise InputError(f"Token states can be averaged from opset 13 on; this graph is in {opset}.")
        column = add("Unsqueeze", [mask, wide], f"{OUTPUT}.column")
        total = add(
            "ReduceSum", [add("Mul", [last, column], f"{OUTPUT}.masked"), tokens], f"{OUTPUT}.total", keepdims=0
        )
        count = add("ReduceSum", [mask, tokens], f"{OUTPUT}.count", keepdims=1)
        last = add("Div", [total, count], f"{OUTPUT}.mean")
    add("LpNormalization", [last], OUTPUT, axis=1, p=2)
    model.graph.node.extend(nodes)
    width = given.type.tensor_type.shape.dim[rank - 1]
    made = helper.make_tensor_value_info(OUTPUT, kind, ["batch", width.dim_value or width.dim_param or None])
    del model.graph.output[:]
    model.graph.output.append(made)


def _rank(value: Any) -> int | None:
    if value.type.tensor_type.HasField("shape"):
        return len(value.type.tensor_type.shape.dim)
    return None
