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
    warnings.warn(
        "This artifact is for TensorRT, whose engine is built on the device. It runs here on ONNX Runtime's "
        "CPU kernels: same answers, not the device's speed.",
        stacklevel=2,
    )
    return onnxruntime.load(path, threads)
