"""ONNX files on disk: read without trusting them, and written whatever their size.

A protobuf message ends at 2 GB. What is larger keeps its weights in a second file beside it, and so does what others
wrote that way; where that file lies is text in the model, which is checked before anything is read from it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import InputError, missing_extra
from toolkit.runtime import manifest as manifests

if TYPE_CHECKING:
    from numpy.typing import NDArray

DATA_SUFFIX = ".data"
LARGE = 1_000_000_000  # bytes of weights that are not read where shapes alone are looked at
LARGEST = 1_900_000_000  # bytes of a file that holds its weights itself; protobuf's own limit is 2 GiB
_SMALL = 1_000_000  # bytes of a tensor that is read even so
_KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training", "com.microsoft")


def read(path: Path, weights: bool = True, most: int | None = None) -> Any:
    """The model of a file (`onnx.ModelProto`), with the weights of its second file unless `weights` is False. If they
    have more than `most` bytes, only small tensors are read from there: sizes, scales, bounds.

    Raises InputError for what is no ONNX file, is damaged, or names weights that are missing or lie elsewhere.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "convert", "Reading an ONNX file") from error
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file.")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf has an exception of its own per implementation
        raise InputError(f"{path} is not an ONNX file, or it is damaged: {_first_line(error)}") from error
    if not model.opset_import or not (model.graph.node or model.graph.output):
        raise InputError(f"{path} is not an ONNX file, or it is damaged: it holds no graph.")
    _check_external(path, model)
    if most is not None and sum(each.stat().st_size for each in files(path, model)) > most:
        for tensor in tensors(model):
            if external(tensor) and stored_bytes(tensor) <= _SMALL:
                onnx.external_data_helper.load_external_data_for_tensor(tensor, str(path.parent))
                tensor.ClearField("data_location")
                del tensor.external_data[:]
    elif weights:
        onnx.load_external_data_for_model(model, str(path.parent))
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def graphs(graph: Any) -> Iterator[Any]:
    """A graph and the graphs inside its nodes, `If` and `Loop` have some."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from graphs(inner)


def tensors(model: Any) -> Iterator[Any]:
    """All tensors that a model stores: initializers and those in attributes of nodes."""
    for graph in [each for body in (model.graph, *model.functions) for each in graphs(body)]:
        if hasattr(graph, "initializer"):
            yield from graph.initializer
            for sparse in graph.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def external(tensor: Any) -> Mapping[str, str]:
    """Where a tensor's values lie outside the model's file: `location`, `offset`, `length`; empty if they do not."""
    import onnx

    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return {}
    return {entry.key: entry.value for entry in tensor.external_data}


def array(tensor: Any, folder: Path) -> NDArray[Any]:
    """The values of a tensor, which may still lie in a file of `folder`."""
    import numpy as np
    import onnx

    return np.asarray(onnx.numpy_helper.to_array(tensor, str(folder)))


def stored_bytes(tensor: Any) -> int:
    """Bytes of a tensor's values, wherever they lie."""
    import onnx

    place = external(tensor)
    if place.get("length"):
        return int(place["length"])
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return len(tensor.raw_data) or width * math.prod(tensor.dims)


def weight_bytes(model: Any) -> int:
    """Bytes of the weights of the main graph that are in memory."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def data_files(path: Path, model: Any) -> list[str]:
    """The names of the files beside `path` that a model has weights in."""
    return sorted({place["location"] for each in tensors(model) if (place := external(each))})


def _check_external(path: Path, model: Any) -> None:
    """Refuse weights that are not in the folder of the model, are not there, or end too early. Raises InputError."""
    for tensor in tensors(model):
        place = external(tensor)
        if not place:
            continue
        location = place.get("location", "")
        try:
            file = manifests.inside(path.parent, location)
        except InputError as error:
            raise InputError(
                f"{path}: the weight '{tensor.name}' is said to lie in {location!r}, outside the model's folder; "
                "refused."
            ) from error
        if not file.is_file():
            raise InputError(f"{path} has its weights in '{location}', which is not beside it. Copy both files.")
        try:
            offset, length = int(place.get("offset", 0)), int(place.get("length", 0))
        except ValueError as error:
            raise InputError(f"{path}: where the weight '{tensor.name}' lies is not said in numbers.") from error
        if min(offset, length) < 0 or offset + length > file.stat().st_size:
            raise InputError(
                f"{path}: the weight '{tensor.name}' ends at byte {offset + length:,} of '{location}', which has "
                f"{file.stat().st_size:,}. It was probably cut off while copying; get it again."
            )


def check(path: Path, model: Any) -> None:
    """Refuse a model that no runtime could run. Raises InputError naming the operator or the tensor.

    Operators that are not of ONNX or ONNX Runtime, opsets that are not known, tensors that nothing makes, circles.
    """
    import onnx

    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    newest = onnx.defs.onnx_opset_version()
    if not 1 <= opsets.get("ai.onnx", 1) <= newest:
        raise InputError(f"{path} is in opset {opsets['ai.onnx']}; the newest one that is known here is {newest}.")
    if not model.graph.output:
        raise InputError(f"{path} has no output.")
    own = {(function.domain, function.name) for function in model.functions}
    for graph in graphs(model.graph):
        for node in graph.node:
            if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
                raise InputError(
                    f"{path}: the operator {node.domain}:{node.op_type} ({node.name or 'unnamed'}) is neither of ONNX "
                    "nor of ONNX Runtime; it needs a library of its own, which is not loaded."
                )
            if node.domain in ("", "ai.onnx") and (node.domain, node.op_type) not in own:
                _check_operator(path, node, opsets.get("ai.onnx", newest))
    _check_order(path, model.graph)


def _check_operator(path: Path, node: Any, opset: int) -> None:
    import onnx

    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except onnx.defs.SchemaError as error:
        raise InputError(f"{path}: ONNX has no operator {node.op_type} in opset {opset} ({node.name}).") from error
    if schema.deprecated:
        raise InputError(f"{path}: the operator {node.op_type} was taken out of ONNX in opset {opset}, its own.")


def _check_order(path: Path, graph: Any) -> None:
    """Refuse circles, and tensors that nothing makes; put nodes that stand in another order into the right one."""
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {sparse.values.name for sparse in graph.sparse_initializer} | {""}
    made = {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            if name not in known and name not in made:
                raise InputError(f"{path}: the node '{node.name or node.op_type}' reads '{name}', which nothing makes.")
    waiting, ordered = list(graph.node), []
    while waiting:
        ready = []
        left = []
        for node in waiting:
            if all(name in known for name in _reads(node, made)):
                known.update(node.output)
                ready.append(node)
            else:
                left.append(node)
        if not ready:
            names = ", ".join(f"'{node.name or node.op_type}'" for node in left[:4])
            raise InputError(f"{path}: the graph runs in a circle, among others through {names}.")
        ordered += ready
        waiting = left
    if any(mine is not other for mine, other in zip(ordered, graph.node, strict=True)):
        nodes = [type(node).FromString(node.SerializeToString()) for node in ordered]
        del graph.node[:]
        graph.node.extend(nodes)


def _reads(node: Any, made: set[str]) -> Iterator[str]:
    """What a node reads of its graph, the graphs inside it included."""
    yield from node.input
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            own = {name for each in inner.node for name in each.output} | {value.name for value in inner.input}
            for each in inner.node:
                yield from (name for name in _reads(each, made) if name in made and name not in own)


def drop_unread(model: Any) -> None:
    """Remove the initializers that nothing reads."""
    every = list(graphs(model.graph))
    read = {name for graph in every for node in graph.node for name in node.input}
    read |= {value.name for graph in every for value in graph.output}
    for graph in every:
        kept = [initializer for initializer in graph.initializer if initializer.name in read]
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)


def files(path: Path, model: Any) -> list[Path]:
    """A model's file and those beside it that hold its weights."""
    return [path, *(path.parent / name for name in data_files(path, model))]


def save(model: Any, path: Path, largest: int = LARGEST) -> None:
    """Write a model; if it has more than `largest` bytes, its weights into `path` + `.data`. Empties `model` of what it
    writes there."""
    import onnx

    if weight_bytes(model) < largest and model.ByteSize() < largest:
        onnx.save(model, str(path))
        return
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=path.name + DATA_SUFFIX,
        size_threshold=1024,
    )
    (path.parent / (path.name + DATA_SUFFIX)).chmod(0o644)  # onnx writes it for nobody else


def session(model: Any, options: Any, providers: list[str]) -> Any:
    """An ONNX Runtime session of a model in memory, whatever its size; a large one goes by way of a file."""
    import tempfile

    import onnxruntime

    if weight_bytes(model) < LARGEST:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "model.onnx"
        copied = type(model)()
        copied.CopyFrom(model)
        save(copied, path)
        return onnxruntime.InferenceSession(os.fspath(path), options, providers=providers)
