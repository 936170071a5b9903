"""The operations of a LiteRT file: those of the signature for an input length, or of its only one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from toolkit.costs import Operation
from toolkit.costs.work import Work, of_convolution, of_kind
from toolkit.engines.litert import length_of
from toolkit.errors import InputError, missing_extra
from toolkit.export.flatbuffer import buffer_size, short_name
from toolkit.probes.litert import owner

LENGTH = "length"

_DTYPES = {
    "float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16", "int8": "int8", "uint8": "int8",
    "int4": "int4",
}  # fmt: skip
_BYTES = {
    "float64": 8, "int64": 8, "uint64": 8, "complex64": 8, "float32": 4, "int32": 4, "uint32": 4, "float16": 2,
    "bfloat16": 2, "int16": 2, "uint16": 2, "int4": 0.5, "uint4": 0.5, "int2": 0.25, "string": 0, "resource": 0,
    "variant": 0,
}  # fmt: skip
_LOOK_UPS = ("GATHER", "EMBEDDING_LOOKUP", "GATHER_ND")
_COPIED = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")  # other formats only look at them in another way
_LOOPS = ("IF", "WHILE", "CALL", "CALL_ONCE")
_PRODUCTS = (
    "FULLY_CONNECTED", "CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "BATCH_MATMUL",
    "UNIDIRECTIONAL_SEQUENCE_LSTM", "LSTM", "UNIDIRECTIONAL_SEQUENCE_RNN", "RNN",
)  # fmt: skip


def operations(path: Path, sizes: Mapping[str, int]) -> list[Operation]:
    """All operators of a signature, in its order.

    Of a file with a signature per input length, the shortest that holds `sizes["length"]`, as the runtime chooses it;
    other sizes are as the file has them. What lies in a composite counts, what a loop runs is not known. Raises
    InputError.
    """
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Counting what a LiteRT file costs") from error
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
        names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
        types = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
        signatures = {_length(each.signatureKey.decode()): each.subgraphIndex for each in model.signatureDefs or ()}
    except Exception as error:  # struct.error, IndexError, ValueError, …: whatever the bytes lead to
        raise InputError(f"{path} is no LiteRT file that can be read: {error}") from error
    return list(_Counter(model, names, types).operations(_chosen(signatures, sizes, path)))


def _length(signature: str) -> int | None:
    """The input length that a signature is for; None if it has another name than this toolkit gives."""
    try:
        return length_of(signature)
    except ValueError:
        return None


def _chosen(signatures: Mapping[int | None, int], sizes: Mapping[str, int], path: Path) -> int:
    """The subgraph of the signature that takes inputs of a length."""
    lengths = sorted(length for length in signatures if length is not None)
    if not lengths:
        return signatures.get(None, 0)
    if LENGTH not in sizes:
        raise InputError(f"{path} has a graph for each of the lengths {', '.join(map(str, lengths))}: give {LENGTH}=…")
    fitting = [length for length in lengths if length >= sizes[LENGTH]]
    if not fitting:
        raise InputError(f"{path} takes no input of length {sizes[LENGTH]}; its longest is {lengths[-1]}.")
    return signatures[fitting[0]]


class _Counter:
    """Counts the operators of a model's subgraphs."""

    def __init__(self, model: Any, names: Mapping[int, str], types: Mapping[int, str]) -> None:
        self._model, self._names, self._types = model, names, types

    def operations(self, index: int) -> Iterator[Operation]:
        """Those of a subgraph; a composite is what it is made of."""
        graph = self._model.subgraphs[index]
        sources = self._dequantized(graph)
        for operator in graph.operators:
            code = self._model.operatorCodes[operator.opcodeIndex]
            kind = self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if kind == "STABLEHLO_COMPOSITE":
                yield from self.operations(operator.builtinOptions2.decompositionSubgraphIndex)
                continue
            custom = code.customCode.decode() if kind == "CUSTOM" and code.customCode else ""
            yield self._operation(graph, operator, custom or kind, "custom" if custom else "", sources)

    def _dequantized(self, graph: Any) -> dict[int, int]:
        """Weights that are widened when the file is loaded: the wide tensor → the one that the file holds."""
        found = {}
        for operator in graph.operators:
            code = self._model.operatorCodes[operator.opcodeIndex]
            kind = self._names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            if kind == "DEQUANTIZE" and self._constant_bytes(graph.tensors[operator.inputs[0]]):
                found[int(operator.outputs[0])] = int(operator.inputs[0])
        return found

    def _operation(self, graph: Any, operator: Any, kind: str, domain: str, sources: Mapping[int, int]) -> Operation:
        tensors = [graph.tensors[number] if number >= 0 else None for number in operator.inputs]
        output = graph.tensors[operator.outputs[0]] if len(operator.outputs) else None
        shape = _shape(output) if output is not None else ()
        name = output.name.decode() if output is not None else kind
        products = _multiply_adds(kind, tensors, shape, operator.builtinOptions)
        second = tensors[1] if len(tensors) > 1 else None
        work = _work(kind, second, constant=second is not None and bool(self._constant_bytes(second)))
        folded = len(operator.outputs) > 0 and int(operator.outputs[0]) in sources
        known = kind not in _LOOPS and products is not None
        if folded or not known:
            counted = shape if folded else None
            runs = 0 if folded else 1
            return Operation(short_name(name) or name, kind, domain, owner(name), work, 0, 0, 0, "", counted, runs)
        weights = activations = 0.0
        for place, (number, tensor) in enumerate(zip(operator.inputs, tensors, strict=True)):
            if tensor is None:
                continue
            held = graph.tensors[sources[int(number)]] if int(number) in sources else tensor
            constant = self._constant_bytes(held)
            if constant and kind in _LOOK_UPS and place == _table(kind):
                weights += math.prod(shape) * constant / max(1, math.prod(_shape(held)))
            elif constant:
                weights += self._bytes(tensor)
            elif work != "view":
                activations += self._bytes(tensor)
        if work != "view":
            activations += sum(self._bytes(graph.tensors[number]) for number in operator.outputs)
        return Operation(
            short_name(name) or name,
            kind,
            domain,
            owner(name),
            work,
            products or 0,
            round(activations),
            round(weights),
            self._dtype(kind, tensors, output),
            shape,
        )

    def _dtype(self, kind: str, tensors: list[Any], output: Any) -> str:
        """The format of the arithmetic: of a float layer with integer weights it is int8, for its input is quantized
        when it runs."""
        found = [self._types[tensor.type] for tensor in tensors if tensor is not None]
        if kind in _PRODUCTS and len(found) > 1 and found[1] in ("int8", "int4", "int2", "uint8"):
            return "int8"
        if kind in ("CAST", "DEQUANTIZE", "GATHER", "EMBEDDING_LOOKUP") and output is not None:
            return _named(self._types[output.type])
        return _named(found[1 if kind in ("SELECT_V2", "SELECT") else 0]) if found else ""

    def _bytes(self, tensor: Any) -> float:
        return math.prod(_shape(tensor)) * _BYTES.get(self._types[tensor.type], 1)

    def _constant_bytes(self, tensor: Any) -> int:
        return buffer_size(self._model.buffers[tensor.buffer])


def _named(kind: str) -> str:
    return _DTYPES.get(kind, kind)


def _table(kind: str) -> int:
    """The place of the table that a look-up reads rows of."""
    return 1 if kind == "EMBEDDING_LOOKUP" else 0


def _work(kind: str, second: Any, *, constant: bool) -> Work:
    """The class of an operator; `second` is its second input, the weights of a product."""
    if kind in _COPIED:
        return "copy"
    if kind not in _PRODUCTS:
        return of_kind(kind)
    if kind == "BATCH_MATMUL":
        return "gemm" if constant else "attention"
    if kind == "DEPTHWISE_CONV_2D":
        return "depthwise"
    if "CONV" not in kind:
        return "gemm"
    weights = _shape(second)
    return of_convolution(weights[1:-1], weights[-1])


def _shape(tensor: Any) -> tuple[int, ...]:
    return () if tensor.shape is None else tuple(int(size) for size in tensor.shape)


def _multiply_adds(kind: str, tensors: list[Any], output: tuple[int, ...], options: Any) -> int | None:
    """Multiply-adds of an operator; 0 for one without products, None for a recurrent one, whose gates this does not
    know."""
    if kind not in _PRODUCTS:
        return 0
    if "LSTM" in kind or "RNN" in kind:
        return None
    first = _shape(tensors[0])
    if kind == "BATCH_MATMUL":
        return math.prod(output) * first[-2 if options.adjX else -1]
    weights = _shape(tensors[1])
    if kind == "FULLY_CONNECTED":
        return math.prod(output) * weights[-1]
    if kind == "DEPTHWISE_CONV_2D":
        return math.prod(output) * math.prod(weights[1:3])
    if kind == "CONV_3D":
        return math.prod(output) * math.prod(weights[:4])
    if kind == "TRANSPOSE_CONV":
        return math.prod(_shape(tensors[2])) * math.prod(weights[:3])
    return math.prod(output) * math.prod(weights[1:])
