"""A LiteRT file: its tensors are called after the modules that they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.engines.litert import Tensor, fed, signature_name
from toolkit.errors import InputError, missing_extra
from toolkit.export.flatbuffer import buffer_data, short_names
from toolkit.probes import OUTPUT, ancestors, common

_GIVEN = "given:"
_WANTED = "wanted:"
_PRODUCTS = ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D")  # whose second input are weights


def open_probe(path: Path) -> LitertProbe:
    """The model of a file. Raises InputError."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Looking into a LiteRT file") from error
    try:
        content = path.read_bytes()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        for buffer in model.buffers:  # those that lie behind the tables come into them, so that they are written again
            data = buffer_data(content, buffer)
            buffer.data, buffer.offset, buffer.size = np.frombuffer(data, np.uint8) if data else None, 0, 0
    except Exception as error:  # struct.error, IndexError, …: whatever the bytes lead to
        raise InputError(f"{path} is no LiteRT file that can be read: {error}") from error
    return LitertProbe(model)


class LitertProbe:
    """A flatbuffer, run by LiteRT's interpreter."""

    def __init__(self, model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.model = model
        self._names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self._float = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
        self._integers = (schema.TensorType.INT8, schema.TensorType.UINT8, schema.TensorType.INT16)
        self._graphs = {entry.signatureKey.decode(): entry for entry in model.signatureDefs}
        self._places = {key: self._find(entry.subgraphIndex) for key, entry in self._graphs.items()}
        self._runners: dict[tuple[str, tuple[str, ...], tuple[str, ...]], Any] = {}

    @property
    def modules(self) -> dict[str, str]:
        """Of the first signature: all have the same."""
        return {name: kind for name, (_, kind) in next(iter(self._places.values())).items()}

    def _find(self, index: int) -> dict[str, tuple[int, str]]:
        """Where the values of modules stand in a subgraph: module → (tensor, operator that computes it)."""
        graph = self.model.subgraphs[index]
        owners = [owner(graph.tensors[operator.outputs[0]].name.decode()) for operator in graph.operators]
        readers: dict[int, list[str]] = {number: [""] for number in graph.outputs}
        for operator, module in zip(graph.operators, owners, strict=True):
            for number in operator.inputs:
                readers.setdefault(int(number), []).append(module)
        found: dict[str, tuple[int, str]] = {}
        for operator, whole in zip(graph.operators, owners, strict=True):
            kind = self._kind(operator)
            for number in operator.outputs:
                tensor = graph.tensors[number]
                quantized = tensor.type in self._integers and tensor.quantization is not None
                if tensor.type not in self._float and not (quantized and tensor.quantization.scale is not None):
                    continue
                for module in ancestors(whole):
                    if any(r != module and not r.startswith(f"{module}.") for r in readers.get(int(number), ())):
                        found.pop(module, None)
                        found[module] = (int(number), kind)
        return found

    def nodes(self) -> list[tuple[str, str]]:
        """The operators of the first signature in their order: (kind, module); "" for one that is in none. A product's
        weights often say more than its output, which is called after all that was fused into it."""
        graph = self.model.subgraphs[self.model.signatureDefs[0].subgraphIndex]
        found = []
        for operator in graph.operators:
            kind = self._kind(operator)
            numbers = [operator.outputs[0], *([operator.inputs[1]] if kind in _PRODUCTS else [])]
            owners = [owner(graph.tensors[number].name.decode()) for number in numbers]
            found.append((kind, max(owners, key=lambda name: len(ancestors(name)))))
        return found

    def _kind(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        return str(self._names[max(code.builtinCode, code.deprecatedBuiltinCode)])

    def run(
        self, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None, given: Mapping[str, NDArray[Any]]
    ) -> Arrays:
        only = signature_name(None)
        key = only if only in self._graphs else signature_name(next(iter(inputs.values())).shape[1])
        if key not in self._graphs:
            raise InputError(f"The LiteRT file has no signature '{key}' (it has {', '.join(sorted(self._graphs))}).")
        places, graph = self._places[key], self.model.subgraphs[self._graphs[key].subgraphIndex]
        wanted = list(places) if wanted is None else wanted
        runner = self._runner(key, tuple(wanted), tuple(given))
        feeds = {}
        for name, details in runner.get_input_details().items():
            if name.startswith(_GIVEN):
                tensor = graph.tensors[places[name.removeprefix(_GIVEN)][0]]
                value = np.asarray(given[name.removeprefix(_GIVEN)]).reshape([int(size) for size in tensor.shape])
                feeds[name] = _stored(value, tensor, details["dtype"])
            else:
                feeds[name] = fed(name, inputs[name], Tensor.of(details))
        values = runner(**feeds)
        found = {}
        for name in wanted:
            tensor = graph.tensors[places[name][0]]
            found[name] = _read(values[f"{_WANTED}{name}"], tensor)
        output = next(name for name in values if not name.startswith(_WANTED))
        number = next(e.tensorIndex for e in self._graphs[key].outputs if e.name.decode() == output)
        return found | {OUTPUT: _read(values[output], graph.tensors[number])}

    def _runner(self, key: str, wanted: tuple[str, ...], given: tuple[str, ...]) -> Any:
        """A runner of a signature that gives the values of modules `wanted`, and takes those of `given`."""
        if (key, wanted, given) not in self._runners:
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(model_content=self._written(key, wanted, given), num_threads=1)
            self._runners[key, wanted, given] = interpreter.get_signature_runner(key)
        return self._runners[key, wanted, given]

    def _written(self, key: str, wanted: Sequence[str], given: Sequence[str]) -> bytes:
        """The file with more outputs and inputs of a signature. The objects are as before when it is done."""
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils

        entry, places = self._graphs[key], self._places[key]
        graph = self.model.subgraphs[entry.subgraphIndex]
        before = (list(graph.inputs), list(graph.outputs), list(graph.tensors), list(entry.inputs), list(entry.outputs))
        read_before = [list(operator.inputs) for operator in graph.operators]

        def named(name: str, number: int) -> Any:
            made = schema.TensorMapT()
            made.name, made.tensorIndex = name.encode(), number
            return made

        try:
            graph.inputs, graph.outputs = list(graph.inputs), list(graph.outputs)
            entry.outputs = list(entry.outputs)
            for name in wanted:
                number = places[name][0]
                if number not in graph.outputs:
                    graph.outputs.append(number)
                entry.outputs.append(named(f"{_WANTED}{name}", number))
            entry.inputs = list(entry.inputs)
            renamed: dict[int, int] = {}
            for name in given:
                number = places[name][0]
                if number in renamed:  # a module that hands on what its last child computed
                    entry.inputs.append(named(f"{_GIVEN}{name}", renamed[number]))
                    continue
                tensor = graph.tensors[number]
                copy = schema.TensorT()
                copy.shape, copy.type, copy.buffer = tensor.shape, tensor.type, 0
                copy.shapeSignature, copy.quantization = tensor.shapeSignature, tensor.quantization
                copy.name = f"{_GIVEN}{name}".encode()
                graph.tensors.append(copy)
                renamed[number] = len(graph.tensors) - 1
                graph.inputs.append(renamed[number])
                entry.inputs.append(named(f"{_GIVEN}{name}", renamed[number]))
            for operator in graph.operators:
                operator.inputs = [renamed.get(int(number), int(number)) for number in operator.inputs]
            return bytes(flatbuffer_utils.convert_object_to_bytearray(self.model))
        finally:
            graph.inputs, graph.outputs, graph.tensors, entry.inputs, entry.outputs = before
            for operator, numbers in zip(graph.operators, read_before, strict=True):
                operator.inputs = numbers

    def close(self) -> None:
        self._runners.clear()


def owner(name: str) -> str:
    """The module of a tensor, by the path that its name begins with. Operators that the converter made one have the
    names of all: it is in the innermost module that holds them."""
    paths = [path.replace("/", ".") for path in short_names(name)]
    return (common(paths) or "") if any("." in path for path in paths) else ""


def _stored(value: NDArray[Any], tensor: Any, dtype: Any) -> NDArray[Any]:
    """Floats as a tensor holds them, in integers if it is quantized."""
    quantization = tensor.quantization
    if np.issubdtype(dtype, np.floating) or quantization is None or quantization.scale is None:
        return value.astype(dtype)
    limits = np.iinfo(dtype)
    integers = np.round(value / quantization.scale[0]) + quantization.zeroPoint[0]
    return np.asarray(np.clip(integers, limits.min, limits.max).astype(dtype))


def _read(value: NDArray[Any], tensor: Any) -> NDArray[Any]:
    """A tensor's content as float32."""
    if not np.issubdtype(value.dtype, np.integer):
        return value.astype(np.float32)
    scale, zero = tensor.quantization.scale[0], tensor.quantization.zeroPoint[0]
    return np.asarray((value.astype(np.float32) - zero) * scale, dtype=np.float32)
