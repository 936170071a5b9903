"""Whole networks in integers in LiteRT, with inputs and outputs in float (`static-int8`, `int16-activations`) or not
(`integer-int8`).

Layers that are quantized each for itself would be joined by operators that go to float and back.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.engines.litert import Tensor, fed, signature_name
from toolkit.errors import InputError
from toolkit.export import INTEGER, litert_versions
from toolkit.export.flatbuffer import buffer_data, short_names
from toolkit.ranges import Histogram, instability

ACTIVATION_BITS = {"static-int8": 8, "integer-int8": 8, "int16-activations": 16}


def activations(source: Path, model: Any, inputs: Sequence[Arrays]) -> dict[int, tuple[Histogram, Histogram]]:
    """The values of every float tensor of the file's one graph that is no weight, by its index: one histogram for every
    other example, one for the rest."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    graph = model.subgraphs[0]
    padded = {output for _, output, _ in _infinite_padding(source.read_bytes(), model)}
    wanted = [
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.type == schema.TensorType.FLOAT32
        and model.buffers[tensor.buffer].data is None
        and index not in padded
    ]
    interpreter = Interpreter(model_path=str(source), num_threads=1, experimental_preserve_all_tensors=True)
    runner = interpreter.get_signature_runner(signature_name(None))
    found = {index: (Histogram(), Histogram()) for index in wanted}
    for number, arrays in enumerate(inputs):
        runner(**{name: fed(name, arrays[name], Tensor.of(each)) for name, each in runner.get_input_details().items()})
        for index, halves in found.items():
            halves[number % 2].add(interpreter.get_tensor(index, 0))
    return found


def _infinite_padding(content: bytes, model: Any) -> list[tuple[int, int, int]]:
    """(input tensor, output tensor, buffer of the constant) of every operator that pads with minus infinity, as the
    converter does before it takes a maximum."""
    from ai_edge_litert import schema_py_generated as schema

    graph, found = model.subgraphs[0], []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) != schema.BuiltinOperator.PADV2:
            continue
        buffer = graph.tensors[operator.inputs[2]].buffer
        if np.isneginf(np.frombuffer(buffer_data(content, model.buffers[buffer]), np.float32)).all():
            found.append((operator.inputs[0], operator.outputs[0], buffer))
    return found


def with_finite_padding(source: Path, model: Any, ranges: dict[str, Any]) -> bytearray:
    """The file's content with the lowest value that integers will have for minus infinity, which no integer stands for;
    a maximum stays what it was. `ranges` get those of what was padded: the range from before."""
    from ai_edge_litert import schema_py_generated as schema

    content = bytearray(source.read_bytes())
    packed, tensors = schema.Model.GetRootAs(content, 0), model.subgraphs[0].tensors
    lowest: dict[int, float] = {}  # of a buffer: several operators may share it, and integers stop at their own range
    for before, after, buffer in _infinite_padding(bytes(content), model):
        known = ranges[tensors[before].name.decode()]
        lowest[buffer] = min(float(known["min"].min()), lowest.get(buffer, 0.0))
        ranges[tensors[after].name.decode()] = {
            side: np.full([1] * len(tensors[after].shape), value.flat[0], np.float32) for side, value in known.items()
        }
        packed.Buffers(buffer).DataAsNumpy()[:] = np.frombuffer(np.float32(lowest[buffer]).tobytes(), np.uint8)
    return content


def plan(
    source: Path, model: Any, rules: Any, layers: Sequence[Any], kept: Sequence[Any], parameters: Any,
    inputs: Sequence[Arrays],
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Add to the `rules` of ai-edge-quantizer that all is quantized but the layers that are `kept`.

    Returns (the range of every activation by tensor name, what there is to report). `layers` are those of
    `toolkit.export.litert_quantize`.
    """
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.recipe_manager import AlgorithmName

    rules.add_static_config(
        regex=".*", operation_name=TFLOperationName.ALL_SUPPORTED, weight_num_bits=8,
        activation_num_bits=ACTIVATION_BITS[parameters.method],
    )  # fmt: skip
    if parameters.method == INTEGER or parameters.scales == "tensor":
        # TensorFlow Lite's specification of int8 has one scale here, and compilers for accelerators keep to it.
        rules.add_static_config(
            regex=".*", operation_name=TFLOperationName.FULLY_CONNECTED, weight_num_bits=8,
            activation_num_bits=ACTIVATION_BITS[parameters.method], weight_granularity=QuantGranularity.TENSORWISE,
        )  # fmt: skip
    left_out = [(".*", kind) for kind in ("INPUT", "OUTPUT") if parameters.method != INTEGER]
    left_out += [(f"^{re.escape(scope)}$", layer.kind) for layer in kept for scope in layer.scopes()]
    for regex, kind in left_out:
        rules.add_quantization_config(
            regex=regex, operation_name=TFLOperationName[kind], algorithm_key=AlgorithmName.NO_QUANTIZE
        )
    halves = activations(source, model, inputs)
    tensors = model.subgraphs[0].tensors
    ranges = {}
    for index, (first, second) in halves.items():
        low, high = first.merge(second).range(parameters.calibration, parameters.percentile)
        ones = [1] * len(tensors[index].shape)
        ranges[tensors[index].name.decode()] = {
            "min": np.full(ones, low, np.float32), "max": np.full(ones, high, np.float32)
        }  # fmt: skip
    spread = {
        layer.name: instability(*halves[operator.inputs[0]], parameters.calibration, parameters.percentile)
        for layer in layers
        for _, operator in layer.operators[:1]
        if operator.inputs[0] in halves
    }
    return ranges, {"calibrated": len(halves), "unstable": spread}


def check_integer(model: Any) -> None:
    """Refuse a graph in which something is still float. Raises InputError naming the operator."""
    from ai_edge_litert import schema_py_generated as schema

    codes = litert_versions.operators(model)
    floats = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = codes[operator.opcodeIndex][0]
            if kind in ("QUANTIZE", "DEQUANTIZE"):  # before and behind the one that is looked for
                continue
            tensors = [graph.tensors[index] for index in (*operator.inputs, *operator.outputs) if index >= 0]
            still = next((tensor for tensor in tensors if tensor.type in floats), None)
            if still is not None:
                where = "; ".join(short_names(still.name.decode()))
                raise InputError(
                    f"integer-int8: {kind} ({where}) stays in float, for there is no int8 form of it here. Give the "
                    "network another operator there, or use static-int8."
                )
        edges = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
        if any(tensor.type in floats for tensor in edges):
            raise InputError("integer-int8: an input or output of the network stays in float. Use static-int8.")


def with_unsigned_io(model: Any) -> None:
    """Change a graph's inputs and outputs from int8 to uint8, with a QUANTIZE between them and the rest, which shifts
    by 128."""
    from ai_edge_litert import schema_py_generated as schema

    (graph,) = model.subgraphs
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.QUANTIZE
    code.version = 1
    model.operatorCodes.append(code)
    graph.inputs, graph.outputs = list(map(int, graph.inputs)), list(map(int, graph.outputs))
    for places, mapped in ((graph.inputs, "inputs"), (graph.outputs, "outputs")):
        for place, index in enumerate(places):
            signed = graph.tensors[index]
            if signed.type != schema.TensorType.INT8:
                continue
            unsigned = copy.copy(signed)
            unsigned.type, unsigned.quantization = schema.TensorType.UINT8, copy.copy(signed.quantization)
            unsigned.quantization.zeroPoint = [int(signed.quantization.zeroPoint[0]) + 128]
            graph.tensors.append(unsigned)
            signed.name = signed.name + b"_int8"
            outside = len(graph.tensors) - 1
            places[place] = outside
            operator = schema.OperatorT()
            operator.opcodeIndex = len(model.operatorCodes) - 1
            operator.inputs, operator.outputs = [outside], [int(index)]
            if mapped == "outputs":
                operator.inputs, operator.outputs = operator.outputs, operator.inputs
                graph.operators.append(operator)
            else:
                graph.operators.insert(0, operator)
            for signature in model.signatureDefs:
                for entry in getattr(signature, mapped):
                    if entry.tensorIndex == index:
                        entry.tensorIndex = outside
