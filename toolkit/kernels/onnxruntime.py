"""Kernels as ONNX files: in float, in int8 as dynamic quantization (gemm) and Q/DQ (convolutions) lead to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.costs.work import Work
from toolkit.engines import Arrays
from toolkit.errors import missing_extra
from toolkit.kernels import Kernel

SUFFIX = ".onnx"
KINDS: dict[Work, tuple[str, ...]] = {
    "gemm": ("MatMul",), "attention": ("MatMul",), "convolution": ("Conv",), "pointwise": ("Conv",),
    "depthwise": ("Conv",), "elementwise": ("Add", "Mul", "Where"), "activation": ("Gelu", "BiasGelu", "Tanh"),
    "normalization": ("LayerNormalization", "SkipLayerNormalization", "Softmax"), "copy": ("Transpose", "Split"),
    "view": ("Reshape",),
}  # fmt: skip
INTEGER_KINDS: dict[Work, tuple[str, ...]] = {
    "gemm": ("DynamicQuantizeMatMul",), "convolution": ("Conv",), "pointwise": ("Conv",), "depthwise": ("Conv",),
    "elementwise": ("Add",),
}  # fmt: skip
_OPSET, _IR = 20, 10
_FUSED = "com.microsoft"
_KERNEL = {"convolution": 3, "depthwise": 3, "pointwise": 1}
_SCALE = 0.05  # of quantized values


def write(kernel: Kernel, path: Path, seed: int) -> Arrays:
    """Write a kernel as a graph; inputs for it."""
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "convert", "Calibrating onnxruntime") from error
    graph = _Graph(np.random.default_rng(seed))
    builders: dict[Work, Callable[[_Graph, Kernel], None]] = {
        "gemm": _gemm, "attention": _attention, "convolution": _convolutions, "pointwise": _convolutions,
        "depthwise": _convolutions,
    }  # fmt: skip
    builders.get(kernel.work, _between)(graph, kernel)
    made = onnx.helper.make_graph(graph.nodes, kernel.name, graph.inputs, graph.outputs, graph.weights)
    opsets = [onnx.helper.make_opsetid("", _OPSET), onnx.helper.make_opsetid(_FUSED, 1)]
    onnx.save(onnx.helper.make_model(made, ir_version=_IR, opset_imports=opsets), str(path))
    return graph.arrays


class _Graph:
    """A graph in the making."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.arrays: Arrays = {}
        self._generator = generator

    def input(self, name: str, shape: tuple[int, ...]) -> str:
        import onnx

        self.inputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
        self.arrays[name] = self._generator.standard_normal(shape).astype(np.float32)
        return name

    def shape_of(self, name: str, shape: tuple[int, ...]) -> str:
        """An input that holds a shape."""
        import onnx

        self.inputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, [len(shape)]))
        self.arrays[name] = np.array(shape)
        return name

    def output(self, name: str) -> None:
        import onnx

        self.outputs.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))

    def weight(self, shape: tuple[int, ...], inputs: int) -> NDArray[np.float32]:
        """Weights that keep values as large as they are."""
        values: NDArray[np.float32] = (self._generator.standard_normal(shape) / np.sqrt(inputs)).astype(np.float32)
        return values

    def constant(self, value: Any) -> str:
        import onnx

        name = f"c{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def add(self, kind: str, inputs: list[str], domain: str = "", **attributes: Any) -> str:
        return self.add_several(kind, inputs, 1, domain, **attributes)[0]

    def add_several(self, kind: str, inputs: list[str], outputs: int, domain: str = "", **attributes: Any) -> list[str]:
        import onnx

        names = [f"t{len(self.nodes)}_{place}" for place in range(outputs)]
        self.nodes.append(onnx.helper.make_node(kind, inputs, names, names[0], domain=domain, **attributes))
        return names


def _quantized(values: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """Weights as int8 with one scale."""
    scale = np.float32(np.abs(values).max() / 127)
    return np.round(values / scale).astype(np.int8), scale


def _gemm(graph: _Graph, kernel: Kernel) -> None:
    rows, width, other = kernel.size
    value = graph.input("x", (rows, width))
    for number in range(kernel.repeats):
        shape = (width, other) if number % 2 == 0 else (other, width)
        weight = graph.weight(shape, shape[0])
        if kernel.dtype == "int8":
            small, scale = _quantized(weight)
            constants = [small, np.array([scale]), np.zeros(1, np.int8)]
            value = graph.add("DynamicQuantizeMatMul", [value, *map(graph.constant, constants)], _FUSED)
        else:
            value = graph.add("MatMul", [value, graph.constant(weight)])
    graph.output(value)


def _attention(graph: _Graph, kernel: Kernel) -> None:
    heads, length, width = kernel.size
    value = graph.input("x", (1, heads, length, width))
    keys, values = graph.input("y", (1, heads, width, length)), graph.input("z", (1, heads, length, width))
    for number in range(kernel.repeats):
        value = graph.add("MatMul", [value, keys if number % 2 == 0 else values])
    graph.output(value)


def _convolutions(graph: _Graph, kernel: Kernel) -> None:
    channels, side = kernel.size
    extent = _KERNEL[kernel.work]
    group = channels if kernel.work == "depthwise" else 1
    reads = channels // group
    value = graph.input("x", (1, channels, side, side))
    integer = kernel.dtype == "int8"
    if integer:
        value = _requantized(graph, value)
    for _ in range(kernel.repeats):
        weight = graph.weight((channels, reads, extent, extent), reads * extent * extent)
        if integer:
            small, own = _quantized(weight)
            inputs = [graph.constant(small), graph.constant(own), graph.constant(np.int8(0))]
            wide = graph.add("DequantizeLinear", inputs)
        else:
            wide = graph.constant(weight)
        pads = [extent // 2] * 4
        value = graph.add("Conv", [value, wide], kernel_shape=[extent] * 2, pads=pads, group=group)
        if integer:
            value = _requantized(graph, value)
    graph.output(value)


def _requantized(graph: _Graph, value: str) -> str:
    scale, zero = graph.constant(np.float32(_SCALE)), graph.constant(np.uint8(128))
    return graph.add("DequantizeLinear", [graph.add("QuantizeLinear", [value, scale, zero]), scale, zero])


def _between(graph: _Graph, kernel: Kernel) -> None:
    """What stands between products, on float[rows, width]."""
    rows, width = kernel.size
    if kernel.kind in ("Transpose", "Split"):
        _copies(graph, kernel)
        return
    value = graph.input("x", (rows, width))
    ones, bias = graph.constant(np.ones(width, np.float32)), graph.constant(np.full(width, 0.1, np.float32))
    if kernel.kind in ("Mul", "SkipLayerNormalization") or kernel.dtype == "int8":
        other = graph.input("y", (rows, width))
    if kernel.dtype == "int8":
        value, other = _requantized(graph, value), _requantized(graph, other)
    if kernel.kind == "Reshape":  # to shapes that are not known when the file is loaded
        shapes = [graph.shape_of("a", (width, rows)), graph.shape_of("b", (rows, width))]
    for number in range(kernel.repeats):
        if kernel.kind == "Reshape":
            value = graph.add("Reshape", [value, shapes[number % 2]])
        elif kernel.kind == "LayerNormalization":
            value = graph.add(kernel.kind, [value, ones, ones], axis=-1)
        elif kernel.kind == "SkipLayerNormalization":
            value = graph.add(kernel.kind, [value, other, ones, bias], _FUSED, epsilon=1e-6)
        elif kernel.kind == "BiasGelu":
            value = graph.add(kernel.kind, [value, bias], _FUSED)
        elif kernel.kind == "Where":
            chosen = graph.constant(np.arange(width) % 2 == 0)
            value = graph.add(kernel.kind, [chosen, value, bias])
        elif kernel.dtype == "int8":
            value = _requantized(graph, graph.add(kernel.kind, [value, other]))
        elif kernel.kind in ("Add", "Mul"):  # most sums add a bias, most products scale
            value = graph.add(kernel.kind, [value, bias if kernel.kind == "Add" else other])
        else:
            value = graph.add(kernel.kind, [value])
    graph.output(value)


def _copies(graph: _Graph, kernel: Kernel) -> None:
    """Copies side by side: one behind the other would be made one."""
    rows, width = kernel.size
    for number in range(kernel.repeats):
        value = graph.input(f"x{number}", (rows, width // 32, 32))
        if kernel.kind == "Transpose":
            graph.output(graph.add("Transpose", [value], perm=[1, 0, 2]))
        else:
            for part in graph.add_several("Split", [value], 2, axis=1, num_outputs=2):
                graph.output(part)
