"""OpenVINO on the CPU.

An artifact is two files: the graph, `.xml`, and beside it under the same name its weights, `.bin`. The graph names the
arithmetic that it is meant for, which OpenVINO would choose by itself, another one on every CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import silence
from toolkit.engines import Arrays, as_float32
from toolkit.errors import InputError, missing_extra

NAME = "openvino"
WEIGHTS_SUFFIX = ".bin"
PRECISION = ["runtime_options", "INFERENCE_PRECISION_HINT"]  # where a graph names its arithmetic: f32, bf16
_HEAD = 256  # bytes of a graph in which it says that it is one


def _import() -> Any:
    silence.apply()  # it reports its own import
    try:
        import openvino
    except ImportError as error:
        raise missing_extra("openvino", "runtime-openvino", "Running an OpenVINO bundle") from error
    return openvino


def version() -> str:
    """Version of the installed openvino."""
    return str(_import().__version__).partition("-")[0]


def read(path: Path) -> Any:
    """The graph of a file with its weights. Raises InputError if they are not what OpenVINO writes."""
    openvino = _import()
    why = _fault(path)
    if why is None:
        try:
            return openvino.Core().read_model(str(path))
        except RuntimeError as error:
            why = [line for line in str(error).splitlines() if line][-1]
    raise InputError(f"openvino {version()} cannot load {path}: {why}")


def _fault(path: Path) -> str | None:
    """What is wrong with an artifact's files at the first look; None if nothing is. OpenVINO would try all of its
    readers on a file that is none of its own, and each complains."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError as error:
        return str(error.strerror)
    if not head.lstrip().startswith(b"<?xml") or b"<net " not in head:
        return "it is not the .xml file of a model in OpenVINO's format."
    weights = path.with_suffix(WEIGHTS_SUFFIX)
    return None if weights.is_file() else f"its weights are missing; {weights.name} belongs beside it."


def arithmetic(model: Any) -> str:
    """The arithmetic that a graph is meant for; float32 where it does not say."""
    return str(model.get_rt_info(PRECISION).value) if model.has_rt_info(PRECISION) else "f32"


class OpenVinoEngine:
    """One compiled model and one request."""

    def __init__(self, path: Path, threads: int, counters: bool = False) -> None:
        openvino = _import()
        model = read(path)
        self._threads, self._precision = threads, arithmetic(model)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self._precision,
            "PERF_COUNT": counters,
        }
        try:
            self._compiled = openvino.Core().compile_model(model, "CPU", options)
        except RuntimeError as error:
            last = [line for line in str(error).splitlines() if line][-1]
            raise InputError(f"openvino {version()} cannot load {path}: {last}") from error
        self._request = self._compiled.create_infer_request()
        self._dtypes = {port.any_name: port.get_element_type().to_dtype() for port in self._compiled.inputs}
        self._outputs = [port.any_name for port in self._compiled.outputs]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        # np.ascontiguousarray would make a scalar a vector.
        feeds = {name: np.asarray(inputs[name], dtype=dtype, order="C") for name, dtype in self._dtypes.items()}
        values = self._request.infer(feeds, share_inputs=True)
        return {name: as_float32(values[place]) for place, name in enumerate(self._outputs)}

    def describe(self) -> dict[str, Any]:
        def tensors(ports: Any) -> list[dict[str, Any]]:
            return [
                {
                    "name": port.any_name,
                    "dtype": port.get_element_type().get_type_name(),
                    "shape": [size.get_length() if size.is_static else -1 for size in port.get_partial_shape()],
                }
                for port in ports
            ]

        return {
            "engine": NAME,
            "version": version(),
            "device": "CPU",
            "arithmetic": self._precision,
            "threads": self._threads,
            "inputs": tensors(self._compiled.inputs),
            "outputs": tensors(self._compiled.outputs),
        }

    def counters(self) -> list[Any]:
        """What every node took in the last run of an engine that was loaded with `counters`."""
        return list(self._request.get_profiling_info())

    def close(self) -> None:
        del self._request, self._compiled


def load(path: Path, threads: int = 1, counters: bool = False) -> OpenVinoEngine:
    """Load `path` with `threads` threads; `counters`: and have it time its nodes. Raises InputError if the file is not
    a model it can run."""
    return OpenVinoEngine(path, threads, counters)
