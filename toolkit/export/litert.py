"""LiteRT: through litert_torch, one signature per input length, weights shared between the signatures.

64-bit integers become 32-bit at the boundary (the format's runtimes and accelerators want it so); the engine
casts and checks the range. The minimum runtime follows from the operator versions in the file, by the table in
`litert_op_versions.json`: a file with one newer operator does not load on an older runtime at all.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.version import Version

from toolkit import tasks
from toolkit.engines import Arrays
from toolkit.engines.litert import length_of, signature_name
from toolkit.errors import InputError, missing_extra
from toolkit.export import check_method, chosen_layers, flatbuffer

# Methods of quantization for each engine that runs the format.
METHODS = {"litert": ("dynamic-int8", "static-int8", "weight-int8", "weight-int4", "fp16")}
MODEL_FILE = "model.tflite"

# The level of the operator table that each release of the package covers whole; measured by loading one file
# per operator version into the released wheels. `tflite-runtime` is numbered by the level itself.
_PACKAGE_OF_LEVEL = (
    ("2.16.0", "1.0.1"),
    ("2.19.0", "1.2.0"),
    ("2.20.0", "2.0.2"),
    ("2.21.0", "2.1.3"),
    ("2.23.0", "2.2.0"),
)


# The first version of an operator that computes in int8, by TensorFlow Lite's op_version.cc.
_INT8_VERSIONS = {
    "ADD": 2, "AVERAGE_POOL_2D": 2, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "LOGISTIC": 2,
    "MAX_POOL_2D": 2, "MEAN": 2, "MUL": 2, "PAD": 2, "SOFTMAX": 2, "SUB": 2, "TRANSPOSE": 2,
}  # fmt: skip


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

    module = traceable(model, task, list(encoder.axes()))
    converter: Any = litert_torch
    for length in lengths:
        sample = {name: torch.from_numpy(array) for name, array in encoder.sample(1, length).items()}
        converter = converter.signature(signature_name(length), module, sample_kwargs=sample)
    context.progress(1, steps, f"tracing and converting {len(lengths)} input lengths")
    converted = converter.convert()
    context.progress(steps - 1, steps, "writing")
    converted.export(str(output / MODEL_FILE))
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
    from toolkit.export import litert_quantize

    check_method("litert", "litert", parameters.method, METHODS)
    file = source / artifact["path"]
    found = litert_quantize.find(litert_quantize.read(file))
    chosen = chosen_layers({layer.name: layer.is_table for layer in found}, parameters)
    report = litert_quantize.quantize(
        file, output / MODEL_FILE, [layer for layer in found if layer.name in chosen], parameters, inputs
    )
    flatbuffer.compact(output / MODEL_FILE)
    return describe(output / MODEL_FILE, litert_quantize.PRECISIONS[parameters.method]), report


def _needed_versions(model: Any, codes: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Operators in the version that their weights ask for, by the rules of TensorFlow Lite's op_version.cc.

    ai-edge-quantizer leaves the float file's versions. An older runtime then loads the file and answers wrongly:
    tflite-runtime 2.14 takes no notice of scales per output channel.
    """
    from ai_edge_litert.schema_py_generated import TensorType

    needed = dict.fromkeys(range(len(codes)), 1)
    for graph in model.subgraphs:
        for operator in graph.operators:
            kind = codes[operator.opcodeIndex][0]
            if kind in _INT8_VERSIONS and graph.tensors[operator.outputs[0]].type == TensorType.INT8:
                needed[operator.opcodeIndex] = max(needed[operator.opcodeIndex], _INT8_VERSIONS[kind])
            if kind not in ("FULLY_CONNECTED", "EMBEDDING_LOOKUP", "DEQUANTIZE"):
                continue
            tensor = graph.tensors[operator.inputs[0 if kind == "DEQUANTIZE" else 1]]
            scales = tensor.quantization.scale if tensor.quantization is not None else None
            by_channel = scales is not None and len(scales) > 1
            version = 1
            if tensor.type == TensorType.INT4:
                version = {"FULLY_CONNECTED": 13, "EMBEDDING_LOOKUP": 4, "DEQUANTIZE": 6}[kind]
            elif tensor.type == TensorType.FLOAT16:
                version = 3
            elif tensor.type == TensorType.INT8 and kind == "DEQUANTIZE":
                version = 5 if by_channel else 2
            elif tensor.type == TensorType.INT8 and by_channel:
                widened = graph.tensors[operator.outputs[0]].type == TensorType.FLOAT32
                version = 4 if kind == "EMBEDDING_LOOKUP" else 12 if widened else 4
            needed[operator.opcodeIndex] = max(needed[operator.opcodeIndex], version)
    return [(name, max(version, needed[index])) for index, (name, version) in enumerate(codes)]


def minimum_level(operators: list[tuple[str, int]]) -> str:
    """The lowest TensorFlow Lite version that has every operator in its version. `operators` are (name, version).

    Raises InputError for an operator version that no known runtime has.
    """
    table = json.loads(Path(__file__).with_name("litert_op_versions.json").read_text())["minimum_runtime"]
    levels = []
    for name, version in operators:
        known = table.get(name, {}).get(str(version))
        if known is None:
            raise InputError(f"No known LiteRT runtime has the operator {name} in version {version}.")
        levels.append(Version(known))
    return str(max(levels, default=Version("1.5.0")))


def minimum_versions(level: str) -> dict[str, str]:
    """Minimum version per package that can run a file of this level."""
    for covered, package in _PACKAGE_OF_LEVEL:
        if Version(level) <= Version(covered):
            return {"tflite-runtime": level, "ai-edge-litert": package}
    raise InputError(f"No released LiteRT runtime covers level {level}.")


def describe(path: Path, precision: str, engine: str = "litert") -> dict[str, Any]:
    """The artifact description of a LiteRT file, from its flatbuffer alone."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    dtypes = {value: name.lower() for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    codes = [(names[max(c.builtinCode, c.deprecatedBuiltinCode)], c.version) for c in model.operatorCodes]
    codes = _needed_versions(model, codes)
    level = minimum_level(codes)

    def tensors(signature: Any, values: Any) -> list[dict[str, Any]]:
        graph = model.subgraphs[signature.subgraphIndex]
        described = []
        for value in values:
            tensor = graph.tensors[value.tensorIndex]
            shape = ["length" if lengths and size == lengths[-1] else int(size) for size in tensor.shape]
            described.append({"name": value.name.decode(), "dtype": dtypes[tensor.type], "shape": shape})
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
        "minimum_versions": minimum_versions(level),
        "operators": dict(sorted(Counter(codes[op.opcodeIndex][0] for op in graph.operators).items())),
        "weight_bytes_read": weight_bytes_read(model, graph, codes),
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
