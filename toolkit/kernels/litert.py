"""Kernels as LiteRT files: in float, in int8 as dynamic quantization (gemm) and full quantization (convolutions) lead
to them. The flatbuffers are written table by table, which needs no converter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.costs.work import Work
from toolkit.engines import Arrays
from toolkit.engines.litert import signature_name
from toolkit.errors import missing_extra
from toolkit.kernels import Kernel

SUFFIX = ".tflite"
KINDS: dict[Work, tuple[str, ...]] = {
    "gemm": ("FULLY_CONNECTED",), "attention": ("BATCH_MATMUL",), "convolution": ("CONV_2D",),
    "pointwise": ("CONV_2D",), "depthwise": ("DEPTHWISE_CONV_2D",), "elementwise": ("ADD", "MUL"),
    "activation": ("GELU", "TANH"), "normalization": ("SOFTMAX", "MEAN"), "copy": ("TRANSPOSE", "RESHAPE"),
}  # fmt: skip
INTEGER_KINDS: dict[Work, tuple[str, ...]] = {
    "gemm": ("FULLY_CONNECTED",), "convolution": ("CONV_2D",), "pointwise": ("CONV_2D",),
    "depthwise": ("DEPTHWISE_CONV_2D",), "elementwise": ("ADD",),
}  # fmt: skip
_SCALE = 0.05  # of quantized values
_EXTENT = {"convolution": 3, "depthwise": 3, "pointwise": 1}
_SCHEMA_VERSION = 3


def write(kernel: Kernel, path: Path, seed: int) -> Arrays:
    """Write a kernel as a graph with one signature; inputs for it."""
    try:
        import ai_edge_litert  # noqa: F401
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Calibrating litert") from error
    graph = _Graph(np.random.default_rng(seed))
    builders: dict[Work, Callable[[_Graph, Kernel], None]] = {
        "gemm": _gemm, "attention": _attention, "convolution": _convolutions, "pointwise": _convolutions,
        "depthwise": _convolutions,
    }  # fmt: skip
    builders.get(kernel.work, _between)(graph, kernel)
    path.write_bytes(graph.packed())
    return graph.arrays


class _Graph:
    """A model of one graph in the making. Tensors are numbers."""

    def __init__(self, generator: np.random.Generator) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self._generator = generator
        self._graph = schema.SubGraphT()
        self._graph.name, self._graph.tensors, self._graph.operators = b"main", [], []
        self._graph.inputs, self._graph.outputs = [], []
        self._buffers = [schema.BufferT()]
        self.arrays: Arrays = {}
        self._codes: dict[tuple[int, int], int] = {}

    def tensor(
        self,
        shape: Sequence[int],
        kind: str = "FLOAT32",
        data: NDArray[Any] | None = None,
        scale: Any = None,
        axis: int = 0,
    ) -> int:
        """A new tensor: a constant if it has `data`, quantized if it has a scale, or one per channel of an axis."""
        made = self.schema.TensorT()
        made.shape, made.type = [int(size) for size in shape], getattr(self.schema.TensorType, kind)
        made.name, made.buffer = f"t{len(self._graph.tensors)}".encode(), 0
        if scale is not None:
            made.quantization = self.schema.QuantizationParametersT()
            scales = np.atleast_1d(np.asarray(scale, np.float32))
            made.quantization.scale = scales
            made.quantization.zeroPoint = np.zeros(len(scales), np.int64)
            made.quantization.quantizedDimension = axis
        if data is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            self._buffers.append(buffer)
            made.buffer = len(self._buffers) - 1
        self._graph.tensors.append(made)
        return len(self._graph.tensors) - 1

    def input(self, shape: Sequence[int], kind: str = "FLOAT32", scale: float | None = None) -> int:
        self._graph.inputs.append(self.tensor(shape, kind, scale=scale))
        values = self._generator.standard_normal(tuple(shape))
        name = f"x{len(self.arrays)}"
        self.arrays[name] = (values / scale).astype(np.int8) if scale else values.astype(np.float32)
        return int(self._graph.inputs[-1])

    def output(self, tensor: int) -> None:
        self._graph.outputs.append(tensor)

    def weight(self, shape: Sequence[int], inputs: int) -> NDArray[np.float32]:
        """Weights that keep values as large as they are."""
        values: NDArray[np.float32] = (self._generator.standard_normal(tuple(shape)) / np.sqrt(inputs)).astype(
            np.float32
        )
        return values

    def add(self, kind: str, version: int, inputs: Sequence[int], output: int, options: Any = None) -> int:
        """An operator; its output."""
        code = (getattr(self.schema.BuiltinOperator, kind), version)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._codes.setdefault(code, len(self._codes))
        operator.inputs, operator.outputs = list(inputs), [output]
        if options is not None:
            name = type(options).__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, name)
            operator.builtinOptions = options
        self._graph.operators.append(operator)
        return output

    def packed(self) -> bytes:
        """The model as a file's content."""
        import flatbuffers

        model = self.schema.ModelT()
        model.version, model.description = _SCHEMA_VERSION, b"kernel"
        model.subgraphs, model.buffers, model.operatorCodes = [self._graph], self._buffers, []
        for builtin, version in self._codes:
            code = self.schema.OperatorCodeT()
            code.builtinCode, code.deprecatedBuiltinCode, code.version = builtin, min(builtin, 127), version
            model.operatorCodes.append(code)
        signature = self.schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex = signature_name(None).encode(), 0
        signature.inputs = self._named(self.arrays, self._graph.inputs)
        signature.outputs = self._named([f"y{place}" for place in range(len(self._graph.outputs))], self._graph.outputs)
        model.signatureDefs = [signature]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def _named(self, names: Iterable[str], tensors: Sequence[int]) -> list[Any]:
        found = []
        for name, tensor in zip(names, tensors, strict=True):
            entry = self.schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), tensor
            found.append(entry)
        return found


def _quantized(values: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights as int8 with a scale per channel of an axis."""
    others = tuple(each for each in range(values.ndim) if each != axis)
    scale = np.abs(values).max(axis=others, keepdims=True) / 127
    return np.round(values / scale).astype(np.int8), scale.reshape(-1).astype(np.float32)


def _gemm(graph: _Graph, kernel: Kernel) -> None:
    rows, width, other = kernel.size
    value = graph.input((rows, width))
    options = graph.schema.FullyConnectedOptionsT()
    for number in range(kernel.repeats):
        outputs, inputs = (other, width) if number % 2 == 0 else (width, other)
        weight = graph.weight((outputs, inputs), inputs)
        if kernel.dtype == "int8":
            small, scale = _quantized(weight, 0)
            held, version = graph.tensor(small.shape, "INT8", small, scale), 12
        else:
            held, version = graph.tensor(weight.shape, data=weight), 1
        value = graph.add(kernel.kind, version, [value, held, -1], graph.tensor((rows, outputs)), options)
    graph.output(value)


def _attention(graph: _Graph, kernel: Kernel) -> None:
    heads, length, width = kernel.size
    value = graph.input((1, heads, length, width))
    keys, values = graph.input((1, heads, width, length)), graph.input((1, heads, length, width))
    options = graph.schema.BatchMatMulOptionsT()
    for number in range(kernel.repeats):
        even = number % 2 == 0
        made = graph.tensor((1, heads, length, length if even else width))
        value = graph.add(kernel.kind, 1, [value, keys if even else values], made, options)
    graph.output(value)


def _convolutions(graph: _Graph, kernel: Kernel) -> None:
    channels, side = kernel.size
    extent, integer = _EXTENT[kernel.work], kernel.dtype == "int8"
    shape, kind = (1, side, side, channels), "INT8" if integer else "FLOAT32"
    scale = _SCALE if integer else None
    depthwise = kernel.work == "depthwise"
    if depthwise:
        options = graph.schema.DepthwiseConv2DOptionsT()
        options.depthMultiplier = 1
    else:
        options = graph.schema.Conv2DOptionsT()
    options.strideW = options.strideH = options.dilationWFactor = options.dilationHFactor = 1
    options.padding = graph.schema.Padding.SAME
    value = graph.input(shape, kind, scale)
    for _ in range(kernel.repeats):
        first, reads = (1, 1) if depthwise else (channels, channels)
        weight = graph.weight((first, extent, extent, channels), reads * extent * extent)
        if integer:
            axis = 3 if depthwise else 0
            small, scales = _quantized(weight, axis)
            held = graph.tensor(small.shape, "INT8", small, scales, axis)
            bias = graph.tensor((channels,), "INT32", np.zeros(channels, np.int32), scales * _SCALE)
        else:
            held = graph.tensor(weight.shape, data=weight)
            bias = graph.tensor((channels,), data=np.zeros(channels, np.float32))
        value = graph.add(
            kernel.kind, 3 if integer else 1, [value, held, bias], graph.tensor(shape, kind, scale=scale), options
        )
    graph.output(value)


def _between(graph: _Graph, kernel: Kernel) -> None:
    """What stands between products, on float[rows, width]."""
    rows, width = kernel.size
    integer = kernel.dtype == "int8"
    kind, scale = ("INT8", _SCALE) if integer else ("FLOAT32", None)
    shape: tuple[int, ...] = (rows, width // 32, 32) if kernel.kind == "TRANSPOSE" else (rows, width)
    value = graph.input(shape, kind, scale)
    options: Any = None
    seconds: list[int] = []
    if kernel.kind in ("ADD", "MUL"):
        options = graph.schema.AddOptionsT() if kernel.kind == "ADD" else graph.schema.MulOptionsT()
        seconds = [graph.input(shape, kind, scale)]
    elif kernel.kind == "SOFTMAX":
        options = graph.schema.SoftmaxOptionsT()
        options.beta = 1.0
    elif kernel.kind == "MEAN":
        options = graph.schema.ReducerOptionsT()
        options.keepDims = True
        seconds = [graph.tensor((1,), "INT32", np.array([1], np.int32))]
    elif kernel.kind == "GELU":
        options = graph.schema.GeluOptionsT()
    elif kernel.kind == "TRANSPOSE":
        options = graph.schema.TransposeOptionsT()
        seconds = [graph.tensor((3,), "INT32", np.array([1, 0, 2], np.int32))]
    elif kernel.kind == "RESHAPE":
        options = graph.schema.ReshapeOptionsT()
    version = 2 if integer else 1
    first = value
    for number in range(kernel.repeats):
        if kernel.kind == "TRANSPOSE":
            shape = (shape[1], shape[0], shape[2])
        elif kernel.kind == "RESHAPE":
            shape = shape[::-1]
            options = graph.schema.ReshapeOptionsT()
            options.newShape = list(shape)
            seconds = [graph.tensor((2,), "INT32", np.array(shape, np.int32))]
        if kernel.kind == "MEAN":  # side by side, for what comes out is narrow
            value = first if number == 0 else graph.input(shape)
            graph.output(graph.add(kernel.kind, version, [value, *seconds], graph.tensor((rows, 1)), options))
        else:
            value = graph.add(kernel.kind, version, [value, *seconds], graph.tensor(shape, kind, scale=scale), options)
    if kernel.kind != "MEAN":
        graph.output(value)
