"""What the converter to LiteRT leaves undone, for runtimes that have less than the newest.

Networks of PyTorch have the channels before height and width, LiteRT's kernels behind them. The converter moves them
back before the mean over a picture, which could as well be taken where they are: accelerators that have no TRANSPOSE,
the Edge TPU among them, leave the rest of the graph to the host.

Attention masks of some encoders (ModernBERT, MPNet) are looked up as booleans, for which GATHER_ND has a kernel since
TensorFlow Lite 2.16 only. Zeros and ones as int32 are looked up everywhere.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def mean_where_channels_are(model: Any) -> int:
    """Take the mean over axes of a transposed tensor over the axes that they were before, without the TRANSPOSE. Only
    where what is left comes in the same order. Changes the objects; returns how many operators went."""
    from ai_edge_litert import schema_py_generated as schema

    gone = 0
    for graph in model.subgraphs:
        made_by = {int(operator.outputs[0]): operator for operator in graph.operators}
        read = [int(index) for operator in graph.operators for index in operator.inputs]
        read += [int(index) for index in graph.outputs]
        for mean in [each for each in graph.operators if _kind(model, each) == schema.BuiltinOperator.MEAN]:
            transpose = made_by.get(int(mean.inputs[0]))
            if transpose is None or _kind(model, transpose) != schema.BuiltinOperator.TRANSPOSE:
                continue
            if read.count(int(mean.inputs[0])) > 1:
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


def look_up_integers(model: Any) -> int:
    """Let GATHER_ND look up int32 in place of booleans, with a CAST before and behind it. Changes the objects; returns
    how many there were. The same files then load on older runtimes."""
    from ai_edge_litert import schema_py_generated as schema

    gather, boolean = schema.BuiltinOperator.GATHER_ND, schema.TensorType.BOOL
    everywhere = (schema.TensorType.FLOAT32, schema.TensorType.INT32, schema.TensorType.INT64)
    changed = 0
    for graph in model.subgraphs:
        operators = []
        for operator in graph.operators:
            if _kind(model, operator) != gather or graph.tensors[operator.inputs[0]].type != boolean:
                operators.append(operator)
                if _kind(model, operator) == gather and graph.tensors[operator.inputs[0]].type in everywhere:
                    operator.opcodeIndex = _code(model, gather, 1)  # the file has one version for all of a kind
                continue
            table, found = int(operator.inputs[0]), int(operator.outputs[0])
            table_integers, found_integers = (_like(graph, index, schema.TensorType.INT32) for index in (table, found))
            operator.inputs, operator.outputs = [table_integers, int(operator.inputs[1])], [found_integers]
            operator.opcodeIndex = _code(model, gather, 1)
            operators += [_cast(model, table, table_integers), operator, _cast(model, found_integers, found)]
            changed += 1
        graph.operators = operators
    if changed:
        _drop_unused_codes(model)
    return changed


def _kind(model: Any, operator: Any) -> int:
    code = model.operatorCodes[operator.opcodeIndex]
    return max(int(code.builtinCode), int(code.deprecatedBuiltinCode))


def _like(graph: Any, index: int, kind: int) -> int:
    """A new tensor of another type and the same shape; its index."""
    from ai_edge_litert import schema_py_generated as schema

    tensor, original = schema.TensorT(), graph.tensors[index]
    tensor.shape, tensor.shapeSignature, tensor.type, tensor.buffer = original.shape, original.shapeSignature, kind, 0
    tensor.name = original.name + b"_integers"
    graph.tensors.append(tensor)
    return len(graph.tensors) - 1


def _cast(model: Any, given: int, made: int) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    operator = schema.OperatorT()
    operator.opcodeIndex = _code(model, schema.BuiltinOperator.CAST, 1)
    operator.inputs, operator.outputs = [given], [made]
    return operator


def _code(model: Any, kind: int, version: int) -> int:
    """The index of an operator code, which is added if it is not there."""
    from ai_edge_litert import schema_py_generated as schema

    for index, code in enumerate(model.operatorCodes):
        if max(int(code.builtinCode), int(code.deprecatedBuiltinCode)) == kind and code.version == version:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), version
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _drop_unused_codes(model: Any) -> None:
    """Take out operator codes that no operator has: a runtime that lacks one does not load the file."""
    operators = [operator for graph in model.subgraphs for operator in graph.operators]
    kept = sorted({int(operator.opcodeIndex) for operator in operators})
    model.operatorCodes = [model.operatorCodes[index] for index in kept]
    for operator in operators:
        operator.opcodeIndex = kept.index(int(operator.opcodeIndex))
