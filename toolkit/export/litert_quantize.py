"""LiteRT files in fewer bits, by recipes of ai-edge-quantizer.

A file has the same layers once per input length, sharing their weights. Here they count as one: quantized together or
not at all, with activation ranges from the examples of all lengths.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.engines.litert import Tensor, fed, signature_name
from toolkit.export import INTEGER, STATIC, litert_network
from toolkit.export.litert_network import ACTIVATION_BITS
from toolkit.ranges import Histogram, instability

PRECISIONS = {
    "dynamic-int8": "int8", "static-int8": "int8", "integer-int8": "int8", "int16-activations": "int16x8",
    "weight-int8": "int8", "weight-int4": "int4", "fp16": "fp16",
}  # fmt: skip
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
_KINDS = ("FULLY_CONNECTED", "EMBEDDING_LOOKUP", *_CONVOLUTIONS)


@dataclass
class Layer:
    """A weight and the operators that use it: (subgraph, operator) pairs of the flatbuffer, one per input length."""

    name: str
    kind: str  # of the operators
    size: int  # bytes
    operators: list[tuple[Any, Any]] = field(default_factory=list)

    @property
    def is_table(self) -> bool:
        return self.kind == "EMBEDDING_LOOKUP"

    @property
    def is_convolution(self) -> bool:
        return self.kind in _CONVOLUTIONS

    def scopes(self) -> list[str]:
        """What ai-edge-quantizer matches its expressions with: the names of an operator's outputs."""
        return [
            "".join(f"{graph.tensors[i].name.decode()};" for i in operator.outputs if i != -1)
            for graph, operator in self.operators
        ]


def read(path: Path) -> Any:
    """The flatbuffer of a file as objects."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def find(model: Any) -> list[Layer]:
    """All layers of a flatbuffer, in the first graph's order, each under a name of its own."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {getattr(schema.BuiltinOperator, kind): kind for kind in _KINDS}
    by_buffer: dict[int, Layer] = {}
    taken: set[str] = set()
    for graph in model.subgraphs:
        for operator in graph.operators:
            code = model.operatorCodes[operator.opcodeIndex]
            kind = kinds.get(max(code.builtinCode, code.deprecatedBuiltinCode))
            if kind is None:
                continue
            weight = graph.tensors[operator.inputs[1]]
            content = model.buffers[weight.buffer].data
            if content is None or weight.type != schema.TensorType.FLOAT32:
                continue
            if weight.buffer not in by_buffer:
                output = graph.tensors[operator.outputs[0]]
                name = _module(weight.name.decode()) or _module(output.name.decode()) or weight.name.decode()
                while name in taken:
                    name += "'"
                taken.add(name)
                by_buffer[weight.buffer] = Layer(name, kind, len(content))
            by_buffer[weight.buffer].operators.append((graph, operator))
    return list(by_buffer.values())


def _module(tensor: str) -> str | None:
    """The PyTorch module in a tensor's name: `a.Class_parent/b.Class_child;1` → `parent.child`. A tensor that was fused
    from several names all of them; the last one is where it ends."""
    names = [part for part in tensor.split(";") if "/" in part]
    parts = names[-1].split("/")[2:] if names else []  # without what the exporter wraps around the model, and the model
    return ".".join(part.rpartition(".")[2].partition("_")[2] for part in parts) or None


def quantize(
    source: Path, target: Path, layers: Sequence[Layer], parameters: Any, inputs: Sequence[Arrays]
) -> dict[str, Any]:
    """Quantize `layers` of the file `source` into the file `target`. Returns what there is to report."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.qtyping import QuantGranularity, TFLOperationName
    from ai_edge_quantizer.recipe_manager import AlgorithmName, RecipeManager

    method, rules = parameters.method, RecipeManager()
    report: dict[str, Any] = {}
    ranges = None
    model = read(source)
    found = find(model)
    static = method in STATIC
    as_network = method == INTEGER or (static and sum(layer.is_convolution for layer in found) > 1)
    if as_network:
        chosen = {layer.name for layer in layers}
        kept = [layer for layer in found if layer.name not in chosen]
        ranges, report["activations"] = litert_network.plan(source, model, rules, layers, kept, parameters, inputs)
    for layer in () if as_network else layers:
        # Tables are looked up by kernels that widen the one row; a DEQUANTIZE before them would widen all.
        shared = QuantGranularity.CHANNELWISE
        if parameters.scales == "tensor" and not layer.is_convolution:
            shared = QuantGranularity.TENSORWISE
        for scope in layer.scopes():
            given = {"regex": f"^{re.escape(scope)}$", "operation_name": TFLOperationName[layer.kind]}
            if method == "fp16":
                rules.add_weight_only_config(**given, num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
            elif layer.is_table or method == "dynamic-int8" or (layer.is_convolution and method == "weight-int4"):
                rules.add_dynamic_config(**given, num_bits=8, granularity=shared)
            elif static:
                bits = {"activation_num_bits": ACTIVATION_BITS[method], "weight_num_bits": 8}
                rules.add_static_config(**given, **bits, weight_granularity=shared)
            elif method == "weight-int8":
                rules.add_weight_only_config(**given, num_bits=8)
            else:  # blocks exist only for kernels that quantize the activations at run time
                blocks = QuantGranularity[f"BLOCKWISE_{parameters.block_size}"]
                rules.add_dynamic_config(**given, num_bits=4, granularity=blocks)
    if static and not as_network:
        linear = [layer for layer in layers if not layer.is_table]
        ranges, report["activations"] = _ranges(source, linear, parameters, inputs)
    float_model = litert_network.with_finite_padding(source, model, ranges) if as_network and ranges else str(source)
    worker = quantizer.Quantizer(float_model)
    worker.load_quantization_recipe(rules.get_quantization_recipe())
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)  # one line for each of a layer's input lengths: weights are shared, as they should
    try:
        quantized = worker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    finally:
        logging.disable(previous)
    quantized.export_model(str(target))
    return report


def _ranges(
    source: Path, layers: Sequence[Layer], parameters: Any, inputs: Sequence[Arrays]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the range of every layer's input and output, by tensor name; what there is to report)."""
    halves = activations(source, layers, inputs)
    found: dict[str, Any] = {}
    spread = {}
    for layer in layers:
        spread[layer.name] = instability(*halves[layer.name, "input"], parameters.calibration, parameters.percentile)
        for place in ("input", "output"):
            first, second = halves[layer.name, place]
            low, high = first.merge(second).range(parameters.calibration, parameters.percentile)
            for graph, operator in layer.operators:
                tensor = graph.tensors[(operator.inputs if place == "input" else operator.outputs)[0]]
                ones = [1] * len(tensor.shape)
                found[tensor.name.decode()] = {
                    "min": np.full(ones, low, np.float32), "max": np.full(ones, high, np.float32)
                }  # fmt: skip
    return found, {"calibrated": len(layers), "unstable": spread}


def activations(
    source: Path, layers: Sequence[Layer], inputs: Sequence[Arrays]
) -> dict[tuple[str, str], tuple[Histogram, Histogram]]:
    """The values of every layer's input and output over the examples, whatever their length: one histogram for every
    other example, one for the rest. Padding does not count."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(source), num_threads=1, experimental_preserve_all_tensors=True)
    subgraphs = {entry.signatureKey.decode(): entry.subgraphIndex for entry in read(source).signatureDefs}
    runners: dict[str, Any] = {}
    found = {(layer.name, place): (Histogram(), Histogram()) for layer in layers for place in ("input", "output")}
    for number, arrays in enumerate(inputs):
        only = signature_name(None)
        length = None if only in subgraphs else next(iter(arrays.values())).shape[1]
        signature = signature_name(length)
        if signature not in runners:
            runners[signature] = interpreter.get_signature_runner(signature)
        taken = runners[signature].get_input_details()
        runners[signature](**{name: fed(name, arrays[name], Tensor.of(details)) for name, details in taken.items()})
        subgraph = subgraphs[signature]
        tokens = int(arrays["attention_mask"].sum()) if length and "attention_mask" in arrays else None
        for layer in layers:
            _, operator = layer.operators[subgraph]
            for place, index in (("input", operator.inputs[0]), ("output", operator.outputs[0])):
                values = interpreter.get_tensor(index, subgraph)
                rows = values.reshape(-1, values.shape[-1])
                found[layer.name, place][number % 2].add(rows[:tokens] if tokens and len(rows) == length else rows)
    return found
