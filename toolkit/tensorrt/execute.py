"""Runs an engine file on this machine's GPU, through TensorRT's Python package (8.5 or later) and CUDA's runtime.

Inputs are copied to the GPU and outputs back within `run`, which returns when they are there. Buffers are kept from
call to call and grow with the largest shape.
"""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays, as_float32
from toolkit.errors import InputError, MissingDependencyError

NAME = "tensorrt"
_RUNTIMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind


class Cuda:
    """The few calls of CUDA's runtime that an engine needs, on GPU `number`. `library` is libcudart. Raises
    MissingDependencyError if the GPU cannot be used."""

    def __init__(self, library: Any, number: int) -> None:
        self._library = library
        library.cudaGetErrorString.restype = ctypes.c_char_p
        self._call("cudaSetDevice", ctypes.c_int(number))
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(stream))
        self.stream = int(stream.value or 0)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            said = self._library.cudaGetErrorString(code) or b"unknown"
            raise MissingDependencyError(f"CUDA cannot do {name}: {said.decode(errors='replace')} (code {code}).")

    def allocate(self, size: int) -> int:
        """The address of so many bytes of the GPU's memory."""
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        """Give memory back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def to_device(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array of this machine's memory, in the stream."""
        self._copy(address, array.ctypes.data, array.nbytes, _TO_DEVICE)

    def to_host(self, array: NDArray[Any], address: int) -> None:
        """Copy into an array of this machine's memory, in the stream."""
        self._copy(array.ctypes.data, address, array.nbytes, _TO_HOST)

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        self._call(
            "cudaMemcpyAsync", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size),
            ctypes.c_int(kind), ctypes.c_void_p(self.stream),
        )  # fmt: skip

    def wait(self) -> None:
        """Until all that is in the stream is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(self.stream))

    def close(self) -> None:
        """Remove the stream."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(self.stream))


class TensorRtEngine:
    """One engine and its context. `trt` is the package `tensorrt`."""

    def __init__(self, path: Path, trt: Any, cuda: Cuda) -> None:
        self._trt, self._cuda = trt, cuda
        self._buffers: dict[str, tuple[int, int]] = {}  # by tensor: address, bytes
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"Cannot read {path}: {error.strerror}.") from error
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            raise InputError(
                f"TensorRT {trt.__version__} cannot load {path}: it was built by another release, or for another GPU."
            )
        if not hasattr(self._engine, "num_io_tensors"):
            raise InputError(f"TensorRT {trt.__version__} is too old to be run from here; 8.5 or later is needed.")
        self._context = self._engine.create_execution_context()
        names = [self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)]
        self._inputs = [name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        self._dtypes = {name: np.dtype(trt.nptype(self._engine.get_tensor_dtype(name))) for name in names}

    def _buffer(self, name: str, size: int) -> int:
        address, bytes_there = self._buffers.get(name, (0, 0))
        if bytes_there < size:
            if address:
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        return address

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        held = {}  # until the copies are made
        for name in self._inputs:
            if name not in inputs:
                raise InputError(f"The engine takes '{name}', which it was not given.")
            held[name] = array = np.ascontiguousarray(inputs[name], self._dtypes[name])
            if not self._context.set_input_shape(name, array.shape):
                raise InputError(
                    f"The engine does not take {name} of {list(array.shape)}: its profile has other sizes."
                )
            address = self._buffer(name, max(array.nbytes, 1))
            self._cuda.to_device(address, array)
            self._context.set_tensor_address(name, address)
        values: Arrays = {}
        for name in self._outputs:
            values[name] = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtypes[name])
            self._context.set_tensor_address(name, self._buffer(name, max(values[name].nbytes, 1)))
        if not self._context.execute_async_v3(self._cuda.stream):
            raise InputError("TensorRT could not run the engine; its log says why.")
        for name, array in values.items():
            self._cuda.to_host(array, self._buffers[name][0])
        self._cuda.wait()
        return {name: as_float32(array) for name, array in values.items()}

    def describe(self) -> dict[str, Any]:
        def tensors(names: list[str]) -> list[dict[str, Any]]:
            return [
                {
                    "name": name, "dtype": str(self._dtypes[name]),
                    "shape": [int(size) for size in self._engine.get_tensor_shape(name)],
                }
                for name in names
            ]  # fmt: skip

        return {
            "engine": NAME,
            "version": str(self._trt.__version__),
            "inputs": tensors(self._inputs),
            "outputs": tensors(self._outputs),
        }

    def close(self) -> None:
        for address, _ in self._buffers.values():
            self._cuda.free(address)
        self._buffers.clear()
        del self._context, self._engine, self._runtime
        self._cuda.close()


def _runtime_library() -> Any:
    """CUDA's runtime. Raises MissingDependencyError."""
    for name in filter(None, (*_RUNTIMES, ctypes.util.find_library("cudart"))):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(name)
    raise MissingDependencyError(
        f"CUDA's runtime is not found ({', '.join(_RUNTIMES)}): name its folder by LD_LIBRARY_PATH, e.g. "
        "/usr/local/cuda/lib64."
    )


def load(path: Path, number: int = 0) -> TensorRtEngine:
    """Load an engine file on GPU `number`. Raises MissingDependencyError without TensorRT, CUDA or that GPU, InputError
    for a file that cannot be run there."""
    try:
        trt = importlib.import_module("tensorrt")
    except ImportError as error:
        raise MissingDependencyError(
            "Running an engine needs NVIDIA's package 'tensorrt', which comes with JetPack or CUDA."
        ) from error
    return TensorRtEngine(path, trt, Cuda(_runtime_library(), number))
