"""TensorRT artifacts: a typed ONNX file from which the engine is built on the device.

There is no TensorRT build that runs on a machine without the device's GPU, so here the typed ONNX runs on
ONNX Runtime's CPU kernels: the same numbers, for checking answers (validation rung L2), never for timing.
`NUMERICS_ONLY` tells the gates and the benchmark so.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from toolkit.engines import onnxruntime
from toolkit.errors import InputError

NAME = "tensorrt"
NUMERICS_ONLY = True
PRODUCTS = ("MatMul", "Gemm", "Conv")


def version() -> str:
    """Version of the runtime that stands in for the device: onnxruntime's."""
    return onnxruntime.version()


def load(path: Path, threads: int = 1) -> onnxruntime.OnnxRuntimeEngine:
    """Load the typed ONNX for its numerics. Warns that this is not the device's engine."""
    engine = _load(path, threads, [onnxruntime.CPU])
    _warn(engine)
    return engine


def _load(path: Path, threads: int, providers: list[str]) -> onnxruntime.OnnxRuntimeEngine:
    """The file, or where ONNX Runtime's CPU has no kernels for its bfloat16, the same numbers by float32 products."""
    try:
        return onnxruntime.load(path, threads, providers)
    except InputError as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
        model = _widened(path)
        if model is None:
            raise
        return onnxruntime.load(path, threads, providers, model.SerializeToString())


def _widened(path: Path) -> Any:
    """The model with its products in bfloat16 replaced; None if it has none, or where onnx is not installed."""
    try:
        import onnx
    except ImportError:
        return None
    model = onnx.load(str(path))
    return model if widen(model) else None


def products(model: Any) -> list[Any]:
    """The nodes of an `onnx.ModelProto` that multiply bfloat16 matrices."""
    from onnx import TensorProto

    halves = {each.name for each in model.graph.initializer if each.data_type == TensorProto.BFLOAT16}
    halves |= {
        node.output[0]
        for node in model.graph.node
        for attribute in node.attribute
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16
    }
    return [node for node in model.graph.node if node.op_type in PRODUCTS and set(node.input) & halves]


def widen(model: Any) -> bool:
    """Replace products in bfloat16, which no CPU kernel computes, by the same numbers of float32 ones: rounded inputs,
    and outputs rounded again. Returns whether there were any."""
    from onnx import TensorProto, helper

    found = {node.output[0] for node in products(model)}
    wide: set[str] = set()
    nodes: list[Any] = []
    for node in model.graph.node:
        nodes.append(node)
        if node.output[0] not in found:
            continue
        for place, name in enumerate(node.input):
            if name and name not in wide:
                wide.add(name)
                cast = helper.make_node("Cast", [name], [f"{name}.wide"], to=TensorProto.FLOAT, name=f"{name}.widen")
                nodes.insert(-1, cast)
            if name:
                node.input[place] = f"{name}.wide"
        output = node.output[0]
        node.output[0] = f"{output}.wide"
        back = helper.make_node("Cast", [node.output[0]], [output], to=TensorProto.BFLOAT16, name=f"{output}.round")
        nodes.append(back)
    copied = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)
    return bool(found)


def load_for_use(path: Path, threads: int = 1) -> onnxruntime.OnnxRuntimeEngine:
    """Load the typed ONNX for an application that has no TensorRT of its own: on CUDA where onnxruntime starts it, else
    on the CPU. Warns which of the two it is."""
    providers = [onnxruntime.CUDA, onnxruntime.CPU] if onnxruntime.has_cuda() else [onnxruntime.CPU]
    engine = _load(path, threads, providers)
    _warn(engine)
    return engine


def _warn(engine: onnxruntime.OnnxRuntimeEngine) -> None:
    kernels = engine.describe()["provider"].removesuffix("ExecutionProvider")
    warnings.warn(
        "This artifact is for TensorRT, whose engine is built on the device. It runs here on ONNX Runtime's "
        f"{kernels} kernels: same answers, not the device's speed.",
        stacklevel=3,
    )
