"""ExecuTorch with its XNNPACK backend, through the runtime's Python bindings, which need torch.

A file takes its inputs by place. Their names are in it, for the exporter's benefit; the runtime's bindings do not tell
them, so they are read here. There is one pool of threads for the process, which files that are loaded hold on to: all
that are loaded at a time have the same number. What the runtime prints while it loads a file is kept from the terminal,
and told in the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays, as_float32
from toolkit.errors import InputError, missing_extra

NAME = "executorch"
METHOD = "forward"
OUTPUT = "output"
_IDENTIFIERS = (b"ET12", b"ET13")  # of the program's flatbuffer, behind its first four bytes
_HEAD = 64


_loaded: weakref.WeakSet[ExecutorchEngine] = weakref.WeakSet()


def _import() -> Any:
    """The runtime's bindings. `executorch.runtime` is a wrapper of them that imports all of the exporter, which takes
    three seconds and 130 MB."""
    try:
        import torch  # noqa: F401 - the bindings are linked with its libraries
        from executorch.extension.pybindings import _C
    except ImportError as error:
        raise missing_extra("executorch", "runtime-executorch", "Running an ExecuTorch bundle") from error
    return _C


def version() -> str:
    """Version of the installed runtime."""
    import importlib.metadata

    try:
        return importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError as error:
        raise missing_extra("executorch", "runtime-executorch", "Running an ExecuTorch bundle") from error


@contextlib.contextmanager
def quiet() -> Iterator[Callable[[], str]]:
    """Keep what C++ writes to this process's stderr; what is yielded tells it."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        before = os.dup(2)
        os.dup2(kept.fileno(), 2)

        def said() -> str:
            kept.seek(0)
            return kept.read().decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(before, 2)
            os.close(before)


def container(content: bytes) -> dict[str, Any]:
    """The tree of a program's inputs as its exporter wrote it, of its first method; {} if there is none."""
    from flatbuffers import encode, number_types, table

    def field(within: Any, number: int) -> int:
        return int(within.Offset(4 + 2 * number))

    root = table.Table(bytearray(content), encode.Get(number_types.UOffsetTFlags.packer_type, content, 0))
    plans = field(root, 1)
    if not plans or not root.VectorLen(plans):
        return {}
    plan = table.Table(root.Bytes, root.Indirect(root.Vector(plans)))
    place = field(plan, 1)
    if not place:
        return {}
    described = table.Table(root.Bytes, plan.Indirect(place + plan.Pos))
    text = field(described, 0)
    found = json.loads(described.String(text + described.Pos) or b"null") if text else None
    return found[1] if isinstance(found, list) and len(found) == 2 and isinstance(found[1], dict) else {}


def input_names(content: bytes, count: int) -> list[str]:
    """The names of a program's inputs, in its order; `input_0`, … where it was exported without names."""
    arguments, named = [*container(content).get("children_spec", []), {}, {}][:2]
    names = [f"input_{number}" for number in range(len(arguments.get("children_spec", [])))]
    names += json.loads(named.get("context") or "[]") if named.get("type") == "builtins.dict" else []
    return names if len(names) == count else [f"input_{number}" for number in range(count)]


def program(path: Path) -> bytes:
    """A file's program, without the weights behind it. Raises InputError for a file that is none, or not all of one.

    The runtime would tell that too, but of some damage only by ending the process.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
            if head[4:8] not in _IDENTIFIERS:
                raise InputError(f"ExecuTorch cannot load {path}: it does not begin as a .pte file.")
            if head[8:12] != b"eh00":  # without weights behind it
                return head + stream.read()
            length, start, weights = (int.from_bytes(head[place : place + 8], "little") for place in (16, 24, 32))
            whole = max(length, start + weights)
            if size < whole:
                raise InputError(f"ExecuTorch cannot load {path}: it was cut off, at {size:,} of {whole:,} bytes.")
            return head + stream.read(length - len(head))
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def _reason(error: Exception, said: str) -> str:
    """The first thing that the runtime complained of, without the place in its source."""
    lines = [line for line in said.splitlines() if "cpuinfo_utils" not in line and "threadpool" not in line]
    found = next((line for line in lines if line.startswith("[")), "")
    return re.sub(r"^\[[^\]]*\] *", "", found) or (str(error) or type(error).__name__).splitlines()[0]


def _share_threads(bindings: Any, threads: int) -> None:
    """Give the process's pool so many threads. Raises InputError while a file is loaded that has the pool as it is: it
    would run on one that is gone."""
    if bindings._threadpool_get_thread_count() == threads:
        return
    if _loaded:
        raise InputError(
            f"ExecuTorch has one pool of threads for a process: a file with {bindings._threadpool_get_thread_count()} "
            f"is loaded, so none can be loaded with {threads}. Close it first."
        )
    bindings._unsafe_reset_threadpool(threads)


class ExecutorchEngine:
    """One program and its method."""

    def __init__(self, path: Path, threads: int) -> None:
        bindings = _import()
        content = program(path)
        with quiet() as said:
            try:
                self._program = bindings._load_program(
                    str(path), program_verification=bindings.Verification.InternalConsistency
                )
                _share_threads(bindings, threads)
                self._method = self._program.load_method(METHOD)
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:
                reason = _reason(error, said())
                raise InputError(f"executorch {version()} cannot load {path}: {reason}") from error
        self._bindings = bindings
        _loaded.add(self)
        self._names = input_names(content, self._method.method_meta().num_inputs())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        import torch

        missing = [name for name in self._names if name not in inputs]
        if missing:
            raise InputError(f"The ExecuTorch file takes '{missing[0]}', which it was not given.")
        given = [torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self._names]
        try:
            values = self._method.call(given)
        except RuntimeError as error:
            shapes = ", ".join(f"{name} {list(inputs[name].shape)}" for name in self._names)
            raise InputError(f"The ExecuTorch file does not run on inputs of {shapes}: {error}") from error
        names = [OUTPUT] if len(values) == 1 else [f"{OUTPUT}_{number}" for number in range(len(values))]
        return {name: as_float32(value.numpy()) for name, value in zip(names, values, strict=True)}

    def describe(self) -> dict[str, Any]:
        meta = self._method.method_meta()
        return {
            "engine": NAME,
            "version": version(),
            "threads": self._bindings._threadpool_get_thread_count(),
            "backends": self._bindings._get_registered_backend_names(),
            "inputs": [
                {"name": name, "shape": list(meta.input_tensor_meta(place).sizes())}
                for place, name in enumerate(self._names)
            ],
        }

    def close(self) -> None:
        _loaded.discard(self)
        del self._method, self._program


def load(path: Path, threads: int = 1) -> ExecutorchEngine:
    """Load `path` with `threads` threads for the whole process. Raises InputError if this runtime cannot run it."""
    return ExecutorchEngine(path, threads)
