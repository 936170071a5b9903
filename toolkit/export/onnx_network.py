"""Static int8 of convolutional networks: the whole graph stays in integers from one convolution to the next.

Between layers that are quantized each for itself, activations would go to float and back, which costs more than integer
convolutions save. ONNX Runtime's own quantizer knows which operators pass integers on; the ranges are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.export.onnx_activations import activations
from toolkit.export.onnx_layers import Layer, find
from toolkit.ranges import instability

_OPERATORS = (
    "Conv", "ConvTranspose", "Gemm", "MatMul", "Clip", "Relu", "Add", "Mul", "Concat", "MaxPool", "AveragePool",
    "GlobalAveragePool", "ReduceMean", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose",
)  # fmt: skip
# TensorRT takes signed and symmetric pairs at the inputs of its layers, with biases in float.
_TENSORRT = {
    "ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "DedicatedQDQPair": True,
    "OpTypesToExcludeOutputQuantization": ["Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Mul"],
}  # fmt: skip


def has_convolutions(model: Any) -> bool:
    """Whether a graph is a network of this kind: one convolution may be no more than how a transformer cuts patches."""
    return bool(sum(node.op_type == "Conv" for node in model.graph.node) > 1)


def quantize(
    model: Any, path: Path, layers: Sequence[Layer], engine: str, parameters: Any, inputs: Sequence[Arrays]
) -> dict[str, Any]:
    """Write `model` to `path` with `layers` in int8, and what lies between them. Returns what there is to report."""
    import onnx
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model = onnx.shape_inference.infer_shapes(model)
    method, percentile = parameters.calibration, parameters.percentile
    names = [value.name for value in model.graph.input] + [name for node in model.graph.node for name in node.output]
    halves = activations(model, list(dict.fromkeys(filter(None, names))), inputs)
    found = {name: first.merge(second).range(method, percentile) for name, (first, second) in halves.items()}
    ranges = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in found.items()}
    chosen = {layer.node.name for layer in layers}
    for_tensorrt = engine == "tensorrt"
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if for_tensorrt else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, ranges),
        nodes_to_quantize=[],
        nodes_to_exclude=[layer.node.name for layer in find(model) if layer.node.name not in chosen],
        op_types_to_quantize=list(_OPERATORS),
        extra_options=dict(_TENSORRT) if for_tensorrt else {},
    )
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(path))
    spread = {
        layer.name: instability(*halves[layer.activation], method, percentile)
        for layer in layers
        if layer.activation in halves
    }
    return {"activations": {"calibrated": len(halves), "unstable": spread}}
