"""LiteRT: through litert_torch, one signature per input length, weights shared between the signatures.

64-bit integers become 32-bit at the boundary and images have their channels last (the format's runtimes, tools and
accelerators want it so); the engine casts, checks the range and moves the channels.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit import tasks
from toolkit.engines import Arrays
from toolkit.engines.litert import channels_last, length_of, signature_name
from toolkit.errors import InputError, missing_extra
from toolkit.export import (
    INTEGER,
    check_integer,
    check_method,
    chosen_layers,
    flatbuffer,
    litert_memory,
    litert_metadata,
    litert_simplify,
    litert_versions,
)

# Methods of quantization for each engine that runs the format.
METHODS = {
    "litert": (
        "dynamic-int8", "static-int8", "integer-int8", "int16-activations", "weight-int8", "weight-int4", "fp16"
    )
}  # fmt: skip
MODEL_FILE = "model.tflite"


def export(checkpoint: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Export the float model to `output/model.tflite` and describe it."""
    from toolkit.engines.torch import input_names, load_model

    context.progress(0, 1, "loading litert-torch")
    logging.getLogger().setLevel(logging.ERROR)
    try:
        import litert_torch
    except ImportError as error:
        raise missing_extra("litert-torch", "litert", "Exporting to LiteRT") from error
    import torch

    from toolkit.export.traceable import add_padding_mask_once, traceable

    torch.set_num_threads(context.threads)
    torch.fx.config.do_not_emit_stack_traces = True  # nothing reads them, and collecting them takes time
    task = tasks.get(context.task)
    model = load_model(checkpoint, task)
    add_padding_mask_once(model)
    encoder = task.encoder(checkpoint, parameters.encoding, inputs=input_names(model, task))
    has_length = any("length" in shape for shape in encoder.axes().values())
    lengths = (parameters.lengths if has_length else None) or [None]
    steps = len(lengths) + 3

    module = traceable(model, task, list(encoder.axes()), channels_last=True)
    converter: Any = litert_torch
    for length in lengths:
        sample = {name: torch.from_numpy(channels_last(array)) for name, array in encoder.sample(1, length).items()}
        converter = converter.signature(signature_name(length), module, sample_kwargs=sample)
    context.progress(1, steps, f"tracing and converting {len(lengths)} input lengths")
    converted = converter.convert()
    context.progress(steps - 1, steps, "writing")
    converted.export(str(output / MODEL_FILE))
    model = flatbuffer.read(output / MODEL_FILE)
    litert_simplify.mean_where_channels_are(model)
    if litert_simplify.look_up_integers(model):
        litert_versions.write(model)
    files = litert_metadata.add(model, task.describe(checkpoint, parameters.encoding))
    flatbuffer.write(output / MODEL_FILE, model, short=False)  # layers are found by the classes in the names
    litert_metadata.append_files(output / MODEL_FILE, files)
    context.progress(steps, steps, "done")
    return describe(output / MODEL_FILE, "fp32")


def adopt(source: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
    """Refuse a model that came as an ONNX file. Raises InputError."""
    raise InputError(
        "A LiteRT file is made from a PyTorch model; there is no converter from ONNX that runs beside this torch. Give "
        "the checkpoint that the ONNX file was exported from."
    )


def layers(source: Path, artifact: dict[str, Any]) -> dict[str, int]:
    """The layers of a float artifact that can be quantized: bytes of weights by name."""
    from toolkit.export import litert_quantize

    return {layer.name: layer.size for layer in litert_quantize.find(litert_quantize.read(source / artifact["path"]))}


def quantize(
    source: Path, output: Path, artifact: dict[str, Any], parameters: Any, inputs: Sequence[Arrays]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Quantize `source/model.tflite` to `output/model.tflite`."""
    try:
        import ai_edge_quantizer  # noqa: F401
    except ImportError as error:
        raise missing_extra("ai-edge-quantizer", "litert", "Quantizing a LiteRT file") from error
    from toolkit.export import litert_network, litert_quantize

    check_method("litert", "litert", parameters.method, METHODS)
    check_integer(parameters.method, [tensor["name"] for tensor in artifact["inputs"]])
    file = source / artifact["path"]
    found = litert_quantize.find(litert_quantize.read(file))
    chosen = chosen_layers({layer.name: layer.is_table for layer in found}, parameters)
    report = litert_quantize.quantize(
        file, output / MODEL_FILE, [layer for layer in found if layer.name in chosen], parameters, inputs
    )
    model = flatbuffer.read(output / MODEL_FILE)
    if parameters.method == INTEGER:
        litert_network.check_integer(model)
        if parameters.io == "uint8":
            litert_network.with_unsigned_io(model)
    litert_versions.write(model)
    litert_metadata.carry(flatbuffer.read(file), model)
    flatbuffer.write(output / MODEL_FILE, model)
    litert_metadata.append_files(output / MODEL_FILE, litert_metadata.appended_files(file))
    described = describe(output / MODEL_FILE, litert_quantize.PRECISIONS[parameters.method])
    if parameters.method == INTEGER:
        described["micro"] = litert_memory.on_a_microcontroller(output / MODEL_FILE)
    return described, report


def describe(path: Path, precision: str, engine: str = "litert") -> dict[str, Any]:
    """The artifact description of a LiteRT file, from its flatbuffer alone."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    dtypes = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    codes = litert_versions.operators(model)

    def tensors(signature: Any, values: Any) -> list[dict[str, Any]]:
        graph = model.subgraphs[signature.subgraphIndex]
        described = []
        for value in values:
            tensor = graph.tensors[value.tensorIndex]
            shape = ["length" if lengths and size == lengths[-1] else int(size) for size in tensor.shape]
            described.append({"name": value.name.decode(), "dtype": dtypes[tensor.type], "shape": shape})
            if tensor.quantization is not None and tensor.quantization.scale is not None:
                scale, zero_point = tensor.quantization.scale[0], tensor.quantization.zeroPoint[0]
                described[-1] |= {"scale": float(scale), "zero_point": int(zero_point)}
        return described

    signatures = {length_of(entry.signatureKey.decode()): entry for entry in model.signatureDefs}
    lengths = sorted(length for length in signatures if length is not None)
    longest = signatures[lengths[-1] if lengths else None]
    graph = model.subgraphs[longest.subgraphIndex]
    return {
        "format": "litert",
        "engine": engine,
        "path": path.name,
        "precision": precision,
        "size_bytes": path.stat().st_size,
        "operator_versions": dict(sorted(codes)),
        "inputs": tensors(longest, longest.inputs),
        "outputs": tensors(longest, longest.outputs),
        "lengths": lengths or None,
        "minimum_versions": litert_versions.minimum_versions(litert_versions.level(model)),
        "operators": dict(sorted(Counter(codes[op.opcodeIndex][0] for op in graph.operators).items())),
        "weight_bytes_read": weight_bytes_read(model, graph, codes),
        "activation_bytes": litert_memory.activation_bytes(model, graph),
    }


def weight_bytes_read(model: Any, graph: Any, codes: list[tuple[str, int]]) -> int:
    """Bytes of weights that one inference of a subgraph reads: its constants but the looked-up tables."""
    looked_up = {
        index
        for op in graph.operators
        if codes[op.opcodeIndex][0] in ("GATHER", "EMBEDDING_LOOKUP")
        for index in op.inputs
    }
    buffers = {t.buffer for i, t in enumerate(graph.tensors) if i not in looked_up}
    return sum(flatbuffer.buffer_size(model.buffers[index]) for index in buffers)
