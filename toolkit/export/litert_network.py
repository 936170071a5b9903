"""Static int8 of convolutional networks in LiteRT: the whole graph stays in integers, inputs and outputs in float.

Layers that are quantized each for itself would be joined by operators that go to float and back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.engines.litert import signature_name
from toolkit.export.flatbuffer import buffer_data
from toolkit.ranges import Histogram, instability


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
        runner(**{name: arrays[name] for name in runner.get_input_details()})
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
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.recipe_manager import AlgorithmName

    rules.add_static_config(
        regex=".*", operation_name=TFLOperationName.ALL_SUPPORTED, activation_num_bits=8, weight_num_bits=8
    )
    left_out = [(".*", kind) for kind in ("INPUT", "OUTPUT")]
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
