"""ExecuTorch: through torch.export, with all that XNNPACK takes lowered to it and the rest to portable kernels.

Texts have one method for all lengths, up to the longest that the encoder gives: nothing is padded. The exported program
is kept beside the float file (`toolkit.export.executorch_program`); quantized files are made from that.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import checkpoint as checkpoints
from toolkit import tasks
from toolkit.engines import Arrays
from toolkit.engines import executorch as engine
from toolkit.errors import InputError, missing_extra
from toolkit.export import check_method, chosen_layers, executorch_file

# Methods of quantization for each engine that runs the format.
METHODS = {"executorch": ("dynamic-int8", "static-int8")}
MODEL_FILE = "model.pte"
_PRECISION = "int8"  # of both


def _check_installed(what: str) -> None:
    for package in ("executorch", "torch", "torchao"):
        if importlib.util.find_spec(package) is None:
            raise missing_extra(package, "executorch", what)


def export(checkpoint: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Export the float model to `output/model.pte`, with the program that it was made from, and describe it."""
    _check_installed("Exporting to ExecuTorch")
    with executorch_file.silent():
        import torch

        from toolkit.engines.torch import input_names, load_model
        from toolkit.export import executorch_program as programs
        from toolkit.export.traceable import add_padding_mask_once, traceable

        context.progress(0, 4, "loading the checkpoint")
        torch.set_num_threads(context.threads)
        task = tasks.get(context.task)
        model = load_model(checkpoint, task)
        add_padding_mask_once(model)
        programs.attend_in_products(model)
        encoder = task.encoder(checkpoint, parameters.encoding, inputs=input_names(model, task))
        dynamic = {
            name: [axis for axis, size in enumerate(shape) if size == programs.LENGTH]
            for name, shape in encoder.axes().items()
        }
        arrays, longest = encoder.sample(1), 0
        if any(dynamic.values()):
            longest = min(encoder.length(arrays), checkpoints.inspect(checkpoint, task).model_limit)
            arrays = encoder.sample(1, min(programs.TRACED_AT, longest))
        context.progress(1, 4, "tracing")
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        program = programs.exported(traceable(model, task, list(inputs)), inputs, dynamic, longest)
        programs.save(program, output / programs.FILE)
        context.progress(2, 4, "lowering to XNNPACK")
        (output / MODEL_FILE).write_bytes(programs.lowered(program))
        context.progress(3, 4, "reading what was written")
        described = describe(output / MODEL_FILE, "fp32")
        context.progress(4, 4, "done")
        return {**described, "source_files": [programs.FILE]}


def adopt(source: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Refuse a model that came as an ONNX file. Raises InputError."""
    raise InputError(
        "An ExecuTorch file is made from a PyTorch model; there is no converter from ONNX. Give the checkpoint that "
        "the ONNX file was exported from."
    )


def layers(source: Path, artifact: dict[str, Any]) -> dict[str, int]:
    """The layers of a float artifact that can be quantized: bytes of weights by name."""
    _check_installed("Quantizing an ExecuTorch file")
    with executorch_file.silent():
        from toolkit.export import executorch_program, executorch_quantize

        module = executorch_program.read(source / executorch_program.FILE).module()
        return {layer.name: layer.size for layer in executorch_quantize.find(module)}


def quantize(
    source: Path, output: Path, artifact: dict[str, Any], parameters: Any, inputs: Sequence[Arrays]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantize the program beside `source/model.pte` to `output/model.pte`."""
    _check_installed("Quantizing an ExecuTorch file")
    check_method("executorch", "executorch", parameters.method, METHODS)
    with executorch_file.silent():
        from toolkit.export import executorch_program, executorch_quantize

        program = executorch_program.read(source / executorch_program.FILE)
        module = program.module()
        found = executorch_quantize.find(module)
        names = chosen_layers({layer.name: layer.is_table for layer in found}, parameters)
        known = [layer for layer in found if parameters.method != "dynamic-int8" or not layer.is_convolution]
        if not known:
            raise InputError(f"The model has no layer whose weights {parameters.method} knows.")
        chosen = [layer for layer in known if layer.name in names]
        made, report = executorch_quantize.quantized(program, module, chosen, parameters, inputs)
        (output / MODEL_FILE).write_bytes(executorch_program.lowered(made))
        return describe(output / MODEL_FILE, _PRECISION), report


def describe(path: Path, precision: str, engine_name: str = engine.NAME) -> dict[str, Any]:
    """The artifact description of an ExecuTorch file, from the file alone, but for the runtime that it needs: files do
    not say what wrote them, and what wrote this one is what is installed here."""
    found = executorch_file.read(path)
    return {
        "format": "executorch",
        "engine": engine_name,
        "path": path.name,
        "precision": precision,
        "size_bytes": path.stat().st_size,
        "inputs": found.inputs,
        "outputs": found.outputs,
        "lengths": None,
        "longest": found.longest,
        "minimum_versions": {"executorch": engine.version()},
        "operators": dict(sorted(found.operators.items())),
        "delegates": {
            name: {"partitions": each.partitions, "operators": dict(sorted(each.operators.items()))}
            for name, each in found.delegates.items()
        },
        "weight_bytes_read": found.read_bytes,
        "activation_bytes": found.activation_bytes,
    }
