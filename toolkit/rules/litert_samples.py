"""Small LiteRT files of one operator each, with inputs that it can work on, in every number format that it may have.

A form names the number formats of a sample: `fp32` for data of one kind, `fp32xint8` for float data with int8
weights, `int8 to fp32` for an operator that turns one into the other. `toolkit.rules.litert_graph` names those of a
file in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES = {
    "fp32": np.float32, "fp16": np.float16, "int8": np.int8, "uint8": np.uint8, "int16": np.int16, "int32": np.int32,
    "int64": np.int64, "bool": np.bool_,
}  # fmt: skip
_TENSOR_TYPES = {
    "fp32": "FLOAT32", "fp16": "FLOAT16", "int8": "INT8", "uint8": "UINT8", "int16": "INT16", "int32": "INT32",
    "int64": "INT64", "bool": "BOOL", "int4": "INT4", "resource": "RESOURCE",
}  # fmt: skip
_QUANTIZED = ("int8", "uint8", "int16")
_SCALE, _WEIGHT_SCALE = 0.05, 0.02
_IMAGE = (1, 8, 8, 4)
_DEEP = (1, 1, 1, 2, 2, 2, 2)


@dataclass(frozen=True)
class Input:
    """An input: data of the form's kind (no `role`), constant `weights`, a `bias`, or constant integers."""

    shape: tuple[int, ...]
    role: str = ""
    value: tuple[int, ...] = ()

    @property
    def is_constant(self) -> bool:
        return bool(self.role)


@dataclass(frozen=True)
class Sample:
    """An operator with its inputs, the shape of its output, and the options that the file gives it."""

    inputs: tuple[Input, ...]
    output: tuple[int, ...] = _IMAGE
    options: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    result: str = ""  # number format of the output, where it is not that of the data


def _data(*shape: int) -> Input:
    return Input(shape or _IMAGE)


def _integers(*value: int, shape: tuple[int, ...] | None = None) -> Input:
    return Input((len(value),) if shape is None else shape, "integers", value)


def _weights(*shape: int) -> Input:
    return Input(shape, "weights")


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


_UNARY = (
    "ABS", "CEIL", "COS", "ELU", "EXP", "FLOOR", "GELU", "HARD_SWISH", "L2_NORMALIZATION", "LOG", "LOGICAL_NOT",
    "LOGISTIC", "LOG_SOFTMAX", "NEG", "RELU", "RELU6", "RELU_0_TO_1", "RELU_N1_TO_1", "ROUND", "RSQRT", "SIGN", "SIN",
    "SQRT", "SQUARE", "TANH", "ZEROS_LIKE",
)  # fmt: skip
_BINARY = (
    "ADD", "ATAN2", "DIV", "FLOOR_DIV", "FLOOR_MOD", "LOGICAL_AND", "LOGICAL_OR", "MAXIMUM", "MINIMUM", "MUL", "POW",
    "SQUARED_DIFFERENCE", "SUB",
)  # fmt: skip
_COMPARISONS = ("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "NOT_EQUAL")
_REDUCTIONS = ("MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "SUM")
_OPTIONS = {"ATAN2": "ATan2Options", "MAXIMUM": "MaximumMinimumOptions", "MINIMUM": "MaximumMinimumOptions"}
_STRIDED = {"padding": 0, "strideH": 1, "strideW": 1, "dilationHFactor": 1, "dilationWFactor": 1}
_POOL = {"padding": 0, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}

SAMPLES: dict[str, Sample] = {
    **{name: Sample((_data(),), options=_OPTIONS.get(name, f"{_camel(name)}Options")) for name in _UNARY},
    **{name: Sample((_data(), _data()), options=_OPTIONS.get(name, f"{_camel(name)}Options")) for name in _BINARY},
    **{name: Sample((_data(), _data()), options=f"{_camel(name)}Options", result="bool") for name in _COMPARISONS},
    **{
        name: Sample((_data(), _integers(1, 2)), (1, 1, 1, 4), "ReducerOptions", {"keepDims": True})
        for name in _REDUCTIONS
    },
    "LEAKY_RELU": Sample((_data(),), options="LeakyReluOptions", settings={"alpha": 0.1}),
    "SOFTMAX": Sample((_data(),), options="SoftmaxOptions", settings={"beta": 1.0}),
    "PRELU": Sample((_data(), _weights(1, 1, 4))),
    "CONV_2D": Sample((_data(), _weights(8, 3, 3, 4), Input((8,), "bias")), (1, 8, 8, 8), "Conv2DOptions", _STRIDED),
    "DEPTHWISE_CONV_2D": Sample(
        (_data(), _weights(1, 3, 3, 4), Input((4,), "bias")), _IMAGE, "DepthwiseConv2DOptions",
        {**_STRIDED, "depthMultiplier": 1},
    ),
    "TRANSPOSE_CONV": Sample(
        (_integers(1, 16, 16, 8), _weights(8, 2, 2, 4), _data(), Input((8,), "bias")), (1, 16, 16, 8),
        "TransposeConvOptions", {"padding": 0, "strideH": 2, "strideW": 2},
    ),
    "FULLY_CONNECTED": Sample(
        (_data(2, 16), _weights(8, 16), Input((8,), "bias")), (2, 8), "FullyConnectedOptions", {"keepNumDims": True}
    ),
    "BATCH_MATMUL": Sample((_data(2, 4, 8), _data(2, 8, 4)), (2, 4, 4), "BatchMatMulOptions"),
    "EMBEDDING_LOOKUP": Sample((_integers(0, 2, 1), _weights(16, 8)), (3, 8)),
    "AVERAGE_POOL_2D": Sample((_data(),), (1, 4, 4, 4), "Pool2DOptions", _POOL),
    "MAX_POOL_2D": Sample((_data(),), (1, 4, 4, 4), "Pool2DOptions", _POOL),
    "L2_POOL_2D": Sample((_data(),), (1, 4, 4, 4), "Pool2DOptions", _POOL),
    "CONCATENATION": Sample((_data(), _data()), (1, 8, 8, 8), "ConcatenationOptions", {"axis": 3}),
    "PACK": Sample((_data(), _data()), (2, 1, 8, 8, 4), "PackOptions", {"axis": 0, "valuesCount": 2}),
    "UNPACK": Sample((_data(2, 8),), (8,), "UnpackOptions", {"axis": 0, "num": 2}, outputs=2),
    "SPLIT": Sample((_integers(3, shape=()), _data()), (1, 8, 8, 2), "SplitOptions", {"numSplits": 2}, outputs=2),
    "SPLIT_V": Sample(
        (_data(), _integers(1, 3), _integers(3, shape=())), (1, 8, 8, 1), "SplitVOptions", {"numSplits": 2}, outputs=2
    ),
    "RESHAPE": Sample((_data(), _integers(1, 64, 4)), (1, 64, 4), "ReshapeOptions", {"newShape": [1, 64, 4]}),
    "SQUEEZE": Sample((_data(),), (8, 8, 4), "SqueezeOptions", {"squeezeDims": [0]}),
    "EXPAND_DIMS": Sample((_data(), _integers(0, shape=())), (1, 1, 8, 8, 4), "ExpandDimsOptions"),
    "TRANSPOSE": Sample((_data(), _integers(0, 3, 1, 2)), (1, 4, 8, 8), "TransposeOptions"),
    "PAD": Sample((_data(), _integers(0, 0, 1, 1, 1, 1, 0, 0, shape=(4, 2))), (1, 10, 10, 4), "PadOptions"),
    "PADV2": Sample(
        (_data(), _integers(0, 0, 1, 1, 1, 1, 0, 0, shape=(4, 2)), _weights(1)), (1, 10, 10, 4), "PadV2Options"
    ),
    "MIRROR_PAD": Sample(
        (_data(), _integers(0, 0, 1, 1, 1, 1, 0, 0, shape=(4, 2))), (1, 10, 10, 4), "MirrorPadOptions"
    ),
    "SLICE": Sample((_data(), _integers(0, 2, 2, 0), _integers(1, 4, 4, 4)), (1, 4, 4, 4), "SliceOptions"),
    "STRIDED_SLICE": Sample(
        (_data(), _integers(0, 2, 2, 0), _integers(1, 6, 6, 4), _integers(1, 1, 1, 1)), (1, 4, 4, 4),
        "StridedSliceOptions",
    ),
    "BROADCAST_TO": Sample((_data(1, 1, 1, 4), _integers(*_IMAGE)), options="BroadcastToOptions"),
    "TILE": Sample((_data(1, 8, 8, 2), _integers(1, 1, 1, 2)), options="TileOptions"),
    "RESIZE_BILINEAR": Sample(
        (_data(), _integers(16, 16)), (1, 16, 16, 4), "ResizeBilinearOptions", {"halfPixelCenters": True}
    ),
    "RESIZE_NEAREST_NEIGHBOR": Sample(
        (_data(), _integers(16, 16)), (1, 16, 16, 4), "ResizeNearestNeighborOptions", {"halfPixelCenters": True}
    ),
    "DEPTH_TO_SPACE": Sample((_data(),), (1, 16, 16, 1), "DepthToSpaceOptions", {"blockSize": 2}),
    "SPACE_TO_DEPTH": Sample((_data(),), (1, 4, 4, 16), "SpaceToDepthOptions", {"blockSize": 2}),
    "GATHER": Sample((_data(16, 8), _integers(0, 2, 1)), (3, 8), "GatherOptions"),
    "GATHER_ND": Sample((_data(16, 8), _integers(0, 2, 1, shape=(3, 1))), (3, 8), "GatherNdOptions"),
    "REVERSE_V2": Sample((_data(), _integers(1)), options="ReverseV2Options"),
    "CUMSUM": Sample((_data(), _integers(1, shape=())), options="CumsumOptions"),
    "ARG_MAX": Sample((_data(2, 8), _integers(1, shape=())), (2,), "ArgMaxOptions", {"outputType": 2}, result="int32"),
    "ARG_MIN": Sample((_data(2, 8), _integers(1, shape=())), (2,), "ArgMinOptions", {"outputType": 2}, result="int32"),
    "SHAPE": Sample((_data(),), (4,), "ShapeOptions", {"outType": 2}, result="int32"),
    "ADD_N": Sample((_data(), _data()), options="AddNOptions"),
    "QUANTIZE": Sample((_data(),), options="QuantizeOptions"),
    "DEQUANTIZE": Sample((_data(),), options="DequantizeOptions"),
    "CAST": Sample((_data(),), options="CastOptions"),
}  # fmt: skip
VARIABLES = ("VAR_HANDLE", "ASSIGN_VARIABLE", "READ_VARIABLE")
_TANH = 4  # ActivationFunctionType.TANH; NONE to RELU6 are 0 to 3


@dataclass(frozen=True)
class Variant:
    """A sample that breaks a constraint (`toolkit.rules.constraints`) and is as the usual one otherwise."""

    operator: str
    constraint: Mapping[str, Any]
    sample: Sample


def _activated(name: str) -> Variant:
    given = SAMPLES[name]
    sample = replace(given, settings={**given.settings, "fusedActivationFunction": _TANH})
    return Variant(name, {"attribute": "fusedActivationFunction", "below": _TANH}, sample)


_ACTIVATED = (
    "ADD", "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "DIV", "FULLY_CONNECTED", "MAX_POOL_2D", "MUL", "SUB",
)  # fmt: skip
VARIANTS = (
    *map(_activated, _ACTIVATED),
    Variant("SOFTMAX", {"attribute": "beta", "equals": 1}, replace(SAMPLES["SOFTMAX"], settings={"beta": 2.0})),
    Variant(
        "STRIDED_SLICE", {"input": "input 4", "equals": 1},
        replace(
            SAMPLES["STRIDED_SLICE"],
            inputs=(_data(), _integers(0, 0, 0, 0), _integers(*_IMAGE), _integers(1, 2, 2, 1)),
        ),
    ),
    Variant(
        "CONCATENATION", {"attribute": "inputs", "below": 6},
        replace(SAMPLES["CONCATENATION"], inputs=(_data(),) * 6, output=(1, 8, 8, 24)),
    ),
    Variant(
        "SPLIT", {"attribute": "outputs", "below": 5},
        replace(
            SAMPLES["SPLIT"], inputs=(_integers(3, shape=()), _data(1, 8, 8, 10)), settings={"numSplits": 5}, outputs=5
        ),
    ),
    *(
        Variant(name, {"rank": (0, 6)}, replace(SAMPLES[name], inputs=(_data(*_DEEP),) * count, output=_DEEP))
        for names, count in ((_BINARY, 2), (_UNARY, 1))
        for name in names
    ),
)  # fmt: skip

_TURNS = {
    "QUANTIZE": ["fp32 to int8", "fp32 to uint8", "fp32 to int16", "int8 to int8", "int8 to uint8", "uint8 to int8"],
    "DEQUANTIZE": ["int8 to fp32", "uint8 to fp32", "int16 to fp32", "fp16 to fp32"],
    "CAST": [
        f"{a} to {b}" for a in ("fp32", "fp16", "int32", "int64", "int8", "bool") for b in ("fp32", "int32", "bool")
    ],
}  # fmt: skip


def forms(operator: str) -> list[str]:
    """The forms in which an operator is tried."""
    if operator in _TURNS:
        return [form for form in _TURNS[operator] if len(set(form.split(" to "))) > 1 or operator == "QUANTIZE"]
    has_weights = any(each.role == "weights" for each in SAMPLES.get(operator, Sample(())).inputs)
    return [*DTYPES, *(["fp32xint8", "fp32xint4"] if has_weights else [])]


def usual(operator: str, form: str) -> bytes:
    """The sample of an operator in a form, as a file."""
    return _variable(form) if operator in VARIABLES else _file(operator, SAMPLES[operator], form, None)


def breaking(operator: str, form: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Constraints that a runtime may have for an operator, each with a file that breaks it: constant inputs that are
    computed, and the variants."""
    if operator in VARIABLES:
        return
    sample = SAMPLES[operator]
    for place, given in enumerate(sample.inputs):
        if given.is_constant:
            yield {"input": f"input {place + 1}", "constant": True}, _file(operator, sample, form, place)
    for variant in VARIANTS:
        if variant.operator == operator:
            yield dict(variant.constraint), _file(operator, variant.sample, form, None)


def _file(operator: str, sample: Sample, form: str, computed: int | None) -> bytes:
    data, _, result = form.partition(" to ")
    data, _, weights = data.partition("x")
    graph = _Graph()
    numbers = []
    for place, given in enumerate(sample.inputs):
        dtype, scale = _kind(given.role, data, weights or data)
        value: NDArray[Any] | None = None
        if given.is_constant and place != computed:
            filled = np.array(given.value) if given.value else np.ones(given.shape)
            value = filled.astype(DTYPES.get(dtype, np.int8)).reshape(given.shape)
            if dtype == "int4":  # two in a byte
                value = np.full(-(-value.size // 2), 0x11, np.uint8)
        numbers.append(graph.tensor(given.shape, dtype, scale, value))
    narrow = {
        "LOGISTIC": 1 / 256,
        "SOFTMAX": 1 / 256,
        "LOG_SOFTMAX": 16 / 256,
        "TANH": 1 / 128,
        "L2_NORMALIZATION": 1 / 128,
    }
    kind = result or sample.result or data
    moves = operator in ("MAX_POOL_2D", "GATHER", "TRANSPOSE")
    scale = _SCALE if moves else narrow.get(operator, _SCALE)
    lowest = operator in ("LOGISTIC", "SOFTMAX", "EXP")
    outputs = [graph.tensor(sample.output, kind, scale, None, lowest=lowest) for _ in range(sample.outputs)]
    graph.operator(operator, numbers, outputs, sample.options, sample.settings)
    return graph.written([n for n in numbers if n not in graph.constant], outputs)


def _kind(role: str, data: str, weights: str) -> tuple[str, float]:
    """Number format and scale of an input."""
    if role == "integers":
        return "int32", 0.0
    if role == "weights":
        return weights, _WEIGHT_SCALE
    if role == "bias":
        if data in _QUANTIZED:
            return ("int64" if data == "int16" else "int32"), _SCALE * _WEIGHT_SCALE
        return data, 0.0
    return data, _SCALE


def _variable(form: str) -> bytes:
    """A variable that is written and read."""
    graph = _Graph()
    handle = graph.tensor((), "resource", 0.0, None)
    given, read = (graph.tensor(_IMAGE, form, _SCALE, None) for _ in range(2))
    graph.operator("VAR_HANDLE", [], [handle], "VarHandleOptions", {"container": "", "sharedName": "v"})
    graph.operator("ASSIGN_VARIABLE", [handle, given], [], "AssignVariableOptions", {})
    graph.operator("READ_VARIABLE", [handle], [read], "ReadVariableOptions", {})
    return graph.written([given], [read])


class _Graph:
    """A LiteRT graph on its way to a file."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._schema = schema
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model = schema.ModelT()
        self._model.version, self._model.operatorCodes, self._model.buffers = 3, [], [schema.BufferT()]
        self.constant: set[int] = set()

    def tensor(self, shape: tuple[int, ...], dtype: str, scale: float, value: Any, lowest: bool = False) -> int:
        """Add a tensor; quantized ones have a scale and the zero point in the middle, or at the lowest value."""
        made = self._schema.TensorT()
        made.shape, made.name = list(shape), f"t{len(self._graph.tensors)}".encode()
        made.type, made.buffer = getattr(self._schema.TensorType, _TENSOR_TYPES[dtype]), 0
        if scale and dtype not in ("fp32", "fp16", "bool", "int64" if scale == _SCALE else ""):
            made.quantization = self._schema.QuantizationParametersT()
            zero = {"uint8": 0 if lowest else 128, "int8": -128 if lowest else 0}.get(dtype, 0)
            made.quantization.scale, made.quantization.zeroPoint = [scale], [zero]
        if value is not None:
            buffer = self._schema.BufferT()
            buffer.data = np.frombuffer(np.asarray(value).tobytes(), np.uint8)
            made.buffer = len(self._model.buffers)
            self._model.buffers.append(buffer)
            self.constant.add(len(self._graph.tensors))
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def operator(
        self, name: str, inputs: list[int], outputs: list[int], options: str, settings: Mapping[str, Any]
    ) -> None:
        code = self._schema.OperatorCodeT()
        code.builtinCode = getattr(self._schema.BuiltinOperator, name)
        code.deprecatedBuiltinCode, code.version = min(code.builtinCode, 127), 1
        made = self._schema.OperatorT()
        made.inputs, made.outputs, made.opcodeIndex = inputs, outputs, len(self._model.operatorCodes)
        if hasattr(self._schema, f"{options}T"):
            made.builtinOptions = getattr(self._schema, f"{options}T")()
            made.builtinOptionsType = getattr(self._schema.BuiltinOptions, options)
            for key, value in settings.items():
                setattr(made.builtinOptions, key, value)
        self._model.operatorCodes.append(code)
        self._graph.operators.append(made)

    def written(self, inputs: list[int], outputs: list[int]) -> bytes:
        from ai_edge_litert.tools import flatbuffer_utils

        self._graph.inputs, self._graph.outputs = inputs, outputs
        self._model.subgraphs = [self._graph]
        return bytes(flatbuffer_utils.convert_object_to_bytearray(self._model))
