"""The values that tensors of a float ONNX model take over examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from toolkit import silence
from toolkit.engines import Arrays
from toolkit.export import onnx_file
from toolkit.ranges import Histogram


def activations(model: Any, names: Sequence[str], inputs: Sequence[Arrays]) -> dict[str, tuple[Histogram, Histogram]]:
    """The values of named tensors over the examples: one histogram for every other example, one for the rest."""
    found = {name: (Histogram(), Histogram()) for name in names}
    for number, values in enumerate(watch(model, list(found), inputs)):
        for name, array in values.items():
            found[name][number % 2].add(array)
    return found


def watch(model: Any, names: Sequence[str], inputs: Sequence[Arrays]) -> Iterator[dict[str, NDArray[Any]]]:
    """The values of named tensors of a float model, one example after the other."""
    session = _session(model, names)
    taken = [tensor.name for tensor in session.get_inputs()]
    for arrays in inputs:
        yield dict(zip(names, session.run(list(names), {key: arrays[key] for key in taken}), strict=True))


def tensor_types(model: Any) -> dict[str, str]:
    """The type of every tensor that a node of the main graph computes, as ONNX Runtime finds it, contrib operators
    included: `tensor(float)`."""
    session = _session(model, [name for node in model.graph.node for name in node.output if name], optimized=False)
    return {tensor.name: tensor.type for tensor in session.get_outputs()}


def _session(model: Any, outputs: Sequence[str], optimized: bool = True) -> Any:
    """A session of a model whose outputs are other tensors; it finds out their types."""
    silence.apply()
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnx_file.session(watched, options, ["CPUExecutionProvider"])
