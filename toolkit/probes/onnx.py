"""An ONNX file: its nodes say which module they came from, or their names do."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import silence
from toolkit.engines import Arrays, as_float32, tensorrt
from toolkit.errors import InputError, ToolkitError
from toolkit.export import onnx_file
from toolkit.export.onnx_activations import tensor_types
from toolkit.export.onnx_layers import SCOPES
from toolkit.probes import OUTPUT, ancestors, common

_GIVEN = ".given"
# As TensorProto counts them. bfloat16 is for weights alone: no CPU kernel computes in it.
_FLOATS = {"tensor(float)": 1, "tensor(float16)": 10}
# Names that torch's former exporter gave: /bert/encoder/layer.0/attention/self/query/MatMul
_PATH = re.compile(r"^/(.+)/[A-Za-z]\w*$")

_INNER = re.compile(r"^val_\d+$")  # what torch's exporter calls tensors that PyTorch has not


def open_probe(path: Path) -> OnnxProbe:
    """The model of a file. Raises InputError."""
    try:
        return OnnxProbe(onnx_file.read(path))
    except ToolkitError:
        raise
    except Exception as error:  # ONNX Runtime has a class per status code
        raise InputError(f"{path} is no ONNX file that can be read: {error}") from error


class OnnxProbe:
    """A graph, run by ONNX Runtime's CPU kernels."""

    def __init__(self, model: Any) -> None:
        tensorrt.widen(model)
        self._model = model
        self._types = tensor_types(model)
        self._places = places(model, self._types)
        self._sessions: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}

    @property
    def modules(self) -> dict[str, str]:
        return {name: kind for name, (_, kind) in self._places.items()}

    def run(
        self, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None, given: Mapping[str, NDArray[Any]]
    ) -> Arrays:
        output = self._model.graph.output[0].name
        wanted = list(self._places) if wanted is None else wanted
        tensors = {name: self._places[name][0] for name in wanted}
        replaced = {self._places[name][0]: value for name, value in given.items()}
        session = self._session(tuple(dict.fromkeys([*tensors.values(), output])), tuple(sorted(replaced)))
        feeds = {f"{name}{_GIVEN}": _typed(value, self._types[name]) for name, value in replaced.items()}
        for tensor in session.get_inputs():
            if tensor.name not in feeds:
                feeds[tensor.name] = inputs[tensor.name]
        names = [tensor.name for tensor in session.get_outputs()]
        values = dict(zip(names, session.run(names, feeds), strict=True))
        found = {name: as_float32(values[tensor]) for name, tensor in tensors.items()}
        return found | {OUTPUT: as_float32(values[output])}

    def _session(self, outputs: tuple[str, ...], replaced: tuple[str, ...]) -> Any:
        """A session that gives tensors `outputs` and is given tensors `replaced`."""
        if (outputs, replaced) not in self._sessions:
            model = with_given(self._model, outputs, {name: self._types[name] for name in replaced})
            self._sessions[outputs, replaced] = _session_of(model)
        return self._sessions[outputs, replaced]

    def close(self) -> None:
        self._sessions.clear()


def _typed(value: NDArray[Any], kind: str) -> NDArray[Any]:
    """A value as a tensor of a type takes it."""
    return value.astype(np.float16 if kind == "tensor(float16)" else np.float32)


def _session_of(model: Any) -> Any:
    silence.apply()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnx_file.session(model, options, ["CPUExecutionProvider"])


def with_given(model: Any, outputs: Sequence[str], replaced: Mapping[str, str]) -> Any:
    """A copy of `model` that gives the tensors `outputs`, and whose nodes read each tensor of `replaced`, which says
    its type, from an input of its own."""
    import onnx

    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for graph in onnx_file.graphs(changed.graph):
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name in replaced:
                    node.input[place] = f"{name}{_GIVEN}"
    for name, kind in replaced.items():
        changed.graph.input.append(onnx.helper.make_tensor_value_info(f"{name}{_GIVEN}", _FLOATS[kind], None))
    known = {value.name for value in changed.graph.output}
    for name in outputs:
        if name not in known:
            changed.graph.output.append(onnx.ValueInfoProto(name=name))  # the session finds out the type
    return changed


def scope(node: Any) -> str | None:
    """The module that a node came from; "" for the model itself, None if it does not say."""
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 and not str(scopes[0]).startswith("_empty") else ""
    found = _PATH.match(node.name)
    return found.group(1).replace("/", ".") if found else None


def is_inner(node: Any, name: str) -> bool:
    """Whether a tensor lies inside what was one operation in PyTorch, as a product to which the bias is added later,
    maybe by an operator that an optimizer made of several. The last one of an operation has a name of its own."""
    return any(entry.key == SCOPES for entry in node.metadata_props) and bool(_INNER.match(name))


def scopes(model: Any) -> list[str]:
    """The module of every node of the main graph. A node that does not say, which an optimizer or a quantizer put in,
    belongs to the innermost module that holds the nodes around it."""
    nodes = list(model.graph.node)
    said = [scope(node) for node in nodes]
    producer = {name: index for index, node in enumerate(nodes) for name in node.output}
    before: list[str | None] = list(said)
    for index, node in enumerate(nodes):
        if said[index] is None:
            around = [before[producer[name]] for name in node.input if name in producer]
            before[index] = common([each for each in around if each is not None])
    after: list[str | None] = list(said)
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            readers.setdefault(name, []).append(index)
    for index in range(len(nodes) - 1, -1, -1):
        if said[index] is None:
            around = [after[reader] for name in nodes[index].output for reader in readers.get(name, ())]
            after[index] = common([each for each in around if each is not None])
    found = []
    for own, first, last in zip(said, before, after, strict=True):
        known = [each for each in (first, last) if each is not None]
        found.append(own if own is not None else common(known) or "")
    return found


def places(model: Any, types: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Where the values of modules stand: module → (tensor, operator that computes it), in the graph's order.

    A module's value is the float tensor that leaves it: of several the last. Without any names of modules every node is
    one, called as the tensor that it computes.
    """
    nodes, owners = list(model.graph.node), scopes(model)
    inner = {name for node in nodes for name in node.output if is_inner(node, name)}
    if not any(owners):
        return {n.output[0]: (n.output[0], n.op_type) for n in nodes if n.output and types[n.output[0]] in _FLOATS}
    readers: dict[str, list[str]] = {value.name: [""] for value in model.graph.output}
    for node, owner in zip(nodes, owners, strict=True):
        for name in node.input:
            readers.setdefault(name, []).append(owner)
    found: dict[str, tuple[str, str]] = {}
    for node, owner in zip(nodes, owners, strict=True):
        for name in node.output:
            if types.get(name) not in _FLOATS or name in inner:
                continue
            for module in ancestors(owner):
                if any(reader != module and not reader.startswith(f"{module}.") for reader in readers.get(name, ())):
                    found.pop(module, None)  # the last one counts, and the order is by it
                    found[module] = (name, node.op_type)
    return found
