"""How much memory a LiteRT file needs while it runs, for devices that count in kilobytes.

What is known from the file alone is its activations. What TensorFlow Lite Micro needs in all, its tables and what its
kernels keep, its own interpreter says, if the package `tflite-micro` is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError

PACKAGE = "tflite-micro"
_ALIGNMENT = 16
_BYTES = {
    "FLOAT32": 4, "FLOAT16": 2, "INT64": 8, "INT32": 4, "INT16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1, "UINT32": 4,
}  # fmt: skip
_PROBE = Path(__file__).with_name("probe_tflite_micro.py")
_SECONDS = 120


def activation_bytes(model: Any, graph: Any) -> int:
    """Bytes that the activations of a graph need at once, placed as TensorFlow Lite Micro does: the largest first, each
    as low as those leave that live at the same time (Pisarchyk and Lee, 2020)."""
    from ai_edge_litert import schema_py_generated as schema

    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    first: dict[int, int] = {int(index): 0 for index in graph.inputs}
    last: dict[int, int] = {}
    for step, operator in enumerate(graph.operators):
        for index in (*operator.inputs, *operator.outputs):
            first.setdefault(int(index), step)
            last[int(index)] = step
    last |= {int(index): len(graph.operators) for index in graph.outputs}
    sizes = {}
    for index in last:
        if index < 0 or _is_constant(model, graph.tensors[index]):
            continue
        tensor = graph.tensors[index]
        count = int(np.prod([int(size) for size in tensor.shape])) * _BYTES.get(types[tensor.type], 1)
        sizes[index] = -(-count // _ALIGNMENT) * _ALIGNMENT
    placed: list[tuple[int, int, int]] = []  # (index, from, to)
    for index in sorted(sizes, key=lambda each: (-sizes[each], first[each])):
        place = 0
        for other, begin, end in sorted(placed, key=lambda each: each[1]):
            together = first[other] <= last[index] and first[index] <= last[other]
            if together and begin < place + sizes[index] and place < end:
                place = end
        placed.append((index, place, place + sizes[index]))
    return max((end for _, _, end in placed), default=0)


def _is_constant(model: Any, tensor: Any) -> bool:
    buffer = model.buffers[tensor.buffer]
    return buffer.data is not None or buffer.offset > 1


def on_a_microcontroller(path: Path) -> dict[str, Any] | None:
    """What TensorFlow Lite Micro says of a file: `arena_bytes`, or why it does not run it as `error`; with the version
    of the package. None if that is not installed."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None
    sizes, error = _probe(path)
    if error is not None:
        return {"version": version, "error": error}
    return {"version": version, "arena_bytes": sizes["total"]}


def answers_on_a_microcontroller(
    path: Path, examples: Sequence[Sequence[NDArray[Any]]], outputs: int
) -> tuple[dict[str, Any], list[list[NDArray[Any]]]]:
    """What TensorFlow Lite Micro answers to examples, arrays in the order of the file's inputs, and its arena in bytes:
    `total`, `head` (activations and scratch, which inferences use anew), `tail` (what stays) and what that is made of.
    Raises InputError if it does not run the file."""
    with tempfile.TemporaryDirectory(prefix="toolkit-micro-") as work:
        inputs, answers = Path(work) / "inputs.npz", Path(work) / "answers.npz"
        arrays: Any = {
            f"{example}/{place}": one for example, each in enumerate(examples) for place, one in enumerate(each)
        }
        np.savez(inputs, **arrays)
        sizes, error = _probe(path, str(inputs), str(outputs), str(answers))
        if error is not None:
            raise InputError(f"{PACKAGE} {metadata.version(PACKAGE)} does not run {path}: {error}")
        with np.load(answers, allow_pickle=False) as stored:
            said = [[stored[f"{example}/{place}"] for place in range(outputs)] for example in range(len(examples))]
    return sizes, said


def _probe(path: Path, *more: str) -> tuple[dict[str, Any], str | None]:
    """The arena's sizes, or why there are none. In a process of its own, which a bad file may end."""
    command = [sys.executable, str(_PROBE), str(path), *more]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return {}, f"it did not end within {_SECONDS} seconds"
    sizes: dict[str, Any] = {
        part: int(found) for part, found in re.findall(r"Arena allocation (total|head|tail) (\d+) bytes", done.stderr)
    }
    sizes["parts"] = {part: int(found) for part, found in re.findall(r"'(.+)' used (\d+) bytes", done.stderr)}
    if done.returncode == 0 and "total" in sizes:
        return sizes, None
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith((" ", "Traceback"))]
    return {}, next(iter(lines), f"it ended with {done.returncode}")
