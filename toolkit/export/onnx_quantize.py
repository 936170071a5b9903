"""ONNX files in fewer bits.

For ONNX Runtime, weight-only layers use its operator MatMulNBits; everything else is standard ONNX. For TensorRT all
of it is: signed and symmetric quantization with a pair of QuantizeLinear and DequantizeLinear per layer, biases in
float, weights behind one DequantizeLinear. Its parser refuses unsigned or asymmetric activations and int32 biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.export import onnx_bf16, onnx_file, onnx_half, onnx_network
from toolkit.export.onnx_activations import activations
from toolkit.export.onnx_layers import Layer, find
from toolkit.ranges import instability, scale_and_zero

PRECISIONS = {
    "dynamic-int8": "int8", "static-int8": "int8", "weight-int8": "int8", "weight-int4": "int4", "fp16": "fp16",
    "bf16": "bf16",
}  # fmt: skip
_BLOCKS_OPSET = 21  # the first in which DequantizeLinear takes blocks and 4 bits


def read(path: Path, engine: str, method: str) -> Any:
    """The float model of a file, made ready for a method. Where a method changes weights alone, those of a large model
    stay in their file until it is their turn."""
    import onnx

    alone = method.startswith("weight-") and not (engine == "tensorrt" and method == "weight-int4")
    model = onnx_file.read(path, most=onnx_file.LARGE if alone else None)
    # A transposed weight's shape recorded before quantization contradicts the one inferred after it.
    weights = {initializer.name for initializer in model.graph.initializer}
    kept = [info for info in model.graph.value_info if info.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    if engine == "tensorrt" and method == "weight-int4" and model.opset_import[0].version < _BLOCKS_OPSET:
        # The converter drops what torch.onnx noted at the nodes, from which layers have their names.
        notes = {node.output[0]: list(node.metadata_props) for node in model.graph.node}
        model = onnx.version_converter.convert_version(model, _BLOCKS_OPSET)
        for node in model.graph.node:
            node.metadata_props.extend(notes.get(node.output[0], ()))
    return model


def quantize(
    model: Any,
    path: Path,
    engine: str,
    layers: Sequence[Layer],
    parameters: Any,
    inputs: Sequence[Arrays],
    folder: Path,
) -> dict[str, Any]:
    """Write `model` in fewer bits to `path`; `layers` are those that change. Returns what there is to report.

    `folder` is where the model comes from: the weights of a large one are still in a file there.
    `inputs` are the calibration examples of `static-int8`; for `fp16` they show what overflows. Changes `model`.
    """
    method = parameters.method
    if method == "fp16":
        wanted = {layer.node.name for layer in layers}
        kept = [layer.node.name for layer in find(model) if layer.node.name not in wanted]
        return onnx_half.convert(model, path, kept, inputs)
    if method == "static-int8" and onnx_network.has_convolutions(model):
        return onnx_network.quantize(model, path, layers, engine, parameters, inputs)
    if method == "bf16":
        done: list[str] = []
        if engine == "tensorrt":
            wanted = {layer.node.name for layer in layers}
            done = onnx_bf16.convert(model, {each.node.name for each in find(model)} - wanted)
            layers = [layer for layer in find(model) if layer.node.name in wanted]  # the nodes are new ones
        _store_in_bf16(model, layers, folder)
        save(model, path, folder)
        return {"arithmetic": "bfloat16" if done else "float32", "products": len(done)}
    report: dict[str, Any] = {}
    linear = [layer for layer in layers if not layer.is_table and not layer.is_convolution]
    convolutions = [layer for layer in layers if layer.is_convolution]
    if convolutions and method.startswith("weight-"):  # no operator multiplies packed ones: they are stored so
        _store_weights(model, convolutions, "weight-int8", parameters.block_size, folder)
    if method == "static-int8":
        report["activations"] = _static(model, linear, engine, parameters, inputs, folder)
    elif method != "dynamic-int8" and engine == "tensorrt":
        _store_weights(model, linear, method, parameters.block_size, folder)
    for layer in layers:
        if layer.is_table:
            _quantize_table(model, layer, engine, folder)
    if method == "dynamic-int8":
        _dynamic(model, path, linear)
        return report
    if method != "static-int8" and engine == "onnxruntime":
        _pack_weights(model, linear, method, parameters.block_size, folder)
    save(model, path, folder)
    return report


def save(model: Any, path: Path, folder: Path) -> None:
    """Write a model without the initializers that nothing reads any more; those that still lie in the file of weights
    in `folder` come from there."""
    import onnx

    onnx_file.drop_unread(model)
    for tensor in model.graph.initializer:
        if onnx_file.external(tensor):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx_file.array(tensor, folder), tensor.name))
    _import_domain(model)
    onnx_file.save(model, path)


def _import_domain(model: Any) -> None:
    """Name the version of ONNX Runtime's own operators, if the graph has some."""
    import onnx

    used = any(node.domain == "com.microsoft" for node in model.graph.node)
    if used and all(entry.domain != "com.microsoft" for entry in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _weight(model: Any, name: str, folder: Path) -> NDArray[Any]:
    found = next(initializer for initializer in model.graph.initializer if initializer.name == name)
    return onnx_file.array(found, folder)


def _put(model: Any, name: str, array: Any) -> str:
    """Add an initializer, unless one of this name is there already."""
    import onnx

    if all(initializer.name != name for initializer in model.graph.initializer):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return name


def _insert(model: Any, before: Any, nodes: Sequence[Any]) -> None:
    place = next(i for i, node in enumerate(model.graph.node) if node is before or node.name == before.name)
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)


def per_channel(weight: NDArray[Any], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A weight in int8 with one scale per index of `axis`, symmetric: (integers of its shape, scales [channels])."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = (np.maximum(np.abs(weight).max(axis=others), 1e-9) / 127).astype(np.float32)
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    return np.clip(np.round(weight / scale.reshape(shape)), -127, 127).astype(np.int8), scale


def per_block(weight: NDArray[Any], axis: int, block: int, bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix in `bits` with one scale per `block` values along `axis`, symmetric: (integers, scales)."""
    largest = 2 ** (bits - 1) - 1
    rows = np.moveaxis(weight, axis, 0)
    blocks = rows.reshape(-1, block, rows.shape[1])
    scale = (np.maximum(np.abs(blocks).max(axis=1), 1e-9) / largest).astype(np.float32)
    integers = np.clip(np.round(blocks / scale[:, None, :]), -largest, largest).astype(np.int8).reshape(rows.shape)
    return np.moveaxis(integers, 0, axis), np.moveaxis(scale, 0, axis)


def _dynamic(model: Any, path: Path, layers: Sequence[Layer]) -> None:
    import onnx
    import onnxruntime.quantization

    names = [name for layer in layers for name in (layer.node.name, f"{layer.node.name}_MatMul")]  # a Gemm is split
    onnxruntime.quantization.quantize_dynamic(
        model,
        str(path),
        weight_type=onnxruntime.quantization.QuantType.QInt8,
        per_channel=True,
        nodes_to_quantize=names or ["none"],
        # Contrib operators stop shape inference; without a default type the quantizer raises.
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )


def _static(
    model: Any, layers: Sequence[Layer], engine: str, parameters: Any, inputs: Sequence[Arrays], folder: Path
) -> dict[str, Any]:
    """Pairs of QuantizeLinear and DequantizeLinear before every layer, int8 weights behind DequantizeLinear."""
    from onnx import helper

    symmetric = engine == "tensorrt"
    kind = np.int8 if symmetric else np.uint8
    halves = activations(model, [layer.activation for layer in layers], inputs)
    spread = {}
    paired: dict[str, str] = {}  # ONNX Runtime shares a pair between the readers of a tensor; TensorRT wants one each
    for layer in layers:
        first, second = halves[layer.activation]
        scale, zero = scale_and_zero(
            *first.merge(second).range(parameters.calibration, parameters.percentile), symmetric
        )
        spread[layer.name] = instability(first, second, parameters.calibration, parameters.percentile)
        name = f"{layer.name}.input" if symmetric else layer.activation
        if name not in paired:
            given = [
                _put(model, f"{name}.scale", np.asarray(scale, np.float32)),
                _put(model, f"{name}.zero", np.asarray(zero, kind)),
            ]
            paired[name] = f"{name}.dequantized"
            nodes = [
                helper.make_node(
                    "QuantizeLinear", [layer.activation, *given], [f"{name}.quantized"], name=f"{name}.quantize"
                ),
                helper.make_node(
                    "DequantizeLinear", [f"{name}.quantized", *given], [paired[name]], name=f"{name}.dequantize"
                ),
            ]
            _insert(model, layer.node, nodes)
        layer.node.input[0] = paired[name]
        _store_weight(model, layer, 8, None, folder)
    return {"calibrated": len(halves), "unstable": spread}


def _store_weights(model: Any, layers: Sequence[Layer], method: str, block: int, folder: Path) -> None:
    """int8 or int4 weights behind DequantizeLinear; the arithmetic stays in float."""
    for layer in layers:
        four = method == "weight-int4"
        _store_weight(model, layer, 4 if four else 8, block if four else None, folder)


def _store_weight(model: Any, layer: Layer, bits: int, block: int | None, folder: Path) -> None:
    from onnx import helper

    weight = _weight(model, layer.weight, folder)
    name = f"{layer.weight}.float"
    if all(node.output[0] != name for node in model.graph.node):  # a tied weight is stored once
        if block is None:
            integers, scale = per_channel(weight, layer.axis)
            attributes = {"axis": layer.axis}
        else:
            if weight.shape[1 - layer.axis] % block:
                raise InputError(
                    f"The layer {layer.name} has {weight.shape[1 - layer.axis]} inputs, which blocks of {block} do "
                    "not divide; choose another --block-size."
                )
            integers, scale = per_block(weight, 1 - layer.axis, block, bits)
            attributes = {"axis": 1 - layer.axis, "block_size": block}
        stored: Any = integers
        if bits == 4:
            import ml_dtypes

            stored = integers.astype(ml_dtypes.int4)
        given = [_put(model, f"{layer.weight}.int{bits}", stored), _put(model, f"{layer.weight}.scale", scale)]
        _insert(
            model,
            layer.node,
            [helper.make_node("DequantizeLinear", given, [name], name=f"{layer.weight}.dequantize", **attributes)],
        )
    layer.node.input[1] = name


def _pack_weights(model: Any, layers: Sequence[Layer], method: str, block: int, folder: Path) -> None:
    """int8 or int4 weights in ONNX Runtime's own operator, in blocks; the arithmetic stays in float. Layer by layer, so
    that no more than one float weight of a large model is in memory."""
    weights = {initializer.name: initializer for initializer in model.graph.initializer}
    packed = {layer.node.name: _packed(layer, weights[layer.weight], method, block, folder) for layer in layers}
    stored = set(weights)
    nodes = []
    for node in model.graph.node:
        if node.name not in packed:
            nodes.append(node)
            continue
        made, initializers = packed[node.name]
        nodes += made
        model.graph.initializer.extend(each for each in initializers if each.name not in stored)
        stored |= {each.name for each in initializers}  # a tied weight is stored once
    copied = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copied)


def _packed(layer: Layer, weight: Any, method: str, block: int, folder: Path) -> tuple[list[Any], list[Any]]:
    """The nodes that stand for a layer then, and their initializers."""
    import onnx
    from onnx import TensorProto, helper
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    node = layer.node
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.input if name != layer.weight
    ]
    output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)
    matrix = onnx.numpy_helper.from_array(onnx_file.array(weight, folder), layer.weight)
    graph = helper.make_graph([node], "layer", given, [output], [matrix])
    alone = ONNXModel(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    alone.replace_gemm_with_matmul()
    quantizer = MatMulNBitsQuantizer(
        alone.model,
        bits=8 if method == "weight-int8" else 4,
        block_size=block,
        is_symmetric=True,
        op_types_to_quantize=("MatMul",),
    )
    quantizer.process()
    made = quantizer.model.model.graph
    for each in made.node:
        each.metadata_props.extend(node.metadata_props if not each.metadata_props else ())
    return list(made.node), [each for each in made.initializer if each.name != layer.weight]


def _quantize_table(model: Any, layer: Layer, engine: str, folder: Path) -> None:
    """An embedding table in int8 with a scale per row.

    Only the rows that are looked up are widened, except for TensorRT, which folds the table when it builds the engine
    and takes int8 weights in front of a DequantizeLinear alone.
    """
    from onnx import TensorProto, helper

    integers, scale = per_channel(_weight(model, layer.weight, folder), 0)
    table = _put(model, f"{layer.weight}.int8", integers)
    output = layer.node.output[0]
    if engine == "tensorrt":
        scales = _put(model, f"{layer.weight}.scale", scale)
        _insert(
            model,
            layer.node,
            [
                helper.make_node(
                    "DequantizeLinear", [table, scales], [f"{layer.weight}.float"], axis=0,
                    name=f"{layer.weight}.dequantize",
                )
            ],
        )  # fmt: skip
        layer.node.input[0] = f"{layer.weight}.float"
        return
    scales = _put(model, f"{layer.weight}.scale", scale[:, None])
    name = layer.node.name
    indices = layer.node.input[1]
    nodes = [
        helper.make_node("Gather", [table, indices], [f"{output}.int8"], name=f"{name}.rows"),
        helper.make_node("Cast", [f"{output}.int8"], [f"{output}.wide"], to=TensorProto.FLOAT, name=f"{name}.cast"),
        helper.make_node("Gather", [scales, indices], [f"{output}.scale"], name=f"{name}.scales"),
        helper.make_node("Mul", [f"{output}.wide", f"{output}.scale"], [output], name=f"{name}.scaled"),
    ]
    _insert(model, layer.node, nodes)
    model.graph.node.remove(layer.node)


def _store_in_bf16(model: Any, layers: Sequence[Layer], folder: Path) -> None:
    """Weights as bfloat16, widened to float32 before they are used: no CPU kernel multiplies bfloat16 matrices."""
    import ml_dtypes

    for layer in layers:
        name = f"{layer.weight}.float"
        if all(node.output[0] != name for node in model.graph.node):
            weight = _weight(model, layer.weight, folder)
            stored = _put(model, f"{layer.weight}.bf16", weight.astype(ml_dtypes.bfloat16))
            if layer.is_table:  # only the rows that are looked up
                output = layer.node.output[0]
                layer.node.output[0] = f"{output}.bf16"
                layer.node.input[0] = stored
                place = next(i for i, node in enumerate(model.graph.node) if node.name == layer.node.name)
                model.graph.node.insert(place + 1, _widen(f"{output}.bf16", output))
                continue
            _insert(model, layer.node, [_widen(stored, name)])
        layer.node.input[1] = name


def _widen(source: str, target: str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_node("Cast", [source], [target], to=TensorProto.FLOAT, name=f"{target}.cast")
