"""What the converter to LiteRT leaves undone.

Networks of PyTorch have the channels before height and width, LiteRT's kernels behind them. The converter moves them
back before the mean over a picture, which could as well be taken where they are: accelerators that have no TRANSPOSE,
the Edge TPU among them, leave the rest of the graph to the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def mean_where_channels_are(model: Any) -> int:
    """Take the mean over axes of a transposed tensor over the axes that they were before, without the TRANSPOSE. Only
    where what is left comes in the same order. Changes the objects; returns how many operators went."""
    from ai_edge_litert import schema_py_generated as schema

    def kind(operator: Any) -> int:
        code = model.operatorCodes[operator.opcodeIndex]
        return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))

    gone = 0
    for graph in model.subgraphs:
        made_by = {int(operator.outputs[0]): operator for operator in graph.operators}
        read = [int(index) for operator in graph.operators for index in operator.inputs] + [
            int(i) for i in graph.outputs
        ]
        for mean in [each for each in graph.operators if kind(each) == schema.BuiltinOperator.MEAN]:
            transpose = made_by.get(int(mean.inputs[0]))
            if (
                transpose is None
                or kind(transpose) != schema.BuiltinOperator.TRANSPOSE
                or read.count(mean.inputs[0]) > 1
            ):
                continue
            order, axes = (_integers(model, graph, operator.inputs[1]) for operator in (transpose, mean))
            if order is None or axes is None:
                continue
            before = sorted(order[axis] for axis in axes)
            kept = [order[axis] for axis in range(len(order)) if axis not in {each % len(order) for each in axes}]
            if kept != sorted(kept) or (mean.builtinOptions.keepDims and before != sorted(axes)):
                continue
            mean.inputs = [int(transpose.inputs[0]), _constant(model, graph, mean.inputs[1], before)]
            graph.operators.remove(transpose)
            gone += 1
    if gone:
        _drop_unused(model)
    return gone


def _drop_unused(model: Any) -> None:
    """Take out the tensors that no operator reads or writes, and count the others anew."""
    for number, graph in enumerate(model.subgraphs):
        used = {int(i) for operator in graph.operators for i in (*operator.inputs, *operator.outputs)}
        used |= {int(i) for i in (*graph.inputs, *graph.outputs)}
        kept = [index for index in range(len(graph.tensors)) if index in used]
        place = {-1: -1} | {index: new for new, index in enumerate(kept)}
        graph.tensors = [graph.tensors[index] for index in kept]
        graph.inputs, graph.outputs = ([place[int(i)] for i in each] for each in (graph.inputs, graph.outputs))
        for operator in graph.operators:
            operator.inputs = [place[int(i)] for i in operator.inputs]
            operator.outputs = [place[int(i)] for i in operator.outputs]
        for signature in model.signatureDefs:
            for entry in (*signature.inputs, *signature.outputs) if signature.subgraphIndex == number else ():
                entry.tensorIndex = place[int(entry.tensorIndex)]


def _integers(model: Any, graph: Any, index: int) -> list[int] | None:
    """The values of a constant int32 tensor; None if it is computed."""
    data = model.buffers[graph.tensors[index].buffer].data
    return None if data is None else np.frombuffer(bytes(data), np.int32).tolist()


def _constant(model: Any, graph: Any, like: int, values: list[int]) -> int:
    """A new constant int32 tensor beside the tensor `like`; its index."""
    from ai_edge_litert import schema_py_generated as schema

    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = np.frombuffer(np.asarray(values, np.int32).tobytes(), np.uint8)
    model.buffers.append(buffer)
    tensor.shape, tensor.type, tensor.buffer = [len(values)], schema.TensorType.INT32, len(model.buffers) - 1
    tensor.name = graph.tensors[like].name + b"_axes"
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1
