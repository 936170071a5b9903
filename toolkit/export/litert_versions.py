"""Operator versions of LiteRT files: those that the tensors ask for, and the oldest runtime that has them.

A file with one operator version that a runtime lacks does not load there at all. So a file must say the versions that
it needs: with older ones it loads, and some kernels then answer wrongly (tflite-runtime 2.14 takes no notice of scales
per output channel of a float fully connected layer). ai-edge-quantizer leaves those of the float file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from packaging.version import Version

from toolkit.errors import InputError

# The level of the operator table that each release of the package covers whole; measured by loading one file
# per operator version into the released wheels. `tflite-runtime` is numbered by the level itself.
_PACKAGE_OF_LEVEL = (
    ("2.16.0", "1.0.1"),
    ("2.19.0", "1.2.0"),
    ("2.20.0", "2.0.2"),
    ("2.21.0", "2.1.3"),
    ("2.23.0", "2.2.0"),
)
_RUNTIME_VERSION = b"min_runtime_version"  # the metadata in which converters write the level, padded to 16 bytes
# No operator version says that fully connected layers in integers have a scale per output channel; this is the oldest
# runtime in which they were tried.
_BY_CHANNEL = "2.14.0"
# The first version of an operator that computes in int8, and in int16 with weights in int8, by TensorFlow Lite's
# op_version.cc. Others have integers from version 1 on.
_INT8 = {
    "ADD": 2, "ARG_MAX": 2, "AVERAGE_POOL_2D": 2, "BATCH_MATMUL": 2, "CONCATENATION": 2, "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "GATHER": 2, "GELU": 2, "LOGISTIC": 2, "MAXIMUM": 2, "MAX_POOL_2D": 2,
    "MEAN": 2, "MINIMUM": 2, "MUL": 2, "PACK": 2, "PAD": 2, "PADV2": 2, "RELU": 2, "RELU6": 2, "RESIZE_BILINEAR": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2, "RSQRT": 2, "SLICE": 2, "SOFTMAX": 2, "SPLIT": 2, "SQUARED_DIFFERENCE": 2,
    "STRIDED_SLICE": 2, "SUB": 2, "SUM": 2, "TANH": 2, "TRANSPOSE": 2, "TRANSPOSE_CONV": 2,
}  # fmt: skip
_INT16 = {
    "ADD": 3, "AVERAGE_POOL_2D": 3, "BATCH_MATMUL": 3, "CONCATENATION": 3, "CONV_2D": 4, "DEPTHWISE_CONV_2D": 5,
    "FULLY_CONNECTED": 7, "GATHER": 4, "LOGISTIC": 3, "MAXIMUM": 4, "MAX_POOL_2D": 3, "MEAN": 3, "MINIMUM": 4, "MUL": 4,
    "PACK": 3, "PAD": 3, "PADV2": 3, "QUANTIZE": 2, "RELU": 3, "RELU6": 3, "RESIZE_BILINEAR": 4,
    "RESIZE_NEAREST_NEIGHBOR": 4, "RSQRT": 3, "SLICE": 4, "SOFTMAX": 3, "SPLIT": 4, "SUB": 5, "TANH": 3, "TRANSPOSE": 5,
}  # fmt: skip
# Weights of operators that compute in float: one scale, and a scale per output channel.
_HYBRID = {"CONV_2D": (2, 5), "DEPTHWISE_CONV_2D": (4, 6), "FULLY_CONNECTED": (3, 12), "EMBEDDING_LOOKUP": (3, 4)}
_INT4_WEIGHTS = {"FULLY_CONNECTED": 13, "EMBEDDING_LOOKUP": 4}


def names() -> dict[int, str]:
    """The builtin operators by their number."""
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}


def operators(model: Any) -> list[tuple[str, int]]:
    """(operator, version) as a file lists them."""
    known = names()
    return [(known[max(code.builtinCode, code.deprecatedBuiltinCode)], code.version) for code in model.operatorCodes]


def write(model: Any) -> None:
    """Raise the operator versions of a quantized file, as objects, to those that its tensors ask for; and the runtime
    version that stands in its metadata."""
    known = names()
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kind = known[max(code.builtinCode, code.deprecatedBuiltinCode)]
            inputs = [graph.tensors[index] if index >= 0 else None for index in operator.inputs]
            code.version = max(code.version, _needed(kind, inputs, graph.tensors[operator.outputs[0]]))
    for entry in model.metadata or ():
        if entry.name == _RUNTIME_VERSION:
            model.buffers[entry.buffer].data = level(model).encode().ljust(16, b"\0")


def level(model: Any) -> str:
    """The lowest TensorFlow Lite version that runs a file. Raises InputError."""
    found = minimum_level(operators(model))
    known = names()
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            if known[max(code.builtinCode, code.deprecatedBuiltinCode)] != "FULLY_CONNECTED":
                continue
            weight = graph.tensors[operator.inputs[1]]
            if _by_channel(weight) and Version(found) < Version(_BY_CHANNEL):
                found = _BY_CHANNEL
    return found


def _needed(kind: str, inputs: list[Any], output: Any) -> int:
    """The version of an operator that its tensors ask for."""
    from ai_edge_litert.schema_py_generated import TensorType

    if kind == "DEQUANTIZE":
        stored = inputs[0].type
        if stored == TensorType.INT4:
            return 6
        if stored == TensorType.INT8:
            return 5 if _by_channel(inputs[0]) else 2
        return 3 if stored in (TensorType.FLOAT16, TensorType.INT16) else 1
    weight = inputs[1] if len(inputs) > 1 else None
    if weight is not None and kind in _INT4_WEIGHTS and weight.type == TensorType.INT4:
        return _INT4_WEIGHTS[kind]
    hybrid = output.type == TensorType.FLOAT32 or kind == "EMBEDDING_LOOKUP"
    if weight is not None and hybrid and kind in _HYBRID and weight.type == TensorType.INT8:
        return _HYBRID[kind][_by_channel(weight)]
    if output.type == TensorType.INT16:
        return _INT16.get(kind, 1)
    return _INT8.get(kind, 1) if output.type == TensorType.INT8 else 1


def _by_channel(tensor: Any) -> bool:
    """Whether a tensor has a scale per channel."""
    scales = tensor.quantization.scale if tensor.quantization is not None else None
    return scales is not None and len(scales) > 1


def minimum_level(operators: list[tuple[str, int]]) -> str:
    """The lowest TensorFlow Lite version that has every operator in its version. `operators` are (name, version).

    Raises InputError for an operator version that no known runtime has.
    """
    table = json.loads(Path(__file__).with_name("litert_op_versions.json").read_text())["minimum_runtime"]
    levels = []
    for name, version in operators:
        known = table.get(name, {}).get(str(version))
        if known is None:
            raise InputError(f"No known LiteRT runtime has the operator {name} in version {version}.")
        levels.append(Version(known))
    return str(max(levels, default=Version("1.5.0")))


def minimum_versions(level: str) -> dict[str, str]:
    """Minimum version per package that can run a file of this level."""
    for covered, package in _PACKAGE_OF_LEVEL:
        if Version(level) <= Version(covered):
            return {"tflite-runtime": level, "ai-edge-litert": package}
    raise InputError(f"No released LiteRT runtime covers level {level}.")
