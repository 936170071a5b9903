"""LiteRT (TensorFlow Lite) with its XNNPACK CPU kernels.

A LiteRT graph has fixed shapes, so one file carries one signature per input length, named `length_N`; the
signature is chosen by the length of the arrays it is given. Where inputs have no length there is one, `serve`.
What became another thing when the file was written is turned into that here, so that every file is given the same
arrays and answers in float32:

- int64 inputs became int32; a value that does not fit is an error rather than a wrap-around;
- images have their channels last;
- inputs and outputs of a file that is quantized in full are integers, with a scale and a zero point.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays, as_float32
from toolkit.errors import InputError, missing_extra

NAME = "litert"
_PREFIX, _ONLY = "length_", "serve"
_MOST_COLORS = 4


def signature_name(length: int | None) -> str:
    """The signature for inputs of a length; None: for the only shape there is."""
    return _ONLY if length is None else f"{_PREFIX}{length}"


def length_of(signature: str) -> int | None:
    """The input length that a signature is for; None if there is only one shape."""
    return None if signature == _ONLY else int(signature.removeprefix(_PREFIX))


def channels_last(array: NDArray[Any]) -> NDArray[Any]:
    """Images [batch, channels, height, width] as [batch, height, width, channels]; other arrays as they are."""
    if array.ndim != 4:
        return array
    batch, channels, height, width = array.shape
    if channels > _MOST_COLORS:
        return np.ascontiguousarray(np.moveaxis(array, 1, -1))
    moved = np.empty((batch, height, width, channels), array.dtype)
    for channel in range(channels):  # which takes a third of the time of the above for three of them
        moved[..., channel] = array[:, channel]
    return moved


def arranged(array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """An array as an input of `shape` takes it: images with their channels last. Files of older versions have them
    first; no image is as wide and as high as it has channels."""
    return array if array.shape == tuple(shape) else channels_last(array)


def to_integers(values: NDArray[Any], dtype: Any, scale: float, zero_point: int) -> NDArray[Any]:
    """float32 → integers of `dtype`: divided by the scale, rounded half away from zero, shifted, and clipped to what
    the type holds. The arithmetic of TensorFlow Lite's reference kernel of QUANTIZE."""
    steps = values.astype(np.float32) / np.float32(scale)
    rounded = np.trunc(steps + np.copysign(np.float32(0.5), steps)) + np.float32(zero_point)
    limits = np.iinfo(dtype)
    return np.asarray(np.clip(rounded, limits.min, limits.max).astype(dtype))


def to_floats(values: NDArray[Any], scale: float, zero_point: int) -> NDArray[Any]:
    """Integers → float32, as TensorFlow Lite's kernel of DEQUANTIZE computes them."""
    return np.asarray(np.float32(scale) * (values.astype(np.int32) - np.int32(zero_point)).astype(np.float32))


@dataclass(frozen=True)
class Tensor:
    """An input or output as the interpreter describes it."""

    dtype: Any
    shape: tuple[int, ...]
    scale: float  # 0 for a tensor that is not quantized
    zero_point: int

    @classmethod
    def of(cls, details: Mapping[str, Any]) -> Tensor:
        scale, zero_point = details["quantization"]
        return cls(details["dtype"], tuple(int(size) for size in details["shape"]), float(scale), int(zero_point))

    @property
    def quantized(self) -> bool:
        return bool(self.scale) and np.issubdtype(self.dtype, np.integer)


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
        self._tensors: dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}  # inputs, outputs

    def _runner(self, signature: str) -> Any:
        if signature not in self._runners:
            if signature not in self._signatures:
                known = ", ".join(sorted(self._signatures))
                raise InputError(f"The LiteRT file has no signature '{signature}' (it has {known}).")
            runner = self._interpreter.get_signature_runner(signature)
            self._runners[signature] = runner
            inputs, outputs = (
                {name: Tensor.of(details) for name, details in described.items()}
                for described in (runner.get_input_details(), runner.get_output_details())
            )
            self._tensors[signature] = inputs, outputs
        return self._runners[signature]

    def feeds(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[str, Arrays]:
        """The signature for inputs, and what it takes for them."""
        only = _ONLY in self._signatures
        signature = signature_name(None if only else next(iter(inputs.values())).shape[1])
        self._runner(signature)
        tensors = self._tensors[signature][0]
        return signature, {name: fed(name, inputs[name], tensor) for name, tensor in tensors.items()}

    def answers(self, signature: str, values: Mapping[str, NDArray[Any]]) -> Arrays:
        """What `run` gives for what a signature gave."""
        self._runner(signature)
        tensors = self._tensors[signature][1]
        return {name: _read(value, tensors[name]) for name, value in values.items()}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        signature, feeds = self.feeds(inputs)
        return self.answers(signature, self._runner(signature)(**feeds))

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


def fed(name: str, array: NDArray[Any], tensor: Tensor) -> NDArray[Any]:
    """What an input of the file is given for an array of the encoder's. Raises InputError."""
    array = arranged(array, tensor.shape)
    if tensor.quantized and array.dtype != tensor.dtype:
        return to_integers(array, tensor.dtype, tensor.scale, tensor.zero_point)
    if tensor.dtype == np.int32 and array.dtype == np.int64:
        if array.size and (array.max() > 2**31 - 1 or array.min() < -(2**31)):
            raise InputError(f"Input '{name}' holds values that do not fit the model's int32.")
        return array.astype(np.int32)
    return array


def _read(value: NDArray[Any], tensor: Tensor) -> NDArray[Any]:
    """An output of the file in float32."""
    return to_floats(value, tensor.scale, tensor.zero_point) if tensor.quantized else as_float32(value)


def load(path: Path, threads: int = 1) -> LiteRtEngine:
    """Load `path` with `threads` XNNPACK threads. Raises InputError if this runtime cannot run the file."""
    return LiteRtEngine(path, threads)
