"""The shapes of an ONNX graph's tensors at given input sizes: inferred, or seen in one run on zeros.

Inference needs no runtime and knows standard operators. A run knows all that ONNX Runtime can run: fused operators,
which branch of an If is taken, how often a Loop goes round.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import silence
from toolkit.engines import tensorrt
from toolkit.errors import InputError, missing_extra
from toolkit.export import onnx_file

Shape = tuple[int, ...]

_EVENT = re.compile(r"^#(\d+)_kernel_time$")
_TYPES = {
    "float": "float32", "double": "float64", "string": "object", "bfloat16": "bfloat16", "float16": "float16",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run of a node: its number, and shapes and types of what it read and wrote, as far as the runtime says."""

    number: int
    inputs: list[tuple[str, Shape]]
    outputs: list[tuple[str, Shape]]


def with_sizes(model: Any, sizes: Mapping[str, int], path: Path) -> Any:
    """A copy of a model whose inputs have fixed shapes. An axis without a name is called `input[axis]` in `sizes`.

    Raises InputError for an axis whose size is not given.
    """
    import onnx

    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    held = {initializer.name for initializer in fixed.graph.initializer}
    for value in fixed.graph.input:
        if value.name in held:
            continue
        for axis, dimension in enumerate(value.type.tensor_type.shape.dim):
            if dimension.dim_value > 0:
                continue
            unnamed = f"{value.name}[{axis}]"
            size = sizes.get(dimension.dim_param or unnamed, sizes.get(unnamed))
            if size is None:
                known = f"'{dimension.dim_param}'" if dimension.dim_param else "an axis without a name"
                raise InputError(
                    f"{path}: input '{value.name}' has {known}, whose size is needed: "
                    f"{dimension.dim_param or unnamed}=…"
                )
            dimension.dim_value = size
    for graph in onnx_file.graphs(fixed.graph):  # what was said of other sizes
        del graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return fixed


def inner_graphs(node: Any) -> Iterator[Any]:
    """The graphs inside a node, and inside their nodes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield from onnx_file.graphs(attribute.g)


def inferred(model: Any) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes, and element types as numpy calls them, of the main graph's tensors by onnx's own inference, as far as it
    gets. `model` has fixed input shapes."""
    import onnx

    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except Exception:  # protobuf's and onnx's own classes; what the file itself says is left
        graph = model.graph
    shapes: dict[str, Shape] = {}
    types: dict[str, str] = {}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type:
            types[value.name] = type_name(tensor.elem_type)
        if tensor.HasField("shape") and all(dimension.HasField("dim_value") for dimension in tensor.shape.dim):
            shapes[value.name] = tuple(dimension.dim_value for dimension in tensor.shape.dim)
    return shapes, types


def type_name(element: int) -> str:
    """An element type of TensorProto as numpy calls it; `int4`, `bfloat16` and the like keep their names."""
    import onnx

    try:
        return str(onnx.helper.tensor_dtype_to_np_dtype(element).name)
    except KeyError:
        return str(onnx.TensorProto.DataType.Name(element)).lower()


def observed(model: Any, given: Mapping[str, NDArray[Any]]) -> list[Run]:
    """The runs of all nodes in one inference, in order, as ONNX Runtime's profile has them. Inputs are those `given`,
    else zeros. Nodes are numbered over all graphs as `graphs` yields them and their nodes in order.

    Raises InputError if ONNX Runtime cannot run the model on that; ImportError without onnxruntime.
    """
    silence.apply()
    import onnx
    import onnxruntime

    numbered = onnx.ModelProto()
    numbered.CopyFrom(model)
    nodes = [node for graph in onnx_file.graphs(numbered.graph) for node in graph.node]
    for number, node in enumerate(nodes):
        node.name = f"#{number}"
    halves = {int(node.name[1:]) for node in tensorrt.products(numbered)}
    tensorrt.widen(numbered)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # keeps nodes and names
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        try:
            session = onnxruntime.InferenceSession(
                numbered.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            feeds = {value.name: given.get(value.name, _zeros(value)) for value in session.get_inputs()}
            session.run(None, feeds)
        except Exception as error:  # onnxruntime raises a class per status code, all direct children of Exception
            raise InputError(f"ONNX Runtime cannot run the model on zeros: {error}") from error
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    found = []
    for event in events:
        match = _EVENT.match(event["name"]) if event.get("cat") == "Node" else None
        if match:
            said = event["args"]
            run = Run(int(match[1]), _tensors(said["input_type_shape"]), _tensors(said["output_type_shape"]))
            found.append(_in_bfloat16(run) if run.number in halves else run)
    return found


def _in_bfloat16(run: Run) -> Run:
    """A product that ran in float32 because ONNX Runtime has no kernel for it."""
    inputs, outputs = ([("bfloat16", shape) for _, shape in each] for each in (run.inputs, run.outputs))
    return Run(run.number, inputs, outputs)


def as_rewritten(path: Path) -> Any:
    """The model that ONNX Runtime makes of a file when it loads it, but for what depends on this machine's vectors.

    Raises InputError if it does not take the file; MissingDependencyError without onnxruntime.
    """
    silence.apply()
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_extra("onnxruntime", "convert", "Counting what ONNX Runtime runs") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a class per status code, all direct children of Exception
            raise InputError(f"onnxruntime {onnxruntime.__version__} cannot load {path}: {error}") from error
        return onnx_file.read(Path(options.optimized_model_filepath))


def _zeros(value: Any) -> NDArray[Any]:
    """Zeros for an input of a session, whose shape is fixed."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return np.zeros(value.shape, dtype=np.dtype(_TYPES.get(kind, kind)))


def _tensors(said: list[dict[str, list[int]]]) -> list[tuple[str, Shape]]:
    return [(_TYPES.get(kind, kind), tuple(shape)) for each in said for kind, shape in each.items()]
