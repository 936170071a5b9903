"""A LiteRT file against a rule table: the operators that the runtime, or a delegate of it, does not take."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError, missing_extra
from toolkit.export.flatbuffer import buffer_data, short_name
from toolkit.probes.litert import owner
from toolkit.rules.constraints import NOT_CONSTANT
from toolkit.rules.onnx_graph import Finding, Findings

if TYPE_CHECKING:
    from toolkit.rules.table import Table

_DTYPES = {
    "FLOAT32": "fp32", "FLOAT64": "fp64", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT8": "int8", "UINT8": "uint8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "INT4": "int4", "BOOL": "bool",
}  # fmt: skip
_INTEGERS_ONLY = "edgetpu-full-integer"  # a rule of targets/shared/limits.yaml
_VALUES = {"INT32": np.int32, "INT64": np.int64, "FLOAT32": np.float32}  # of constants that a constraint may speak of
_MOST_VALUES = 64  # such constants are short; weights are not looked into
_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "PRELU")  # the weights are the second input
_TURNS = ("CAST", "DEQUANTIZE", "QUANTIZE")
_UNFOLDS = ("DEQUANTIZE", "DENSIFY")  # of constants they give constants
# Where the data is not the first input.
_DATA = {
    "SPLIT": 1, "TRANSPOSE_CONV": 2, "EMBEDDING_LOOKUP": 1, "ASSIGN_VARIABLE": 1, "SELECT_V2": 1, "SELECT": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """An operator of a file. `inputs` and `outputs` are its tensors by number; `widens` says that it only turns stored
    weights into what its readers take."""

    kind: str
    version: int
    name: str
    module: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    form: str
    shapes: tuple[tuple[int | None, ...], ...]
    values: Mapping[str, Any]
    attributes: Mapping[str, Any]
    widens: bool


def operators(path: Path, graph: int = 0) -> list[Operator]:
    """The operators of one of a file's graphs, in its order. Raises InputError, MissingDependencyError."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Checking a LiteRT file against a rule table") from error
    try:
        content = path.read_bytes()
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
        return _Reader(schema, model, content, model.subgraphs[graph]).operators()
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except Exception as error:  # struct.error, IndexError, …: whatever the bytes lead to
        raise InputError(f"{path} is no LiteRT file that can be read: {error}") from error


def findings(found: list[Operator], table: Table) -> list[Finding | str | None]:
    """For each operator the rule that refuses it, its name if the table does not know it, or None if it is taken."""
    said: list[Finding | str | None] = [_check(operator, table) for operator in found]
    for place in reversed(range(len(found))):
        if found[place].widens:  # it goes with those that read the weights
            readers = [said[n] for n, other in enumerate(found) if set(found[place].outputs) & set(other.inputs)]
            said[place] = None if None in readers else next(iter(readers), None)
    return said


def _check(operator: Operator, table: Table) -> Finding | str | None:
    verdict = table.verdict(
        operator.kind,
        version=operator.version if any(rule.versions for rule in table.operators.values()) else None,
        dtypes=[operator.form] if operator.form else [],
        shapes=operator.shapes or None,
        inputs=operator.values,
        attributes=operator.attributes,
    )
    if verdict.status == "unsupported":
        return Finding(operator.name, operator.kind, operator.kind, verdict.reason)
    return operator.kind if verdict.status == "unknown" else None


class _Reader:
    """Reads the operators of a graph."""

    def __init__(self, schema: Any, model: Any, content: bytes, graph: Any) -> None:
        self._model, self._content, self._graph = model, content, graph
        self._kinds = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
        self._types = {v: k for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
        self._constant = {n for n, t in enumerate(graph.tensors) if self._bytes(t)}

    def operators(self) -> list[Operator]:
        return [self._operator(each) for each in self._graph.operators]

    def _bytes(self, tensor: Any) -> bytes:
        return buffer_data(self._content, self._model.buffers[tensor.buffer])

    def _operator(self, operator: Any) -> Operator:
        code = self._model.operatorCodes[operator.opcodeIndex]
        kind = self._kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        if kind == "CUSTOM":
            kind = code.customCode.decode()
        inputs = tuple(int(n) for n in (operator.inputs if operator.inputs is not None else ()))
        outputs = tuple(int(n) for n in (operator.outputs if operator.outputs is not None else ()))
        widens = kind in _UNFOLDS and bool(inputs) and inputs[0] in self._constant
        if widens:
            self._constant.update(outputs)
        name = self._graph.tensors[outputs[0]].name.decode() if outputs else ""
        return Operator(
            kind, code.version, short_name(name) or name, owner(name), inputs, outputs,
            self._form(kind, inputs, outputs),
            tuple(self._shape(n) for n in (*self._data(inputs), *outputs) if n >= 0),
            self._values(inputs),
            {**_settings(operator.builtinOptions), "inputs": len(inputs), "outputs": len(outputs)},
            widens,
        )  # fmt: skip

    def _data(self, inputs: tuple[int, ...]) -> list[int]:
        """The inputs that are computed: of these the shapes count."""
        return [number for number in inputs if number not in self._constant]

    def _form(self, kind: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> str:
        """Number formats as `toolkit.rules.litert_samples` names them."""
        place = _DATA.get(kind, 0)
        if kind in ("VAR_HANDLE", "READ_VARIABLE"):
            return self._dtype(outputs[0]) if kind == "READ_VARIABLE" else ""
        if len(inputs) <= place or inputs[place] < 0:
            return ""
        data = self._dtype(inputs[place])
        if kind in _TURNS and outputs:
            return f"{data} to {self._dtype(outputs[0])}"
        weights = 1 if kind in (*_WEIGHTED, "TRANSPOSE_CONV") else None
        if weights is not None and len(inputs) > weights and inputs[weights] >= 0:
            held = self._dtype(inputs[weights])
            return data if held == data else f"{data}x{held}"
        return data

    def _dtype(self, number: int) -> str:
        name = str(self._types[self._graph.tensors[number].type])
        return _DTYPES.get(name, name.lower())

    def _shape(self, number: int) -> tuple[int | None, ...]:
        tensor = self._graph.tensors[number]
        stated = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        return tuple(None if size < 0 else int(size) for size in (stated if stated is not None else ()))

    def _values(self, inputs: tuple[int, ...]) -> dict[str, Any]:
        """Inputs by their place, `input 1` first: the values of short constants, () for weights."""
        return {f"input {place}": self._value(number) for place, number in enumerate(inputs, 1) if number >= 0}

    def _value(self, number: int) -> Any:
        if number not in self._constant:
            return NOT_CONSTANT
        tensor = self._graph.tensors[number]
        kind = _VALUES.get(self._types[tensor.type])
        size = math.prod(int(each) for each in tensor.shape) if tensor.shape is not None else 1
        data = self._bytes(tensor)
        if kind is None or size > _MOST_VALUES or not data:
            return ()
        values: NDArray[Any] = np.frombuffer(data, kind)
        return values.tolist()


def _settings(options: Any) -> dict[str, Any]:
    """An operator's options by name."""
    return {} if options is None else {k: v for k, v in vars(options).items() if isinstance(v, int | float)}


def check(path: Path, table: Table) -> Findings:
    """Hold every operator of every signature of a LiteRT file against a table; of several signatures that say the same,
    the first. Raises MissingDependencyError without ai-edge-litert."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Checking a LiteRT file against a rule table") from error
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    refused: dict[tuple[str, str], Finding] = {}
    unknown, nodes = set(), 0
    for graph in model.subgraphs:
        for operator in graph.operators:
            nodes += 1
            code = model.operatorCodes[operator.opcodeIndex]
            kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            found = _judge(kind, code.version, _tensors(graph, operator, types), table)
            if found is None:
                unknown.add(kind)
            elif found.rule:
                refused.setdefault((found.node, found.rule), found)
    return Findings(nodes, list(refused.values()), sorted(unknown))


def _tensors(graph: Any, operator: Any, types: dict[int, str]) -> list[tuple[str, str, list[int]]]:
    """(name, element type, shape) of what an operator gives and of the data that it works on, its first input."""
    found = [graph.tensors[index] for index in (*operator.outputs[:1], *operator.inputs[:1]) if index >= 0]
    dtypes = [_DTYPES.get(types[each.type], types[each.type].lower()) for each in found]
    return [
        (short_name(each.name.decode()), dtype, [int(size) for size in each.shape])
        for each, dtype in zip(found, dtypes, strict=True)
    ]


def _judge(kind: str, version: int, tensors: list[tuple[str, str, list[int]]], table: Table) -> Finding | None:
    """What a table says of an operator: a finding, one without a rule if it is taken, None if it is not known."""
    node = tensors[0][0]
    floats = sorted({dtype for _, dtype, _ in tensors if dtype.startswith("fp")})
    if floats and _INTEGERS_ONLY in table.statements:
        said = table.statements[_INTEGERS_ONLY]
        return Finding(node, kind, _INTEGERS_ONLY, f"{said.statement} ({floats[0]})", said.instead)
    verdict = table.verdict(
        kind,
        version=version,
        dtypes=sorted({dtype for _, dtype, _ in tensors}),
        shapes=[shape for _, _, shape in tensors],
    )
    if verdict.status == "unknown":
        return None
    return Finding(node, kind, kind if verdict.status == "unsupported" else "", verdict.reason)
