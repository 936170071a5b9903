"""ONNX Runtime, on the CPU unless told otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import silence
from toolkit.engines import Arrays, as_float32
from toolkit.errors import InputError, missing_extra

NAME = "onnxruntime"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_DTYPES = {
    "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8,
    "tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64, "tensor(bool)": np.bool_,
}  # fmt: skip

Provider = str | tuple[str, dict[str, Any]]  # its name, or with its options


def _import() -> Any:
    silence.apply()  # its telemetry switch is read at import, never after
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "runtime-onnxruntime", "Running an ONNX bundle") from error
    return onnxruntime


def version() -> str:
    """Version of the installed onnxruntime."""
    return str(_import().__version__)


def has_cuda() -> bool:
    """Whether the installed onnxruntime has its CUDA provider; that it starts is another thing."""
    return CUDA in _import().get_available_providers()


def preload_cuda() -> None:
    """Load the CUDA and cuDNN libraries of Python packages, where there are such: ONNX Runtime would not find them."""
    ort = _import()
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()


class OnnxRuntimeEngine:
    """One session."""

    def __init__(
        self,
        path: Path,
        threads: int,
        providers: Sequence[Provider],
        content: bytes | None = None,
        profile: Path | None = None,
    ) -> None:
        ort = _import()
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            self._session = ort.InferenceSession(content or str(path), options, providers=list(providers))
        except Exception as error:  # onnxruntime raises a class per status code, all direct children of Exception
            raise InputError(f"onnxruntime {ort.__version__} cannot load {path}: {error}") from error
        self._threads = threads
        self._dtypes = {tensor.name: _DTYPES.get(tensor.type) for tensor in self._session.get_inputs()}
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def feeds(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[str, Arrays]:
        """The signature for inputs, of which an ONNX file has none, and what the file takes for them."""
        # np.ascontiguousarray would make a scalar a vector.
        return "", {name: np.asarray(inputs[name], dtype=dtype, order="C") for name, dtype in self._dtypes.items()}

    def answers(self, signature: str, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """What `run` gives for what the file gave."""
        return {name: as_float32(values[name]) for name in self._outputs}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        signature, feeds = self.feeds(inputs)
        values = self._session.run(self._outputs, feeds)
        return self.answers(signature, dict(zip(self._outputs, values, strict=True)))

    def describe(self) -> dict[str, Any]:
        def tensors(values: Any) -> list[dict[str, Any]]:
            return [{"name": v.name, "dtype": v.type, "shape": list(v.shape)} for v in values]

        return {
            "engine": NAME,
            "version": version(),
            "provider": self._session.get_providers()[0],
            "threads": self._threads,
            "inputs": tensors(self._session.get_inputs()),
            "outputs": tensors(self._session.get_outputs()),
        }

    def end_profiling(self) -> str:
        """The file of events of a session that was loaded with `profile`."""
        return str(self._session.end_profiling())

    def close(self) -> None:
        del self._session


def load(
    path: Path,
    threads: int = 1,
    providers: Sequence[Provider] = (CPU,),
    content: bytes | None = None,
    profile: Path | None = None,
) -> OnnxRuntimeEngine:
    """Load `path` with `threads` intra-op threads, on the first of `providers` that starts; `content` instead of what
    is in the file; `profile` is the beginning of the path of a file that every node's times go to. Raises InputError
    if that is not a model it can run."""
    return OnnxRuntimeEngine(path, threads, providers, content, profile)
