"""Kernels as LiteRT files: in float, in int8 as dynamic quantization (gemm) and full quantization (convolutions) lead
to them. The flatbuffers are written table by table, which needs no converter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.costs.work import PRODUCTS, WORKS, Work
from toolkit.engines import Arrays
from toolkit.engines.litert import signature_name
from toolkit.errors import missing_extra
from toolkit.kernels import Kernel

SUFFIX = ".tflite"
DTYPES: dict[str, tuple[Work, ...]] = {
    "fp32": tuple(work for work in WORKS if work != "view"),
    "int8": tuple(work for work in PRODUCTS if work != "attention"),
}
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
        "depthwise": _convolutions, "elementwise": _sums, "activation": _activations,
        "normalization": _normalizations, "copy": _copies,
    }  # fmt: skip
    builders[kernel.work](graph, kernel)
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
        import flatbuffers  # type: ignore[import-untyped]

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
        value = graph.add("FULLY_CONNECTED", version, [value, held, -1], graph.tensor((rows, outputs)), options)
    graph.output(value)


def _attention(graph: _Graph, kernel: Kernel) -> None:
    heads, length, width = kernel.size
    value = graph.input((1, heads, length, width))
    keys, values = graph.input((1, heads, width, length)), graph.input((1, heads, length, width))
    options = graph.schema.BatchMatMulOptionsT()
    for number in range(kernel.repeats):
        even = number % 2 == 0
        made = graph.tensor((1, heads, length, length if even else width))
        value = graph.add("BATCH_MATMUL", 1, [value, keys if even else values], made, options)
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
        name = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        value = graph.add(
            name, 3 if integer else 1, [value, held, bias], graph.tensor(shape, kind, scale=scale), options
        )
    graph.output(value)


def _sums(graph: _Graph, kernel: Kernel) -> None:
    value, other = graph.input(kernel.size), graph.input(kernel.size)
    for _ in range(kernel.repeats):
        value = graph.add("ADD", 1, [value, other], graph.tensor(kernel.size), graph.schema.AddOptionsT())
    graph.output(value)


def _activations(graph: _Graph, kernel: Kernel) -> None:
    value = graph.input(kernel.size)
    for _ in range(kernel.repeats):
        value = graph.add("GELU", 1, [value], graph.tensor(kernel.size), graph.schema.GeluOptionsT())
    graph.output(value)


def _normalizations(graph: _Graph, kernel: Kernel) -> None:
    value = graph.input(kernel.size)
    options = graph.schema.SoftmaxOptionsT()
    options.beta = 1.0
    for _ in range(kernel.repeats):
        value = graph.add("SOFTMAX", 1, [value], graph.tensor(kernel.size), options)
    graph.output(value)


def _copies(graph: _Graph, kernel: Kernel) -> None:
    rows, width = kernel.size
    heads = width // 32
    order = graph.tensor((3,), "INT32", np.array([1, 0, 2], np.int32))
    value = graph.input((rows, heads, 32))
    for number in range(kernel.repeats):
        made = graph.tensor((heads, rows, 32) if number % 2 == 0 else (rows, heads, 32))
        value = graph.add("TRANSPOSE", 1, [value, order], made, graph.schema.TransposeOptionsT())
    graph.output(value)
