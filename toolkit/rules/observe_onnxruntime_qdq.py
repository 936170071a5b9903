"""Which operators the installed ONNX Runtime's CPU provider runs in integers where a model has them between Q/DQ pairs.

A graph of one operator is made for each: its inputs dequantized, and its output quantized (`qdq`) or not (`dq`); or
with its output quantized and another node that reads each of its tensors (`shared`), which keeps the runtime from
exchanging their format for another one. If the operator still reads what DequantizeLinear makes when the runtime is
done with the graph, it runs in float, and the pairs around it cost time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import silence
from toolkit.errors import missing_extra

DTYPES = {"int8": np.int8, "uint8": np.uint8}
_OPSET, _IR_VERSION = 20, 10
_IMAGE = (1, 4, 8, 8)
_OTHER = "other"  # name of what else reads a tensor


@dataclass(frozen=True)
class _Sample:
    """Shapes of the inputs that are quantized, constant `weights` after the others; integer inputs; attributes."""

    inputs: tuple[tuple[int, ...], ...] = (_IMAGE,)
    weights: tuple[tuple[int, ...], ...] = ()
    integers: tuple[tuple[int, ...], ...] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    first: bool = False  # a condition stands before the data


_ONE = (
    "Abs", "Elu", "Erf", "Exp", "Flatten", "Gelu", "GlobalAveragePool", "GlobalMaxPool", "HardSigmoid", "HardSwish",
    "Identity", "LeakyRelu", "Log", "LogSoftmax", "Neg", "ReduceMax", "ReduceMean", "ReduceSum", "Relu", "Sigmoid",
    "Softmax", "Softplus", "Sqrt", "Tanh", "Transpose",
)  # fmt: skip
_TWO = ("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum")
_SAMPLES: dict[str, _Sample] = {
    **{name: _Sample() for name in _ONE},
    **{name: _Sample((_IMAGE, _IMAGE)) for name in _TWO},
    "ArgMax": _Sample(),
    "AveragePool": _Sample(attributes={"kernel_shape": [2, 2]}),
    "BatchNormalization": _Sample(weights=((4,), (4,), (4,), (4,))),
    "Clip": _Sample(),
    "Concat": _Sample((_IMAGE, _IMAGE), attributes={"axis": 1}),
    "Conv": _Sample(weights=((4, 4, 3, 3),)),
    "ConvTranspose": _Sample(weights=((4, 4, 3, 3),)),
    "DepthToSpace": _Sample(attributes={"blocksize": 2}),
    "Expand": _Sample(integers=((2, 4, 8, 8),)),
    "Gather": _Sample(integers=((0,),)),
    "Gemm": _Sample(((4, 8),), ((8, 4),)),
    "InstanceNormalization": _Sample(weights=((4,), (4,))),
    "LayerNormalization": _Sample(weights=((8,), (8,))),
    "MatMul": _Sample(((4, 8),), ((8, 4),)),
    "MaxPool": _Sample(attributes={"kernel_shape": [2, 2]}),
    "PRelu": _Sample(weights=((4, 1, 1),)),
    "Pad": _Sample(integers=((0, 0, 1, 1, 0, 0, 1, 1),)),
    "Reshape": _Sample(integers=((4, 64),)),
    "Resize": _Sample(attributes={"mode": "nearest"}),
    "Slice": _Sample(integers=((0,), (2,), (1,))),
    "SpaceToDepth": _Sample(attributes={"blocksize": 2}),
    "Split": _Sample(attributes={"axis": 1, "num_outputs": 2}),
    "Squeeze": _Sample(integers=((0,),)),
    "Tile": _Sample(integers=((1, 1, 2, 2),)),
    "Unsqueeze": _Sample(integers=((0,),)),
    "Where": _Sample((_IMAGE, _IMAGE), first=True),
}


def forms() -> dict[str, dict[str, list[str]]]:
    """By operator, the number formats in which it runs in integers: `qdq` with its output quantized, `dq` without, and
    `shared` with others that read its tensors."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnxruntime", "convert", "Observing ONNX Runtime") from error
    found = {}
    for name, sample in _SAMPLES.items():
        found[name] = {
            form: [dtype for dtype in DTYPES if _in_integers(_model(name, sample, dtype, form))]
            for form in ("qdq", "dq", "shared")
        }
    return found


def optimized(model: Any, folder: Path) -> Any:
    """The graph that ONNX Runtime's CPU provider makes of a model, as an ONNX model; with its kernels for blocked
    layouts left out, which change no number format. Raises what onnxruntime raises."""
    silence.apply()
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    source = folder / "source.onnx"
    onnx.save(model, str(source))
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


def _in_integers(model: Any) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        try:
            graph = optimized(model, Path(folder)).graph
        except Exception:  # the runtime has no class of its own for a model that it refuses
            return False
    made = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return not any(name in made for node in graph.node if node.name != _OTHER for name in node.input)


def _model(name: str, sample: _Sample, dtype: str, form: str) -> Any:
    """x → Q → DQ → operator (→ Q → DQ) → y, in one of the forms."""
    from onnx import TensorProto, helper, numpy_helper

    kind = DTYPES[dtype]
    nodes, constants, given, read = [], [], [], []

    def constant(label: str, value: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(value), label))
        return label

    def pair(label: str, source: str, at: str) -> str:
        scale, zero = (
            constant(f"{label}_scale", np.float32(0.05)),
            constant(f"{label}_zero", kind(0 if kind is np.int8 else 128)),
        )
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [f"{label}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{label}_q", scale, zero], [at]))
        return at

    if sample.first:
        read.append("condition")
        given.append(helper.make_tensor_value_info("condition", TensorProto.BOOL, _IMAGE))
    for place, shape in enumerate(sample.inputs):
        given.append(helper.make_tensor_value_info(f"x{place}", TensorProto.FLOAT, shape))
        read.append(pair(f"x{place}", f"x{place}", f"x{place}_dq"))
    for place, shape in enumerate(sample.weights):
        stored = constant(f"w{place}", np.full(shape, 3, np.int8))
        scale, zero = constant(f"w{place}_scale", np.float32(0.02)), constant(f"w{place}_zero", np.int8(0))
        nodes.append(helper.make_node("DequantizeLinear", [stored, scale, zero], [f"w{place}_dq"]))
        read.append(f"w{place}_dq")
    read += [constant(f"i{place}", np.array(values, np.int64)) for place, values in enumerate(sample.integers)]
    if name == "Resize":
        read += ["", constant("scales", np.array([1, 1, 2, 2], np.float32))]
    if name == "Clip":
        read += [constant("low", np.float32(-1)), constant("high", np.float32(1))]
    others = [f"x{place}_dq" for place in range(len(sample.inputs))] if form == "shared" else []
    output_quantized = form != "dq"
    outputs = ["y", "second"] if name == "Split" else ["y"]
    computed = [f"{each}_float" if output_quantized else each for each in outputs]
    nodes.append(helper.make_node(name, read, computed, name="operator", **sample.attributes))
    if output_quantized:
        for each, source in zip(outputs, computed, strict=True):
            pair(each, source, each)
    if form == "shared" and name != "ArgMax":
        others += outputs
    nodes += [helper.make_node("Erf", [each], [f"{each}_other"], name=_OTHER) for each in others]
    kinds = TensorProto.INT64 if name == "ArgMax" else TensorProto.FLOAT
    results = [helper.make_tensor_value_info(each, kinds, None) for each in outputs]
    results += [helper.make_tensor_value_info(f"{each}_other", TensorProto.FLOAT, None) for each in others]
    graph = helper.make_graph(nodes, "one", given, results, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
