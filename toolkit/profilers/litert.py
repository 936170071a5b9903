"""LiteRT's own profiler, which its Python packages do not offer: reached in libLiteRt.so, the library of their C API.

It profiles a `CompiledModel`; this toolkit's engine is an `Interpreter`. Both run the same kernels: XNNPACK's for what
that takes, LiteRT's own for the rest. XNNPACK tells its operators by names of its own, in the order in which it runs
them; LiteRT tells the node of the graph. Times are whole microseconds, XNNPACK's rounded down, so that operators below
one may be told as 0.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.engines import litert as engine
from toolkit.errors import InputError, MissingDependencyError
from toolkit.profilers import Operator

SOURCE = "LiteRT's profiler of CompiledModel, in whole microseconds; operators of XNNPACK by its own names"
XNNPACK = "XNNPACK"
_CPU, _WRITE = 1, 1
_ACCELERATORS, _LOG, _INTEGER, _ERRORS_ONLY = 24, 25, 2, 3  # of the environment's options
_NODE, _NODE_OF_DELEGATE = 2, 8  # kinds of events
_OPERATOR = ", operator "  # between a kind and a place
_SINCE = "LiteRtCreateModelFromFd"  # with it came the arguments that are declared here

_Handle = c_void_p
_Made = POINTER(c_void_p)
_Size = POINTER(c_size_t)
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "CreateEnvironment": (c_int, c_void_p, _Made),
    "CreateModelFromFile": (_Handle, c_char_p, _Made),
    "CreateOptions": (_Made,),
    "SetOptionsHardwareAccelerators": (_Handle, c_int),
    "CreateOpaqueOptions": (c_char_p, c_char_p, c_void_p, _Made),
    "AddOpaqueOptions": (_Handle, _Handle),
    "CreateCompiledModel": (_Handle, _Handle, _Handle, _Made),
    "CompiledModelGetProfiler": (_Handle, _Made),
    "GetNumModelSignatures": (_Handle, _Size),
    "GetModelSignature": (_Handle, c_size_t, _Made),
    "GetSignatureKey": (_Handle, POINTER(c_char_p)),
    "GetNumSignatureInputs": (_Handle, _Size),
    "GetNumSignatureOutputs": (_Handle, _Size),
    "GetSignatureInputName": (_Handle, c_size_t, POINTER(c_char_p)),
    "GetSignatureInputTensorByIndex": (_Handle, c_size_t, _Made),
    "GetSignatureOutputTensorByIndex": (_Handle, c_size_t, _Made),
    "GetRankedTensorType": (_Handle, c_void_p),
    "GetCompiledModelInputBufferRequirements": (_Handle, c_size_t, c_size_t, _Made),
    "GetCompiledModelOutputBufferRequirements": (_Handle, c_size_t, c_size_t, _Made),
    "CreateManagedTensorBufferFromRequirements": (_Handle, c_void_p, _Handle, _Made),
    "GetTensorBufferPackedSize": (_Handle, _Size),
    "LockTensorBuffer": (_Handle, _Made, c_int),
    "UnlockTensorBuffer": (_Handle,),
    "RunCompiledModel": (_Handle, c_size_t, c_size_t, _Made, c_size_t, _Made),
    "StartProfiler": (_Handle,),
    "StopProfiler": (_Handle,),
    "GetNumProfilerEvents": (_Handle, POINTER(c_int)),
    "GetProfilerEvents": (_Handle, c_int, c_void_p),
}
_ENDS = ("TensorBuffer", "CompiledModel", "Options", "Model", "Environment")  # that are destroyed, in this order


class _Option(ctypes.Structure):
    _fields_ = [("tag", c_int), ("kind", c_int64), ("value", c_int64)]


class _RankedType(ctypes.Structure):
    _fields_ = [("kind", c_int), ("rank", c_uint32), ("sizes", c_int32 * 8), ("strides", c_uint32 * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("tag", c_char_p), ("kind", c_int), ("start_us", c_uint64), ("elapsed_us", c_uint64), ("memory", c_size_t * 6),
        ("number", c_uint64), ("graph", c_uint64), ("source", c_int),
    ]  # fmt: skip


class _Library:
    """libLiteRt.so: its functions by name, without `LiteRt`. A call that fails raises InputError."""

    def __init__(self) -> None:
        found = importlib.util.find_spec("ai_edge_litert")
        places = found.submodule_search_locations if found else None
        path = Path(next(iter(places or ()), "")) / "libLiteRt.so"
        if not path.is_file():
            raise MissingDependencyError(
                f"Times of operators need ai-edge-litert with libLiteRt.so; {engine.distribution()} has none."
            )
        self._library = ctypes.CDLL(str(path))
        if not hasattr(self._library, _SINCE):
            raise MissingDependencyError(
                f"Times of operators need ai-edge-litert 2.1.6 or newer, and {engine.version()} is installed."
            )
        for name, arguments in _FUNCTIONS.items():
            function = getattr(self._library, f"LiteRt{name}")
            function.argtypes, function.restype = arguments, c_int
        for name in _ENDS:
            function = getattr(self._library, f"LiteRtDestroy{name}")
            function.argtypes, function.restype = (_Handle,), None

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status:
            raise InputError(f"LiteRT's profiler cannot be used: {name} ended with status {status}.")

    def made(self, name: str, *arguments: Any) -> c_void_p:
        handle = c_void_p()
        self.call(name, *arguments, byref(handle))
        return handle

    def count(self, name: str, *arguments: Any) -> int:
        size = c_size_t()
        self.call(name, *arguments, byref(size))
        return size.value

    def text(self, name: str, *arguments: Any) -> str:
        text = c_char_p()
        self.call(name, *arguments, byref(text))
        return (text.value or b"").decode()

    def destroy(self, name: str, handle: c_void_p) -> None:
        getattr(self._library, f"LiteRtDestroy{name}")(handle)


class _Model:
    """A file that is loaded with a profiler."""

    def __init__(self, path: Path, threads: int) -> None:
        self._library = library = _Library()
        self._handles: dict[str, list[c_void_p]] = {name: [] for name in _ENDS}
        settings = (_Option * 2)(_Option(_ACCELERATORS, _INTEGER, _CPU), _Option(_LOG, _INTEGER, _ERRORS_ONLY))
        self._environment = self._made("Environment", "CreateEnvironment", 2, settings)
        self._model = self._made("Model", "CreateModelFromFile", self._environment, str(path).encode())
        options = self._made("Options", "CreateOptions")
        library.call("SetOptionsHardwareAccelerators", options, _CPU)
        self._texts = {"xnnpack": f"num_threads = {threads}\n", "runtime_options_string": "enable_profiling = true\n"}
        self._free = ctypes.CFUNCTYPE(None, c_void_p)(lambda content: None)  # Python's memory
        self._contents = [text.encode() for text in self._texts.values()]
        for name, content in zip(self._texts, self._contents, strict=True):
            free = ctypes.cast(self._free, c_void_p)
            opaque = library.made("CreateOpaqueOptions", name.encode(), content, free)
            library.call("AddOpaqueOptions", options, opaque)
        self._compiled = self._made("CompiledModel", "CreateCompiledModel", self._environment, self._model, options)
        self._profiler = library.made("CompiledModelGetProfiler", self._compiled)
        self._numbers = {
            library.text("GetSignatureKey", self._signature(number)): number
            for number in range(library.count("GetNumModelSignatures", self._model))
        }
        self._buffers: dict[str, tuple[dict[str, c_void_p], list[c_void_p]]] = {}

    def _made(self, kind: str, name: str, *arguments: Any) -> c_void_p:
        handle = self._library.made(name, *arguments)
        self._handles[kind].append(handle)
        return handle

    def _signature(self, number: int) -> c_void_p:
        return self._library.made("GetModelSignature", self._model, number)

    def _side(self, number: int, side: str) -> Iterator[c_void_p]:
        """Memory for the inputs or the outputs of a signature."""
        signature = self._signature(number)
        for place in range(self._library.count(f"GetNumSignature{side}s", signature)):
            tensor = self._library.made(f"GetSignature{side}TensorByIndex", signature, place)
            ranked = _RankedType()
            self._library.call("GetRankedTensorType", tensor, byref(ranked))
            needs = self._library.made(f"GetCompiledModel{side}BufferRequirements", self._compiled, number, place)
            yield self._made(
                "TensorBuffer", "CreateManagedTensorBufferFromRequirements", self._environment, byref(ranked), needs
            )

    def fill(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write the inputs of a signature."""
        number, library = self._numbers[key], self._library
        if key not in self._buffers:
            signature, inputs = self._signature(number), list(self._side(number, "Input"))
            names = [library.text("GetSignatureInputName", signature, place) for place in range(len(inputs))]
            self._buffers[key] = dict(zip(names, inputs, strict=True)), list(self._side(number, "Output"))
        for name, buffer in self._buffers[key][0].items():
            content = np.ascontiguousarray(arrays[name])
            if content.nbytes != library.count("GetTensorBufferPackedSize", buffer):
                raise InputError(f"Input '{name}' has another size in the LiteRT file than it is given.")
            memory = c_void_p()
            library.call("LockTensorBuffer", buffer, byref(memory), _WRITE)
            ctypes.memmove(memory, content.ctypes.data, content.nbytes)
            library.call("UnlockTensorBuffer", buffer)

    def run(self, key: str) -> None:
        """One inference of what was written."""
        inputs, outputs = self._buffers[key]
        given, made = (c_void_p * len(inputs))(*inputs.values()), (c_void_p * len(outputs))(*outputs)
        number = self._numbers[key]
        self._library.call("RunCompiledModel", self._compiled, number, len(given), given, len(made), made)

    def profiled(self, key: str) -> list[_Event]:
        """The operators of one inference, in their order."""
        self._library.call("StartProfiler", self._profiler)
        self.run(key)
        self._library.call("StopProfiler", self._profiler)
        count = c_int()
        self._library.call("GetNumProfilerEvents", self._profiler, byref(count))
        events = (_Event * count.value)()
        self._library.call("GetProfilerEvents", self._profiler, count.value, events)
        return [event for event in events if event.kind in (_NODE, _NODE_OF_DELEGATE)]

    def close(self) -> None:
        for kind, handles in self._handles.items():
            for handle in handles:
                self._library.destroy(kind, handle)


def node_name(number: int, kind: str) -> str:
    """What a node of the graph is called, by its number there."""
    return f"{kind}, node {number}"


def delegate_name(position: int, kind: str) -> str:
    """What an operator of XNNPACK is called, by its place among all operators of an inference."""
    return f"{kind}{_OPERATOR}{position}"


def kind_of_delegate(name: str) -> str | None:
    """The kind of an operator of XNNPACK, by what it is called; None if it is not XNNPACK's."""
    kind, found, _ = name.rpartition(_OPERATOR)
    return kind if found else None


def profile(path: Path, threads: int, inputs: Sequence[Arrays], runs: int) -> list[Operator]:
    """Every operator that runs: mean over `runs` runs of each of `inputs`."""
    loaded = engine.load(path, threads)
    fed = [loaded.feeds(given) for given in inputs]
    loaded.close()
    model = _Model(path, threads)
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    kinds: dict[str, tuple[str, str | None]] = {}
    for signature, arrays in fed:
        model.fill(signature, arrays)
        model.run(signature)
        for _ in range(runs):
            for position, event in enumerate(model.profiled(signature)):
                tag, delegated = event.tag.decode(), event.kind == _NODE_OF_DELEGATE
                name = delegate_name(position, tag) if delegated else node_name(event.number, tag)
                kinds[name] = tag, XNNPACK if delegated else None
                seconds[name] += event.elapsed_us / 1e6
                calls[name] += 1
    model.close()
    made = runs * len(inputs)
    return [
        Operator(name, kind, seconds[name] / calls[name], calls[name] / made, where)
        for name, (kind, where) in kinds.items()
    ]
