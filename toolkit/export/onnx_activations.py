"""The values that tensors of a float ONNX model take over examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from numpy.typing import NDArray

from toolkit.engines import Arrays
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
    import onnx
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    for name in names:
        watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = [tensor.name for tensor in session.get_inputs()]
    for arrays in inputs:
        yield dict(zip(names, session.run(list(names), {key: arrays[key] for key in taken}), strict=True))
