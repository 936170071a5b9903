"""What an ONNX, LiteRT, OpenVINO or ExecuTorch file holds, told from the file itself. Runs nothing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.errors import InputError, missing_extra
from toolkit.export import onnx_file
from toolkit.export.flatbuffer import buffer_size

SUFFIXES = (".onnx", ".tflite", ".xml", ".pte")
_PRODUCTS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL", "CONV_3D")


def inspect(path: Path) -> dict[str, Any]:
    """Facts about a file with one of `SUFFIXES`: format, operators by count, inputs, outputs, weights, whether it is
    quantized. Raises InputError for one that is not there, or damaged."""
    try:
        size = path.stat().st_size
        of_suffix = {".onnx": _onnx, ".tflite": _litert, ".xml": _openvino, ".pte": _executorch}
        return {"kind": "file", "bytes": size, **of_suffix[path.suffix](path)}
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error


def precision_of(path: Path) -> str:
    """The narrowest numbers that a model file computes or stores with."""
    if path.suffix == ".tflite":
        from toolkit.export import litert_quantize

        kinds = {tensor.type for graph in litert_quantize.read(path).subgraphs for tensor in graph.tensors}
        from ai_edge_litert.schema_py_generated import TensorType

        found = {name for name, kind in vars(TensorType).items() if kind in kinds}
        return next((p for k, p in (("INT4", "int4"), ("INT8", "int8"), ("FLOAT16", "fp16")) if k in found), "fp32")
    if path.suffix == ".xml":
        return _precision_of_openvino(path)
    if path.suffix == ".pte":
        from toolkit.export import executorch_file

        return executorch_file.read(path).precision
    import onnx

    model = onnx_file.read(path, weights=False)
    kinds = {initializer.data_type for initializer in model.graph.initializer}
    operators = {node.op_type for node in model.graph.node}
    if operators & {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "MatMulNBits"}:
        return "int4" if onnx.TensorProto.INT4 in kinds or "MatMulNBits" in operators else "int8"
    if onnx.TensorProto.FLOAT16 in kinds:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in kinds else "fp32"


def _onnx(path: Path) -> dict[str, Any]:
    model = onnx_file.read(path, weights=False)
    import onnx

    inner = list(onnx_file.graphs(model.graph))
    tensors = [tensor for graph in inner for tensor in graph.initializer]
    for graph in inner:
        tensors += [a.t for node in graph.node if node.op_type == "Constant" for a in node.attribute if a.HasField("t")]
    constants = {tensor.name for tensor in model.graph.initializer}
    kinds = [f"{node.domain}:{node.op_type}" if node.domain else node.op_type for graph in inner for node in graph.node]
    types = onnx.TensorProto.DataType
    return {
        "format": "onnx",
        "ir_version": model.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
        "inputs": [_onnx_value(value, types) for value in model.graph.input if value.name not in constants],
        "outputs": [_onnx_value(value, types) for value in model.graph.output],
        "operators": _by_count(kinds),
        "nodes_with_graphs": sum(a.HasField("g") for graph in inner for node in graph.node for a in node.attribute),
        "parameters": sum(math.prod(tensor.dims) for tensor in tensors),
        "weights": _by_count(types.Name(tensor.data_type).lower() for tensor in tensors),
        "quantized": _quantized_onnx(set(kinds)),
        "external_data": sorted({entry.value for t in tensors for entry in t.external_data if entry.key == "location"}),
    }


def _onnx_value(value: Any, types: Any) -> dict[str, Any]:
    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return {"name": value.name, "dtype": types.Name(tensor.elem_type).lower(), "shape": shape}


def _quantized_onnx(kinds: set[str]) -> str:
    """How a graph is quantized, by its operators."""
    plain = {kind.rpartition(":")[2] for kind in kinds}
    if "MatMulNBits" in plain:
        return "weights in blocks"
    if any(kind.startswith(("QLinear", "QGemm", "QAttention")) for kind in plain):
        return "quantized operators"
    if any(kind.startswith(("DynamicQuantize", "MatMulInteger", "ConvInteger")) for kind in plain):
        return "dynamic"
    if "QuantizeLinear" in plain:
        return "Q/DQ"
    return "weights alone" if "DequantizeLinear" in plain else "no"


def _litert(path: Path) -> dict[str, Any]:
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Inspecting a LiteRT file") from error
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
        return _litert_facts(schema, model)
    except OSError:
        raise
    except Exception as error:  # struct.error, IndexError, …: whatever the bytes lead to
        raise InputError(f"{path} is no LiteRT file that can be read: {error}") from error


def _litert_facts(schema: Any, model: Any) -> dict[str, Any]:
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    types = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    kinds = [
        f"custom:{code.customCode.decode()}" if code.customCode else names[number]
        for code, number in zip(model.operatorCodes, codes, strict=True)
    ]
    weights = [t for graph in model.subgraphs for t in graph.tensors if buffer_size(model.buffers[t.buffer])]
    weights = list({tensor.buffer: tensor for tensor in weights}.values())  # graphs share them
    first = model.subgraphs[0]
    return {
        "format": "litert",
        "description": model.description.decode() if model.description else "",
        "graphs": len(model.subgraphs),
        "signatures": [entry.signatureKey.decode() for entry in model.signatureDefs or ()],
        "inputs": [_litert_value(first.tensors[number], types) for number in first.inputs],
        "outputs": [_litert_value(first.tensors[number], types) for number in first.outputs],
        "operators": _by_count(kinds[each.opcodeIndex] for each in first.operators),
        "versions": {kind: code.version for kind, code in zip(kinds, model.operatorCodes, strict=True)},
        "parameters": sum(_size(tensor) for tensor in weights),
        "weights": _by_count(types[tensor.type] for tensor in weights),
        "quantized": _quantized_litert(first, kinds, types),
    }


def _litert_value(tensor: Any, types: dict[int, str]) -> dict[str, Any]:
    stated = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
    shape = [int(size) if size >= 0 else "?" for size in (stated if stated is not None else ())]
    return {"name": tensor.name.decode(), "dtype": types[tensor.type], "shape": shape}


def _size(tensor: Any) -> int:
    return math.prod(int(size) for size in tensor.shape) if tensor.shape is not None else 1


def _quantized_litert(graph: Any, kinds: list[str], types: dict[int, str]) -> str:
    """How a graph is quantized, by what its products work on."""
    found = set()
    for operator in graph.operators:
        if kinds[operator.opcodeIndex] in _PRODUCTS and len(operator.inputs) > 1:
            data, weights = (types[graph.tensors[n].type] for n in operator.inputs[:2])
            found.add("no" if weights.startswith("float") else "dynamic" if data.startswith("float") else "static")
    return " and ".join(sorted(found - {"no"})) or "no"


def _openvino(path: Path) -> dict[str, Any]:
    from toolkit.engines import openvino
    from toolkit.export import openvino_file

    model = openvino.read(path)
    kinds = [each.get_type_name() for each in model.get_ordered_ops()]
    weights = list(openvino_file.weights(model))
    described = openvino_file.describe_ports(model)
    return {
        "format": "openvino",
        "weights_file": {each.name: each.stat().st_size for each in openvino_file.files(path)[1:]},
        "arithmetic": openvino.arithmetic(model),
        **described,
        "operators": _by_count(kind for kind in kinds if kind not in openvino_file.EDGES),
        "parameters": sum(math.prod(each.get_output_shape(0)) for each in weights),
        "weights": _by_count(each.get_element_type().get_type_name() for each in weights),
        "quantized": "static" if "FakeQuantize" in kinds else "no",
    }


def _precision_of_openvino(path: Path) -> str:
    from toolkit.engines import openvino
    from toolkit.export import openvino_file

    model = openvino.read(path)
    found = {each.get_element_type().get_type_name() for each in openvino_file.weights(model) if _is_matrix(each)}
    narrow = {"i4": "int4", "u4": "int4", "i8": "int8", "u8": "int8", "f16": "fp16", "bf16": "bf16"}
    order = ("int4", "int8", "fp16", "bf16")
    return min((narrow[each] for each in found if each in narrow), key=order.index, default="fp32")


def _is_matrix(weight: Any) -> bool:
    return len(weight.get_output_shape(0)) > 1


def _executorch(path: Path) -> dict[str, Any]:
    from toolkit.export import executorch_file

    found = executorch_file.read(path)
    return {
        "format": "executorch",
        "methods": found.methods,
        "inputs": found.inputs,
        "outputs": found.outputs,
        **({"longest": found.longest} if found.longest is not None else {}),
        "operators": _sorted(found.operators),
        **{name: {"partitions": each.partitions, **_sorted(each.operators)} for name, each in found.delegates.items()},
        "parameters": sum(found.weights.values()),
        "weights": _sorted(found.weights),
        "quantized": found.quantized,
        "activation_bytes": found.activation_bytes,
    }


def _by_count(kinds: Iterable[str]) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    return _sorted(Counter(kinds))


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
