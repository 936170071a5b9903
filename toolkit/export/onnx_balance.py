"""Balanced activations in an ONNX file: channels with large values are divided before a layer, and its weights
multiplied, so that both fill 8 bits better (SmoothQuant, Xiao et al., 2023). In float the answers stay the same.

The division is an operator of its own. Where a LayerNorm's output also goes into a residual connection, as in BERT and
its kin, it cannot be folded into the LayerNorm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.export.onnx_layers import Layer


def scales(largest: NDArray[Any], weights: NDArray[Any], alpha: float) -> NDArray[np.float32]:
    """The divisor of each channel, float32[channels]: largest activation ** alpha / largest weight ** (1 - alpha)."""
    floor = 1e-5
    return np.asarray(np.maximum(largest, floor) ** alpha / np.maximum(weights, floor) ** (1 - alpha), np.float32)


def balance(model: Any, layers: Sequence[Layer], inputs: Sequence[Arrays], alpha: float) -> int:
    """Balance what all linear layers read, in place, by the largest values over the examples. Returns how many
    activations were balanced."""
    import onnx
    from onnx import helper

    linear = [layer for layer in layers if not layer.is_table and not layer.is_convolution]
    readers: dict[str, list[Layer]] = {}
    for layer in linear:
        readers.setdefault(layer.activation, []).append(layer)
    stored = {initializer.name: initializer for initializer in model.graph.initializer}
    found = _largest(model, list(readers), inputs)
    for name, reading in readers.items():
        matrices = {layer.weight: onnx.numpy_helper.to_array(stored[layer.weight]) for layer in reading}
        width = found[name].size
        by_channel = [np.abs(matrices[layer.weight]).max(axis=layer.axis) for layer in reading]
        chosen = scales(found[name], np.max(by_channel, axis=0), alpha)
        for layer in reading:
            shape = [1, 1]
            shape[1 - layer.axis] = width
            changed = (matrices[layer.weight] * chosen.reshape(shape)).astype(np.float32)
            new = f"{layer.weight}.balanced"
            if new not in stored:
                model.graph.initializer.append(onnx.numpy_helper.from_array(changed, new))
                stored[new] = model.graph.initializer[-1]
            layer.node.input[0], layer.node.input[1] = f"{name}.balanced", new
        model.graph.initializer.append(onnx.numpy_helper.from_array((1 / chosen).astype(np.float32), f"{name}.factor"))
        place = next(i for i, node in enumerate(model.graph.node) if node.name == reading[0].node.name)
        model.graph.node.insert(
            place, helper.make_node("Mul", [name, f"{name}.factor"], [f"{name}.balanced"], name=f"{name}.balance")
        )
    return len(readers)


def _largest(model: Any, names: Sequence[str], inputs: Sequence[Arrays]) -> dict[str, NDArray[np.float32]]:
    """The largest size of every channel, the last axis, of named tensors over the examples."""
    from toolkit.export.onnx_activations import watch

    found: dict[str, NDArray[np.float32]] = {}
    for values in watch(model, names, inputs):
        for name, array in values.items():
            top = np.abs(array).reshape(-1, array.shape[-1]).max(axis=0)
            found[name] = np.maximum(found[name], top) if name in found else top
    return found
