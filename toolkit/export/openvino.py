"""OpenVINO: through the exporter of transformers, with dynamic batch and length; of an ONNX file by its own converter.

An artifact names the arithmetic that it is meant for. Left to itself OpenVINO takes bfloat16 on CPUs that have it, and
the same file would answer otherwise there than it was checked.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from toolkit import tasks
from toolkit.engines import Arrays
from toolkit.engines import openvino as engine_module
from toolkit.errors import InputError, missing_extra
from toolkit.export import (
    check_calibration,
    check_method,
    chosen_layers,
    onnx_adopt,
    onnx_file,
    onnx_layers,
    openvino_file,
)
from toolkit.storage import read_json

# Methods of quantization for each engine that runs the format.
METHODS = {"openvino": ("static-int8", "fp16", "bf16")}
MODEL_FILE = "model.xml"
# The oldest OpenVINO that was tried and answers as the one that writes: 2023.3 refuses the mask of attention, and in
# bfloat16 2025.4 gave other answers. Older ones know the operators of fewer opsets.
_OLDEST, _OLDEST_BF16, _OLDEST_OPSETS = "2024.6.0", "2026.0.0", 15
_WRITER = "2026.4.1"
_WRAPPER = "model."  # how `toolkit.export.traceable` calls the model in it
_FAR = 4  # operations of PyTorch between a convolution and what it was made one with


def export(checkpoint: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Export the float model to `output/model.xml` and its weights, and describe it."""
    context.progress(0, 3, "loading the checkpoint")
    _check_packages()
    try:
        import transformers
        from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter
    except ImportError as error:
        raise missing_extra("torch and transformers", "convert", "Exporting to OpenVINO") from error
    import torch

    from toolkit.engines.torch import input_names, load_model
    from toolkit.export.traceable import add_padding_mask_once, traceable

    task = tasks.get(context.task)
    model = load_model(checkpoint, task)
    add_padding_mask_once(model)
    torch.set_num_threads(context.threads)
    encoder = task.encoder(checkpoint, parameters.encoding, inputs=input_names(model, task))
    axes = encoder.axes()
    # Two rows of eight keep the tracer from specializing on 1, the only size it treats as fixed.
    sample = {name: torch.from_numpy(array) for name, array in encoder.sample(2, 8).items()}
    shapes = {
        name: {place: torch.export.Dim.DYNAMIC for place, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in axes.items()
    }
    plain = isinstance(model, transformers.PreTrainedModel) and task.plain_output
    given = model if plain else traceable(model, task, list(sample))
    context.progress(1, 3, "tracing and converting")
    traced = _traced_nodes()
    traced.clear()
    with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(io.StringIO()):
        program = OpenVINOExporter().export(given, sample, config=OpenVINOConfig(dynamic_shapes=shapes)).program
    context.progress(2, 3, "writing")
    sizes = {name: [-1 if isinstance(size, str) else size for size in shape] for name, shape in axes.items()}
    program.reshape({port.any_name: sizes[port.any_name] for port in program.inputs})
    names = [_output_name(port) for port in program.outputs]
    _name_by_trace(program, traced, "" if plain else _WRAPPER)
    traced.clear()
    openvino_file.describe_run(program, "f32", axes)
    openvino_file.save(program, output / MODEL_FILE, names, openvino_file.names(program))
    context.progress(3, 3, "done")
    return describe(output / MODEL_FILE, "fp32")


def adopt(source: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Write a model that came as an ONNX file to `output/model.xml`, and describe it. Raises InputError."""
    _check_packages()
    import openvino

    given = read_json(source / "artifact.json")
    path = source / given["path"]
    if given["precision"] != "fp32":
        raise InputError(f"The ONNX file is {given['precision']} already; OpenVINO files are made from float ones.")
    context.progress(0, 2, "reading the ONNX file")
    model = onnx_file.read(path, weights=False)
    onnx_file.check(path, model)
    context.progress(1, 2, "converting")
    try:
        program = openvino.convert_model(str(path))
    except Exception as error:  # its frontend has a class per kind of failure
        raise InputError(f"OpenVINO cannot convert the ONNX file: {_last_line(error)}") from error
    names = [value.name for value in model.graph.output]
    _name_by_graph(program, model)
    openvino_file.describe_run(program, "f32", {tensor["name"]: tensor["shape"] for tensor in given["inputs"]})
    openvino_file.save(program, output / MODEL_FILE, names, openvino_file.names(program))
    context.progress(2, 2, "done")
    return {**describe(output / MODEL_FILE, "fp32"), "lengths": given["lengths"]}


def layers(source: Path, artifact: dict[str, Any]) -> dict[str, int]:
    """The layers of a float artifact that can be quantized: bytes of weights by name."""
    return {layer.name: layer.size for layer in openvino_file.find(engine_module.read(source / artifact["path"]))}


def quantize(
    source: Path, output: Path, artifact: dict[str, Any], parameters: Any, inputs: Sequence[Arrays]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantize `source/model.xml` to `output/model.xml`."""
    from toolkit.export import openvino_quantize

    method = parameters.method
    check_method("openvino", "openvino", method, METHODS)
    check_calibration("openvino", method, parameters.calibration)
    model = engine_module.read(source / artifact["path"])
    found = openvino_file.find(model)
    if not found:
        raise InputError(f"The graph has no layer whose weights {method} knows.")
    chosen = chosen_layers({layer.name: layer.is_table for layer in found}, parameters)
    outputs, axes, named = openvino_file.output_names(model), openvino_file.axes_of(model), openvino_file.names(model)
    model, report = openvino_quantize.quantize(model, found, chosen, parameters, inputs)
    openvino_file.describe_run(model, "bf16" if method == "bf16" else "f32", axes)
    openvino_file.save(model, output / MODEL_FILE, outputs, named)
    described = describe(output / MODEL_FILE, openvino_quantize.PRECISIONS[method])
    return {**described, "lengths": artifact["lengths"]}, report


def describe(path: Path, precision: str, engine: str = "openvino") -> dict[str, Any]:
    """The artifact description of a file in OpenVINO's format, from the file alone."""
    model = engine_module.read(path)
    operators = [each.get_type_name() for each in model.get_ordered_ops()]
    return {
        "format": "openvino",
        "engine": engine,
        "path": path.name,
        "data_files": [each.name for each in openvino_file.files(path)[1:]],
        "precision": precision,
        "arithmetic": engine_module.arithmetic(model),
        "size_bytes": sum(each.stat().st_size for each in openvino_file.files(path)),
        **openvino_file.describe_ports(model),
        "lengths": None,
        "minimum_versions": {"openvino": _minimum_runtime(model)},
        "operators": dict(sorted(Counter(kind for kind in operators if kind not in openvino_file.EDGES).items())),
        "weight_bytes_read": _weight_bytes_read(model),
    }


def _check_packages() -> None:
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise missing_extra("openvino", "openvino", "Exporting to OpenVINO") from error


def _last_line(error: Exception) -> str:
    return [line for line in str(error).splitlines() if line.strip()][-1]


def _minimum_runtime(model: Any) -> str:
    """The first OpenVINO that has the operators, and computes in the arithmetic, as far as was tried."""
    opsets = [str(each.get_type_info().version_id).removeprefix("opset") for each in model.get_ordered_ops()]
    if any(not opset.isdigit() or int(opset) > _OLDEST_OPSETS for opset in opsets):
        return _WRITER
    return _OLDEST_BF16 if engine_module.arithmetic(model) == "bf16" else _OLDEST


def _weight_bytes_read(model: Any) -> int:
    """Bytes of weights that one inference reads: all constants but the tables that are only gathered from."""
    total = 0
    for each in openvino_file.weights(model):
        entries = each.output(0).get_target_inputs()
        if any(entry.get_node().get_type_name() != "Gather" or entry.get_index() != 0 for entry in entries):
            total += each.get_byte_size()
    return total


# --- names of modules


@cache
def _traced_nodes() -> list[Any]:
    """The operations of PyTorch in the graph that was exported last, in order: the exporter hands each to its hooks."""
    from transformers.exporters.utils import register_fx_node_fix

    nodes: list[Any] = []

    def note(_: Any, node: Any) -> bool:
        nodes.append(node)
        return False  # nothing was changed

    register_fx_node_fix("openvino")(note)
    return nodes


def _output_name(port: Any) -> str:
    """The name that the exporter gave an output, among those of the tensor in it."""
    return min(str(name) for name in port.get_names() if ":" not in name and not name.isdigit())


def _name_by_trace(program: Any, traced: Sequence[Any], wrapper: str) -> None:
    """Call operators after the modules of what was traced; the paths begin with `wrapper`."""
    order = {node.name: place for place, node in enumerate(traced)}

    def nodes_of(operator: Any) -> list[Any]:
        """The operations that an operator is, by its name or those of its outputs, the first first."""
        names = {name.rpartition(":")[0] for output in operator.outputs() for name in output.get_names()}
        names.add(operator.get_friendly_name().partition("/")[0])
        return [traced[place] for place in sorted(order[name] for name in names if name in order)]

    def module_of(operator: Any) -> str | None:
        found = nodes_of(operator)
        if operator.get_type_name() in openvino_file.CONVOLUTIONS:
            # One with the norm behind it, and called after that; or not called at all.
            behind = [node for reader in openvino_file.readers(operator) for node in nodes_of(reader)]
            found = [node for node in map(_convolution_before, [*found, *behind]) if node is not None] or found
        return _module(found[0]).removeprefix(wrapper) if found else None

    def is_whole(output: Any) -> bool:
        names = [name.rpartition(":")[0] for name in output.get_names()]
        known = [traced[order[name]] for name in names if name in order]
        if _took_up_a_norm(output.get_node()):
            known = [node for node in known if not _is_convolution(node)]
        return bool(known)

    openvino_file.name_operators(program, module_of, is_whole)


def _is_convolution(node: Any) -> bool:
    return "convolution" in str(node.target)


def _took_up_a_norm(operator: Any) -> bool:
    """Whether a convolution has the scales of a norm in its weights, which then are no parameter of PyTorch's: its
    value is not what it is called."""
    if operator.get_type_name() not in openvino_file.CONVOLUTIONS:
        return False
    weight = openvino_file.constant(operator.input_value(1).get_node())
    return weight is None or not weight.output(0).get_names()


def _convolution_before(node: Any) -> Any | None:
    """The convolution that an operation of PyTorch is, or that feeds it."""
    for _ in range(_FAR):
        if _is_convolution(node):
            return node
        node = next(iter(node.all_input_nodes), None)
        if node is None:
            return None
    return None


def _module(node: Any) -> str:
    """The path of the module that an operation of PyTorch is in."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    # What the tracer adds itself, as the sizes of inputs, has a stack that says so.
    return str(stack[-1]) if stack and not str(stack[0]).startswith("_empty") else ""


def _name_by_graph(program: Any, model: Any) -> None:
    """Call operators after the modules that an ONNX graph names; a layer of one that names none after its weight."""
    from toolkit.export.onnx_activations import tensor_types
    from toolkit.probes import onnx as probe_onnx

    types = tensor_types(model)
    onnx_adopt.lifted(model)
    nodes = list(model.graph.node)
    owners = {
        name: owner
        for node, owner in zip(nodes, probe_onnx.scopes(model), strict=True)
        for name in node.output
    }  # fmt: skip
    inner = {name for node in nodes for name in node.output if probe_onnx.is_inner(node, name)}
    for layer in onnx_layers.find(model):
        name = layer.node.output[0]
        owners[name] = owners[name] or layer.name
    order = {name: place for place, name in enumerate(owners)}

    def module_of(operator: Any) -> str | None:
        names = {name for each in operator.outputs() for name in each.get_names() if name in order}
        return owners[min(names, key=lambda name: order[name])] if names else None

    def is_whole(output: Any) -> bool:
        return any(name in types and name not in inner for name in output.get_names())

    openvino_file.name_operators(program, module_of, is_whole)
