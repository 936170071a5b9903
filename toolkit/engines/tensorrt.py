"""TensorRT artifacts: a typed ONNX file from which the engine is built on the device.

There is no TensorRT build that runs on a machine without the device's GPU, so here the typed ONNX runs on
ONNX Runtime's CPU kernels: the same numbers, for checking answers (validation rung L2), never for timing.
`NUMERICS_ONLY` tells the gates and the benchmark so.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from toolkit.engines import onnxruntime

NAME = "tensorrt"
SUFFIX = ".onnx"
NUMERICS_ONLY = True


def version() -> str:
    """Version of the runtime that stands in for the device: onnxruntime's."""
    return onnxruntime.version()


def load(path: Path, threads: int = 1) -> onnxruntime.OnnxRuntimeEngine:
    """Load the typed ONNX for its numerics. Warns that this is not the device's engine."""
    engine = onnxruntime.load(path, threads)
    _warn(engine)
    return engine


def load_for_use(path: Path, threads: int = 1) -> onnxruntime.OnnxRuntimeEngine:
    """Load the typed ONNX for an application that has no TensorRT of its own: on CUDA where onnxruntime starts it, else
    on the CPU. Warns which of the two it is."""
    providers = [onnxruntime.CUDA, onnxruntime.CPU] if onnxruntime.has_cuda() else [onnxruntime.CPU]
    engine = onnxruntime.load(path, threads, providers)
    _warn(engine)
    return engine


def _warn(engine: onnxruntime.OnnxRuntimeEngine) -> None:
    kernels = engine.describe()["provider"].removesuffix("ExecutionProvider")
    warnings.warn(
        "This artifact is for TensorRT, whose engine is built on the device. It runs here on ONNX Runtime's "
        f"{kernels} kernels: same answers, not the device's speed.",
        stacklevel=3,
    )
