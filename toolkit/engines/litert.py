"""LiteRT (TensorFlow Lite) with its XNNPACK CPU kernels.

A LiteRT graph has fixed shapes, so one file carries one signature per input length, named `length_N`; the
signature is chosen by the length of the arrays it is given. Where inputs have no length there is one, `serve`.
int64 inputs became int32 when the file was written: they are cast here, and a value that does not fit is an
error rather than a wrap-around.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays, as_float32
from toolkit.errors import InputError, missing_extra

NAME = "litert"
SUFFIX = ".tflite"
_PREFIX, _ONLY = "length_", "serve"


def signature_name(length: int | None) -> str:
    """The signature for inputs of a length; None: for the only shape there is."""
    return _ONLY if length is None else f"{_PREFIX}{length}"


def length_of(signature: str) -> int | None:
    """The input length that a signature is for; None if there is only one shape."""
    return None if signature == _ONLY else int(signature.removeprefix(_PREFIX))


def _import() -> tuple[Any, str, str]:
    """(interpreter module, distribution, version): ai_edge_litert, or the older tflite_runtime of a device."""
    import importlib.metadata

    try:
        import ai_edge_litert.interpreter as interpreter

        return interpreter, "ai-edge-litert", importlib.metadata.version("ai-edge-litert")
    except ImportError:
        pass
    try:
        import tflite_runtime.interpreter as old_interpreter

        return old_interpreter, "tflite-runtime", importlib.metadata.version("tflite-runtime")
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "runtime-litert", "Running a LiteRT bundle") from error


def distribution() -> str:
    """Which package provides the interpreter here: `ai-edge-litert` or `tflite-runtime`."""
    return _import()[1]


def version() -> str:
    """Version of the installed interpreter package."""
    return _import()[2]


class LiteRtEngine:
    """One interpreter; a signature runner per length, made on first use."""

    def __init__(self, path: Path, threads: int) -> None:
        module, package, package_version = _import()
        try:
            self._interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
            self._signatures = self._interpreter.get_signature_list()
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{package} {package_version} cannot load {path}: {error}") from error
        self._threads = threads
        self._runners: dict[str, Any] = {}
        self._narrow: dict[str, frozenset[str]] = {}

    def _runner(self, signature: str) -> Any:
        if signature not in self._runners:
            if signature not in self._signatures:
                known = ", ".join(sorted(self._signatures))
                raise InputError(f"The LiteRT file has no signature '{signature}' (it has {known}).")
            runner = self._interpreter.get_signature_runner(signature)
            self._runners[signature] = runner
            details = runner.get_input_details()
            self._narrow[signature] = frozenset(k for k, v in details.items() if v["dtype"] == np.int32)
        return self._runners[signature]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        only = _ONLY in self._signatures
        signature = signature_name(None if only else next(iter(inputs.values())).shape[1])
        runner = self._runner(signature)
        narrow = self._narrow[signature]
        feeds = {}
        for name in self._signatures[signature]["inputs"]:
            array = inputs[name]
            if name in narrow and array.dtype == np.int64:
                if array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
                    raise InputError(f"Input '{name}' holds values that do not fit the model's int32.")
                array = array.astype(np.int32)
            feeds[name] = array
        return {name: as_float32(value) for name, value in runner(**feeds).items()}

    def describe(self) -> dict[str, Any]:
        _, package, package_version = _import()
        return {
            "engine": NAME,
            "package": package,
            "version": package_version,
            "threads": self._threads,
            "signatures": {
                name: {"inputs": list(value["inputs"]), "outputs": list(value["outputs"])}
                for name, value in self._signatures.items()
            },
        }

    def close(self) -> None:
        self._runners.clear()
        del self._interpreter


def load(path: Path, threads: int = 1) -> LiteRtEngine:
    """Load `path` with `threads` XNNPACK threads. Raises InputError if this runtime cannot run the file."""
    return LiteRtEngine(path, threads)
