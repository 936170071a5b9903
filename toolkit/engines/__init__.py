"""Engines: the runtimes that execute an artifact. One file each, with the same few names.

    NAME, SUFFIX                        identity; the file suffix of its artifacts
    version() -> str                    the installed runtime's version
    load(path, threads) -> Engine       an object with run(), describe() and close()

`Engine.run` takes and returns dictionaries of numpy arrays. Importing this package imports no runtime.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError

Arrays = dict[str, NDArray[Any]]


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
    SUFFIX: str

    def version(self) -> str: ...

    def load(self, path: Path, threads: int = 1) -> Engine: ...


# Adding an engine: one file in this folder and one line here.
_MODULES = {
    "onnxruntime": "toolkit.engines.onnxruntime",
    "litert": "toolkit.engines.litert",
    "tensorrt": "toolkit.engines.tensorrt",
    "openvino": "toolkit.engines.openvino",
    "executorch": "toolkit.engines.executorch",
    "torch": "toolkit.engines.torch",
}


def get(name: str) -> EngineModule:
    """The engine module called `name`. Raises InputError for an unknown name."""
    if name not in _MODULES:
        raise InputError(f"Unknown engine '{name}'; known: {', '.join(_MODULES)}.")
    return cast(EngineModule, importlib.import_module(_MODULES[name]))


def as_float32(array: NDArray[Any]) -> NDArray[Any]:
    """Half-precision outputs widened to float32; everything else unchanged."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
