"""ONNX: through the exporter of transformers, with dynamic batch and length unless they are fixed.

For ONNX Runtime the graph is fused into its own operators; for every other engine it keeps standard ones.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.version import Version

from toolkit import tasks
from toolkit.engines import Arrays
from toolkit.errors import InputError, missing_extra
from toolkit.export import check_method, chosen_layers, onnx_file, onnx_fixed, onnx_layers, onnx_lower
from toolkit.storage import read_json

# Methods of quantization for each engine that runs the format.
METHODS = {
    "onnxruntime": ("dynamic-int8", "static-int8", "weight-int8", "weight-int4", "fp16", "bf16"),
    "tensorrt": ("static-int8", "weight-int8", "weight-int4", "fp16", "bf16"),
}
MODEL_FILE = "model.onnx"
_EXPORTERS_OLDEST = 18  # opset; what is older is made of it

# The first onnxruntime that accepts an opset of the ONNX standard: before 1.17 by its compatibility table, from then on
# as tried (`opset_of_version` in targets/rules/onnxruntime-1.31.yaml).
_RUNTIME_OF_OPSET = {
    **dict.fromkeys(range(1, 12), "1.0.0"),
    12: "1.3.0",
    13: "1.6.0",
    14: "1.8.0",
    15: "1.9.0",
    16: "1.12.0",
    17: "1.12.0",
    18: "1.14.0",
    19: "1.15.0",
    20: "1.17.0",
    21: "1.18.0",
    22: "1.21.0",
    23: "1.23.0",
    24: "1.24.0",
    25: "1.24.0",
    26: "1.25.0",
    27: "1.32.0",
    28: "1.32.0",
}

# The first onnxruntime whose MatMulNBits multiplies weights of so many bits on a CPU (its release notes).
_RUNTIME_OF_BITS = {4: "1.17.0", 8: "1.22.0"}


def export(checkpoint: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Export the float model to `output/model.onnx` and describe it."""
    try:
        import onnx_ir
        import transformers
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise missing_extra("onnx, onnxscript and transformers", "convert", "Exporting to ONNX") from error
    from toolkit.engines.torch import input_names, load_model

    context.progress(0, 3, "loading the checkpoint")
    task = tasks.get(context.task)
    model = load_model(checkpoint, task)
    import torch

    from toolkit.adapters.prompts import Prompted
    from toolkit.export.traceable import add_padding_mask_once, traceable

    add_padding_mask_once(model)
    torch.set_num_threads(context.threads)
    encoder = task.encoder(checkpoint, parameters.encoding, inputs=input_names(model, task))
    fixed: dict[str, int] = parameters.fix
    onnx_fixed.check(
        fixed, list(dict.fromkeys(n for shape in encoder.axes().values() for n in shape if isinstance(n, str)))
    )
    axes = {name: [fixed.get(str(size), size) for size in shape] for name, shape in encoder.axes().items()}
    # Two rows of eight keep the tracer from specializing on 1, the only size it treats as fixed.
    traced = encoder.sample(fixed.get("batch", 2), fixed.get("length", 8))
    sample = {name: torch.from_numpy(array) for name, array in traced.items()}
    dynamic = {
        name: {i: torch.export.Dim.DYNAMIC for i, size in enumerate(shape) if isinstance(size, str)}
        for name, shape in axes.items()
    }
    config = OnnxConfig(
        dynamic_shapes=dynamic if any(dynamic.values()) else None,
        opset_version=max(parameters.opset, _EXPORTERS_OLDEST) if parameters.opset else None,
        ort_fusions="cpu" if parameters.ort_fusions else None,
    )
    context.progress(1, 3, "tracing and translating to ONNX")
    with contextlib.redirect_stdout(io.StringIO()):  # torch.onnx prints its steps
        plain = isinstance(model, transformers.PreTrainedModel)
        if plain or isinstance(model, Prompted):
            given = model if plain and task.plain_output else traceable(model, task, list(sample))
            program = OnnxExporter().export(given, sample, config=config).program
        else:
            program = _traced(traceable(model, task, list(sample)), sample, config)
    for node in program.graph:
        kept = {key: value for key, value in node.metadata_props.items() if key == onnx_layers.SCOPES}
        node.metadata_props.clear()  # of several hundred kB; stack traces hold paths of this machine
        node.metadata_props.update(kept)
    for value in program.graph.inputs:
        value.shape = onnx_ir.Shape(axes[value.name])
    for value in program.graph.outputs:
        value.shape = onnx_ir.Shape([fixed.get("batch", "batch"), *list(value.shape)[1:]])
    context.progress(2, 3, "writing")
    proto = onnx_ir.to_proto(program)
    if parameters.opset:
        onnx_lower.lower(proto, parameters.opset, parameters.avoid)
    onnx_file.save(proto, output / MODEL_FILE)
    context.progress(3, 3, "done")
    described = describe(output / MODEL_FILE, "fp32", "onnxruntime" if parameters.ort_fusions else "tensorrt")
    return {**described, "lengths": [fixed["length"]] if "length" in fixed else None}


def adopt(source: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Write a model that came as an ONNX file to `output/model.onnx`, as the engine wants it, and describe it."""
    from toolkit.export import onnx_adopt

    given = read_json(source / "artifact.json")
    context.progress(0, 2, "reading the ONNX file")
    model = onnx_file.read(source / given["path"])
    onnx_file.check(source / given["path"], model)
    onnx_fixed.check(parameters.fix, onnx_fixed.open_axes(given["inputs"]))
    if parameters.fix:
        onnx_fixed.fix(model, parameters.fix)
    context.progress(1, 2, "slimming the graph")
    model, done = onnx_adopt.adopted(model)
    if parameters.opset:
        onnx_lower.lower(model, parameters.opset, parameters.avoid)
    onnx_file.save(model, output / MODEL_FILE)
    described = describe(
        output / MODEL_FILE, given["precision"], "onnxruntime" if parameters.ort_fusions else "tensorrt"
    )
    names = [tensor["name"] for tensor in given["inputs"]]  # before IR version 4, weights were inputs too
    inputs = [tensor for tensor in described["inputs"] if tensor["name"] in names]
    context.progress(2, 2, "done")
    return {**described, "inputs": inputs, "lengths": onnx_fixed.length_of(inputs), **done}


def _traced(model: Any, sample: dict[str, Any], config: Any) -> Any:
    """The graph of a network that transformers knows nothing of."""
    import torch

    with warnings.catch_warnings(action="ignore"):
        traced = torch.onnx.export(
            model,
            kwargs=sample,
            dynamic_shapes=config.dynamic_shapes,
            input_names=list(sample),
            output_names=["output"],
            opset_version=config.opset_version,
            dynamo=True,
            verbose=False,
        )
    return traced.model


def layers(source: Path, artifact: dict[str, Any]) -> dict[str, int]:
    """The layers of a float artifact that can be quantized: bytes of weights by name."""
    model = onnx_file.read(source / artifact["path"], weights=False)
    sizes = {initializer.name: onnx_file.stored_bytes(initializer) for initializer in model.graph.initializer}
    return {layer.name: sizes[layer.weight] for layer in onnx_layers.find(model)}


def quantize(
    source: Path, output: Path, artifact: dict[str, Any], parameters: Any, inputs: Sequence[Arrays]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantize `source/model.onnx` to `output/model.onnx`."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise missing_extra("onnx and onnxruntime", "convert", "Quantizing an ONNX file") from error
    from toolkit.export import onnx_quantize

    engine, method = artifact["engine"], parameters.method
    check_method("onnx", engine, method, METHODS)
    model = onnx_quantize.read(source / artifact["path"], engine, method)
    found = onnx_layers.find(model)
    chosen = chosen_layers({layer.name: layer.is_table for layer in found}, parameters)
    left = onnx_layers.left_out(model, found)
    known = [layer for layer in found if method != "dynamic-int8" or not layer.is_convolution]
    if not known and method != "fp16":
        more = f" ({'; '.join(left)})" if left else ""
        raise InputError(f"The graph has no layer whose weights {method} knows{more}.")
    report = onnx_quantize.quantize(
        model,
        output / MODEL_FILE,
        engine,
        [layer for layer in found if layer.name in chosen],
        parameters,
        inputs,
        source,
    )
    described = describe(output / MODEL_FILE, onnx_quantize.PRECISIONS[method], engine)
    kept = {key: artifact[key] for key in ("inputs", "lengths")}  # which a file alone does not say for sure
    return {**described, **kept}, {**report, "left_in_float": left}


def describe(path: Path, precision: str, engine: str) -> dict[str, Any]:
    """The artifact description of an ONNX file for an engine, from its graph alone."""
    import onnx

    model = onnx_file.read(path, weights=False)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))

    def tensors(values: Any) -> list[dict[str, Any]]:
        return [
            {
                "name": value.name,
                "dtype": onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                "shape": [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]

    return {
        "format": "onnx",
        "engine": engine,
        "path": path.name,
        "data_files": onnx_file.data_files(path, model),
        "precision": precision,
        "size_bytes": sum(each.stat().st_size for each in onnx_file.files(path, model)),
        "opset": opset,
        "inputs": tensors(model.graph.input),
        "outputs": tensors(model.graph.output),
        "lengths": None,
        "minimum_versions": {"onnxruntime": _minimum_runtime(model, opset)},
        "operators": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        "weight_bytes_read": weight_bytes_read(model),
    }


def _minimum_runtime(model: Any, opset: int) -> str:
    """The first onnxruntime that has the opset, and 8 bits in MatMulNBits where the model uses them."""
    known = [_RUNTIME_OF_OPSET.get(opset, "1.32.0")]
    for node in model.graph.node:
        if node.op_type == "MatMulNBits":
            bits = next(attribute.i for attribute in node.attribute if attribute.name == "bits")
            known.append(_RUNTIME_OF_BITS[bits])
    return max(known, key=Version)


def weight_bytes_read(model: Any) -> int:
    """Bytes of weights that one inference reads: all initializers but the tables that are only gathered from."""
    gathered = {node.input[0] for node in model.graph.node if node.op_type in ("Gather", "GatherBlockQuantized")}
    total = 0
    for initializer in model.graph.initializer:
        if initializer.name not in gathered:
            total += onnx_file.stored_bytes(initializer)
    return total
