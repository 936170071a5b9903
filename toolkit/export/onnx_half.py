"""Half precision in ONNX, by explicit casts, with the operators left in float32 whose values do not fit.

A float16 reaches 65,504. Beyond it lies infinity, and behind that no number at all: an export then loads, runs and
answers nonsense. Whether values fit is seen from real examples, tensor by tensor, before anything is converted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.export import onnx_file
from toolkit.export.onnx_activations import tensor_types, watch

LARGEST = 65504.0
MARGIN = 2.0  # what a model meets later may be larger than what the examples showed
# Masks are filled with the smallest float32, which a cast to half cuts to the smallest half: they stay masks.
_MASK = 1e30
# What these compute inside are squares.
_SQUARES = (
    "LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
    "InstanceNormalization", "GroupNormalization", "ReduceL2", "ReduceSumSquare", "LpNormalization",
)  # fmt: skip


def overflowing(model: Any, inputs: Sequence[Arrays]) -> dict[str, str]:
    """The nodes of a float model whose values do not fit a float16 on these examples: by name, why."""
    types = tensor_types(model)
    largest = {t.name: _largest(_array(t)) for t in model.graph.initializer if t.data_type == 1}
    floats = [name for name, kind in types.items() if kind == "tensor(float)"]
    for arrays, values in zip(inputs, watch(model, floats, inputs), strict=True):
        for name, value in {**arrays, **values}.items():
            if value.dtype.kind == "f":
                largest[name] = max(largest.get(name, 0.0), _largest(value))
    found = {}
    for node in model.graph.node:
        for name in [*node.input, *node.output]:
            size = largest.get(name, 0.0)
            if size * MARGIN > LARGEST:
                found[node.name] = f"{name} reaches {size:.3g}"
            elif node.op_type in _SQUARES and name == node.input[0] and size**2 * MARGIN > LARGEST:
                found[node.name] = f"{name} reaches {size:.3g}, whose square does not fit"
    return found


def _array(tensor: Any) -> NDArray[Any]:
    import onnx

    return np.asarray(onnx.numpy_helper.to_array(tensor))


def _largest(values: NDArray[Any]) -> float:
    """The largest size of a value, masks left aside."""
    sizes = np.abs(values[np.abs(values) < _MASK])
    return float(sizes.max(initial=0.0))


def _join(model: Any) -> None:
    """Let operators in float32 hand on float32 to each other, where the converter casts to half and back."""
    from onnx import TensorProto

    def target(node: Any) -> int | None:
        return next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None

    known: set[str] = set()
    for node in list(model.graph.node):  # it casts a value twice for an operator that reads it twice, as squares do
        if node.op_type == "Cast" and node.output[0] in known:
            model.graph.node.remove(node)
        known.update(node.output)
    producers = {name: node for node in model.graph.node for name in node.output}
    wide = {}
    for node in model.graph.node:
        before = producers.get(node.input[0]) if target(node) == TensorProto.FLOAT else None
        if before is not None and target(before) == TensorProto.FLOAT16:
            wide[node.output[0]] = before.input[0]
    outputs = {value.name for value in model.graph.output}
    wide = {name: source for name, source in wide.items() if name not in outputs}
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = wide.get(name, name)
    read = outputs | {name for node in model.graph.node for name in node.input}
    for node in reversed(list(model.graph.node)):
        if node.op_type == "Cast" and node.output[0] not in read:
            model.graph.node.remove(node)
            read = outputs | {name for each in model.graph.node for name in each.input}


def convert(model: Any, path: Path, kept: Sequence[str], inputs: Sequence[Arrays]) -> dict[str, Any]:
    """Write `model` in half precision to `path`, its inputs and outputs as they were, the nodes `kept` in float32.

    With examples the nodes that overflow stay in float32 too, and the result is run on them. Returns what there is to
    report. Raises InputError if an answer is not finite even so.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    too_large = overflowing(model, inputs) if inputs else {}
    half = convert_float_to_float16(model, keep_io_types=True, node_block_list=[*kept, *too_large])
    _join(half)
    OnnxModel(half).topological_sort(is_deterministic=True)  # the converter puts its casts at the end
    try:
        onnx.checker.check_model(half)
    except onnx.checker.ValidationError as error:
        raise InputError(
            "Half precision: the converter does not reach what lies inside the graph's If and Loop nodes; what it made "
            f"is not valid ({str(error).splitlines()[0]})."
        ) from error
    for number, values in enumerate(watch(half, [each.name for each in half.graph.output], inputs)):
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise InputError(
                    f"In half precision the output '{name}' is not finite on calibration example {number + 1}, "
                    f"although {len(too_large)} operators were left in float32. Choose another precision."
                )
    onnx_file.save(half, path)
    return {"overflow": {"examples": len(inputs), "float32": too_large}}
