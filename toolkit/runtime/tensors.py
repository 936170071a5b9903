"""The task of tensors on the device: arrays by name go in, arrays by name come out. For models whose examples the
application prepares itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.manifest import Manifest
from toolkit.runtime.pipeline import Pipeline
from toolkit.storage import read_json

SUFFIX = ".npz"


def read_arrays(path: Path) -> Arrays:
    """The arrays of an .npz file, by name. Raises InputError for what is none, or holds Python objects."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except Exception as error:  # numpy raises what zipfile, zlib and the format's reader do
        raise InputError(f"{path} cannot be read as an .npz file of arrays: {error}") from error


class TensorEncoder(Encoder):
    """An example, arrays by name or the path of an .npz file → the same arrays, checked.

    `spec` has `inputs`: name, dtype, and shape, in which text, 0 and -1 stand for any size.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        try:
            self.inputs = {
                str(each["name"]): (
                    np.dtype(str(each["dtype"])),
                    [size if isinstance(size, int) and size > 0 else None for size in each["shape"]],
                )
                for each in spec["inputs"]
            }
        except (KeyError, TypeError) as error:
            raise InputError(f"The description of the model's inputs is not understood: {error!r}.") from error

    def __call__(self, example: Any) -> Arrays:
        given = read_arrays(Path(example)) if isinstance(example, (str, Path)) else example
        if not isinstance(given, Mapping):
            raise InputError(f"An example is arrays by name, or an .npz file; got {type(example).__name__}.")
        return {name: self._checked(name, given) for name in self.inputs}

    def _checked(self, name: str, given: Mapping[str, Any]) -> NDArray[Any]:
        dtype, shape = self.inputs[name]
        if name not in given:
            raise InputError(f"The example has no array '{name}'; it has: {', '.join(given) or 'none'}.")
        array = np.asarray(given[name])
        if array.size == 0:
            raise InputError(f"The array '{name}' is empty: its shape is {list(array.shape)}.")
        if array.ndim != len(shape) or any(
            size not in (None, own) for size, own in zip(shape, array.shape, strict=True)
        ):
            wanted = [size or "any" for size in shape]
            raise InputError(f"The array '{name}' has the shape {list(array.shape)}; the model takes {wanted}.")
        if not np.can_cast(array.dtype, dtype, casting="same_kind"):
            raise InputError(f"The array '{name}' is {array.dtype}; the model takes {dtype}.")
        if array.dtype.kind in "iu" and dtype.kind in "iu":
            limits = np.iinfo(dtype)
            if array.min() < limits.min or array.max() > limits.max:
                raise InputError(f"The array '{name}' has values that {dtype} cannot hold.")
        return np.asarray(array, dtype=dtype, order="C")

    def sample(self, rows: int, length: int | None = None) -> Arrays:
        return {
            name: np.zeros([size or (rows if place == 0 else length or 1) for place, size in enumerate(shape)], dtype)
            for name, (dtype, shape) in self.inputs.items()
        }

    def axes(self) -> dict[str, list[str | int]]:
        return {
            name: [size or f"{name}_{place}" for place, size in enumerate(shape)]
            for name, (_, shape) in self.inputs.items()
        }

    def record(self, arrays: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
        return {"file": f"{name}{SUFFIX}"}  # the example itself, which lies there

    def same(self, arrays: Mapping[str, Any], recorded: Mapping[str, Any], folder: Path) -> bool:
        wanted = self(folder / str(recorded["file"]))
        return all(np.array_equal(array, wanted[name], equal_nan=array.dtype.kind == "f")
                   for name, array in arrays.items())  # fmt: skip


class Tensors(Pipeline):
    """Callable: arrays by name, or the path of an .npz file → arrays by name; a list → a list."""

    def make_encoder(self, manifest: Manifest) -> TensorEncoder:
        return TensorEncoder(read_json(manifest.preprocessing_file))

    def rows(self, output: Any, arrays: Arrays) -> Any:
        return np.asarray(output).reshape(-1, 1)

    def predict(self, example: Any) -> Arrays:
        return self.engine.run(self.encoder(example))

    def prediction(self, answers: NDArray[np.float32], example: Any) -> NDArray[np.float32]:
        return answers[:, 0]

    def decision(self, answers: NDArray[np.float32], example: Any) -> None:
        return None

    def read(self, recorded: Any, folder: Path) -> Any:
        return str(folder / str(recorded["file"]))


PIPELINE = Tensors
