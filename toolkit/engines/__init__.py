"""Engines: the runtimes that execute an artifact. One file each, with the same few names.

    NAME                                identity
    version() -> str                    the installed runtime's version
    load(path, threads) -> Engine       an object with run(), describe() and close()

`Engine.run` takes and returns dictionaries of numpy arrays. Importing this package imports no runtime, and not numpy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from toolkit.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Arrays = dict[str, "NDArray[Any]"]


class Engine(Protocol):
    """An artifact loaded into its runtime."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Execute once. Inputs are int64 or float32 arrays by name; float outputs come back as float32."""

    def describe(self) -> dict[str, Any]:
        """Runtime, version, threads, tensor names, dtypes and shapes as the runtime itself sees them."""

    def close(self) -> None:
        """Release the runtime's memory."""


class EngineModule(Protocol):
    """What every file of this folder offers."""

    NAME: str

    def version(self) -> str: ...

    def load(self, path: Path, threads: int = 1) -> Engine: ...


@dataclass(frozen=True)
class Kind:
    """What is known of an engine without importing it."""

    files: str  # what people call the files that it runs
    suffix: str  # of those
    format: str | None  # theirs, a file of toolkit/export; None: it runs checkpoints
    distributions: tuple[str, ...]  # packages whose versions its answers depend on
    # How a precision is reached from a float artifact: a method of quantization, or None where nothing is to be done.
    precisions: Mapping[str, str | None] = field(default_factory=dict)
    delegates: tuple[str, ...] = ()  # that a target profile may name


# Adding an engine: one file in this folder and one entry here.
KINDS: dict[str, Kind] = {
    "onnxruntime": Kind(
        files="fused ONNX",
        suffix=".onnx",
        format="onnx",
        distributions=("onnxruntime",),
        precisions={"fp32": None, "int8": "dynamic-int8"},
    ),
    "litert": Kind(
        files="LiteRT",
        suffix=".tflite",
        format="litert",
        distributions=("ai-edge-litert",),
        precisions={"fp32": None, "int8": "dynamic-int8"},
        delegates=("xnnpack", "edgetpu"),
    ),
    "tensorrt": Kind(
        files="standard ONNX",
        suffix=".onnx",
        format="onnx",
        distributions=("onnxruntime",),
        precisions={"fp32": None, "fp16": "fp16", "bf16": "bf16", "int8": "static-int8"},
        delegates=("dla",),
    ),
    "openvino": Kind(
        files="OpenVINO",
        suffix=".xml",
        format="openvino",
        distributions=("openvino",),
        precisions={"fp32": None, "fp16": "fp16", "bf16": "bf16", "int8": "static-int8"},
    ),
    "executorch": Kind(
        files="ExecuTorch",
        suffix=".pte",
        format="executorch",
        distributions=("executorch",),
        precisions={"fp32": None, "int8": "dynamic-int8"},
    ),
    "torch": Kind(
        files="PyTorch", suffix=".safetensors", format=None, distributions=("torch", "transformers", "tokenizers")
    ),
}
FORMAT_OF = {name: kind.format for name, kind in KINDS.items() if kind.format is not None}
# The engine that runs a model file of which nobody says what it was made for: the first that takes it.
OF_SUFFIX = {KINDS[name].suffix: name for name in reversed(FORMAT_OF)}
DISTRIBUTIONS = tuple(dict.fromkeys(package for kind in KINDS.values() for package in kind.distributions))


def get(name: str) -> EngineModule:
    """The engine module called `name`. Raises InputError for an unknown name."""
    if name not in KINDS:
        raise InputError(f"Unknown engine '{name}'; known: {', '.join(KINDS)}.")
    return cast(EngineModule, importlib.import_module(f"toolkit.engines.{name}"))


def exported_for(name: str) -> str:
    """`name`, if it is an engine that artifacts are made for. Raises InputError."""
    if name not in FORMAT_OF:
        raise InputError(f"Unknown engine '{name}'; known: {', '.join(FORMAT_OF)}.")
    return name


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """Half-precision outputs widened to float32; everything else unchanged."""
    import numpy as np

    return array.astype(np.float32) if array.dtype == np.float16 else array
