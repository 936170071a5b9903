"""Products in bfloat16, by explicit casts around them, for engines that have such arithmetic.

Everything between the products stays in float32, as in torch's autocast.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from toolkit.engines.tensorrt import PRODUCTS
from toolkit.export.onnx_activations import tensor_types

CONVOLUTION_OPSET = 22  # the first whose Conv has bfloat16


def convert(model: Any, kept: Collection[str]) -> list[str]:
    """Put the products of a float32 model into bfloat16, except the nodes `kept`; the names of those it did. Where the
    opset has no such Conv, convolutions are left."""
    from onnx import TensorProto, helper

    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    floats = {name for name, kind in tensor_types(model).items() if kind == "tensor(float)"}
    floats |= {each.name for each in model.graph.input if each.type.tensor_type.elem_type == TensorProto.FLOAT}
    stored = {each.name: each for each in model.graph.initializer if each.data_type == TensorProto.FLOAT}
    rounded: dict[str, str] = {}  # by the tensor, so that its readers share one cast
    nodes, done = [], []
    for node in model.graph.node:
        known = all(name in floats or name in stored for name in node.input if name)
        if node.op_type not in PRODUCTS or node.name in kept or not known:
            nodes.append(node)
            continue
        if node.op_type == "Conv" and opset < CONVOLUTION_OPSET:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if not name:
                continue
            if name not in rounded:
                rounded[name] = f"{name}.bf16"
                if name in stored:
                    model.graph.initializer.append(_rounded(stored[name], rounded[name]))
                else:
                    nodes.append(
                        helper.make_node(
                            "Cast", [name], [rounded[name]], to=TensorProto.BFLOAT16, name=f"{rounded[name]}.cast"
                        )
                    )
            node.input[place] = rounded[name]
        output = node.output[0]
        node.output[0] = f"{output}.product"
        wide = helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.FLOAT, name=f"{output}.cast")
        nodes += [node, wide]
        done.append(node.name)
    _replace_nodes(model, nodes)
    return done


def _rounded(tensor: Any, name: str) -> Any:
    import ml_dtypes
    import onnx

    return onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16), name)


def _replace_nodes(model: Any, nodes: list[Any]) -> None:
    copied = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)
