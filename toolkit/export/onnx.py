"""ONNX: through the exporter of transformers, with dynamic batch and length.

For ONNX Runtime the graph is fused into its own operators; for every other engine it keeps standard ones.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from pathlib import Path
from typing import Any

from toolkit import tasks
from toolkit.errors import InputError, missing_extra

MODEL_FILE = "model.onnx"

# The first onnxruntime that accepts an opset of the ONNX standard (onnxruntime's compatibility table).
_RUNTIME_OF_OPSET = {
    17: "1.12.0",
    18: "1.14.0",
    19: "1.15.0",
    20: "1.17.0",
    21: "1.18.0",
    22: "1.20.0",
    23: "1.22.0",
}


def export(checkpoint: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Export the float model to `output/model.onnx` and describe it."""
    try:
        import onnx_ir
        from transformers.exporters import OnnxConfig, OnnxExporter
    except ImportError as error:
        raise missing_extra("onnx, onnxscript and transformers", "convert", "Exporting to ONNX") from error
    from toolkit.engines.torch import input_names, load_model

    context.progress(0, 3, "loading the checkpoint")
    task = tasks.get(context.task)
    model = load_model(checkpoint, task.MODEL_CLASS)
    import torch

    torch.set_num_threads(context.threads)
    names = input_names(model, task)
    # Two rows of unlike sizes keep the tracer from specializing on 1, the only size it treats as fixed.
    sample = {name: torch.ones(2, 8, dtype=torch.long) for name in names}
    config = OnnxConfig(
        dynamic_shapes={name: dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC) for name in names},
        opset_version=parameters.opset,
        ort_fusions="cpu" if parameters.ort_fusions else None,
    )
    context.progress(1, 3, "tracing and translating to ONNX")
    with contextlib.redirect_stdout(io.StringIO()):  # torch.onnx prints its steps
        program = OnnxExporter().export(model, sample, config=config).program
    for node in program.graph:
        node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # holds paths of this machine
    for value in program.graph.inputs:
        value.shape = onnx_ir.Shape(["batch", "length"])
    for value in program.graph.outputs:
        value.shape = onnx_ir.Shape(["batch", *list(value.shape)[1:]])
    context.progress(2, 3, "writing")
    onnx_ir.save(program, output / MODEL_FILE)
    context.progress(3, 3, "done")
    return describe(output / MODEL_FILE, "fp32")


def quantize(source: Path, output: Path, artifact: dict[str, Any], method: str) -> dict[str, Any]:
    """Quantize `source/model.onnx` to `output/model.onnx`."""
    try:
        import onnx
        import onnxruntime.quantization
    except ImportError as error:
        raise missing_extra("onnx and onnxruntime", "convert", "Quantizing an ONNX file") from error

    model = onnx.load(str(source / artifact["path"]))
    # A transposed weight's shape recorded before quantization contradicts the one inferred after it.
    weights = {initializer.name for initializer in model.graph.initializer}
    kept = [info for info in model.graph.value_info if info.name not in weights]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    if method == "dynamic-int8":
        onnxruntime.quantization.quantize_dynamic(
            model,
            str(output / MODEL_FILE),
            weight_type=onnxruntime.quantization.QuantType.QInt8,
            per_channel=True,
            # Contrib operators stop shape inference; without a default type the quantizer raises.
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )
        return describe(output / MODEL_FILE, "int8")
    if method == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(model, keep_io_types=True), str(output / MODEL_FILE))
        return describe(output / MODEL_FILE, "fp16")
    raise InputError(f"ONNX has no quantization method '{method}'; known: dynamic-int8, fp16.")


def describe(path: Path, precision: str) -> dict[str, Any]:
    """The artifact description of an ONNX file, from its graph alone."""
    import onnx

    model = onnx.load(str(path))
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
        "path": path.name,
        "precision": precision,
        "size_bytes": path.stat().st_size,
        "opset": opset,
        "inputs": tensors(model.graph.input),
        "outputs": tensors(model.graph.output),
        "lengths": None,
        "minimum_versions": {"onnxruntime": _RUNTIME_OF_OPSET.get(opset, "1.22.0")},
        "operators": dict(sorted(Counter(node.op_type for node in model.graph.node).items())),
        "weight_bytes_read": weight_bytes_read(model),
    }


def weight_bytes_read(model: Any) -> int:
    """Bytes of weights that one inference reads: all initializers but the tables that are only gathered from."""
    import math

    gathered = {node.input[0] for node in model.graph.node if node.op_type in ("Gather", "GatherBlockQuantized")}
    total = 0
    for initializer in model.graph.initializer:
        if initializer.name not in gathered:
            total += len(initializer.raw_data) or 4 * math.prod(initializer.dims)
    return total
