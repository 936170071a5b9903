"""Exported programs in fewer bits, by torchao's quantization of exported graphs (PT2E) as XNNPACK computes it.

Ranges of activations are those of `toolkit.ranges`, like those of the other formats. A layer's kernel in integers takes
and gives integers; an activation behind it is part of it. What else XNNPACK computes in integers (an addition, a pool)
does so where all that it takes are integers, so that a layer that is kept in float is kept with what surrounds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver, UniformQuantizationObserverBase
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SharedQuantizationSpec,
)

from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.export import executorch_program
from toolkit.export.onnx_layers import LEAST_TABLE
from toolkit.ranges import Histogram, instability

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default)
_LINEAR, _TABLE = _aten.linear.default, _aten.embedding.default
_CLAMPS = (_aten.relu.default, _aten.relu_.default, _aten.hardtanh.default, _aten.hardtanh_.default)
_SUMS = (_aten.add.Tensor, _aten.add_.Tensor, _aten.mul.Tensor)
# These only move integers, or pick or average them: what they give has the scale of what they take.
_SAME_SCALE = (
    *_CLAMPS, _aten.max_pool2d.default, _aten.mean.dim, _aten.adaptive_avg_pool2d.default, _aten.view.default,
    _aten.reshape.default, _aten.flatten.using_ints, _aten.permute.default, _aten.transpose.int, _aten.squeeze.dim,
    _aten.dropout.default,
)  # fmt: skip
_LAYER = "toolkit_layer"  # key of a node's metadata
_ANNOTATION = "quantization_annotation"  # torchao's
_WRAPPER = "model."  # toolkit.export.traceable


@dataclass
class Layer:
    """A weight and the nodes of a graph that use it."""

    name: str
    kind: Any  # the operator
    size: int  # bytes
    nodes: list[Any] = field(default_factory=list)

    @property
    def is_table(self) -> bool:
        return bool(self.kind == _TABLE)

    @property
    def is_convolution(self) -> bool:
        return self.kind in _CONVOLUTIONS


def find(module: Any) -> list[Layer]:
    """All layers of a program's module, in the graph's order, called after the modules that own their weights."""
    found: dict[str, Layer] = {}
    for node in module.graph.nodes:
        if node.op != "call_function" or node.target not in (*_CONVOLUTIONS, _LINEAR, _TABLE):
            continue
        weight = node.args[0 if node.target == _TABLE else 1]
        if weight.op != "get_attr":
            continue
        value = _attribute(module, weight.target)
        if node.target == _TABLE and value.numel() < LEAST_TABLE:
            continue
        name = weight.target.removeprefix(_WRAPPER).removesuffix(".weight")
        layer = found.setdefault(name, Layer(name, node.target, value.numel() * value.element_size()))
        layer.nodes.append(node)
    return list(found.values())


def _attribute(module: Any, target: str) -> Any:
    for part in target.split("."):
        module = getattr(module, part)
    return module


def quantized(
    program: Any, module: Any, layers: Sequence[Layer], parameters: Any, inputs: Sequence[Arrays]
) -> tuple[Any, dict[str, Any]]:
    """(a program whose `layers` are in integers, what there is to report); `module` is the program's, in which the
    layers were found, and is changed."""
    tables = [layer for layer in layers if layer.is_table]
    rest = [layer for layer in layers if not layer.is_table]
    for layer in rest:
        for node in layer.nodes:
            node.meta[_LAYER] = layer.name
    for layer in tables:
        _look_up_integers(module, layer)
    report: dict[str, Any] = {}
    given, dynamic, longest = executorch_program.inputs_of(program)
    if rest:
        static = parameters.method == "static-int8"
        prepared = prepare_pt2e(module, _Xnnpack(parameters if static else None))
        if static:
            report["activations"] = _calibrate(prepared, inputs, parameters)
        else:
            with torch.no_grad():
                prepared(**given)  # the observers of the weights look at them now
        module = convert_pt2e(prepared)
    return executorch_program.exported(module, given, dynamic, longest), report


def _look_up_integers(module: Any, layer: Layer) -> None:
    """Put a table of bytes and a scale for each row in the place of one of floats: the rows that are looked up are
    widened, and no others. ExecuTorch's own operator for it is in none of its runtime's packages."""
    place = layer.nodes[0].args[0].target
    table = _attribute(module, place).detach()
    scales = table.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 127
    name = place.replace(".", "_")
    module.register_buffer(f"{name}_bytes", (table / scales).round().clamp(-127, 127).to(torch.int8))
    module.register_buffer(f"{name}_scales", scales)
    graph = module.graph
    for node in layer.nodes:
        with graph.inserting_before(node):
            rows, of_rows = (graph.get_attr(f"{name}_{what}") for what in ("bytes", "scales"))
            looked_up = graph.call_function(_TABLE, (rows, node.args[1]))
            wide = graph.call_function(_aten.to.dtype, (looked_up, torch.float32))
            scale = graph.call_function(_TABLE, (of_rows, node.args[1]))
            made = graph.call_function(_aten.mul.Tensor, (wide, scale))
        for each in (looked_up, wide, scale, made):
            each.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)
    graph.eliminate_dead_code()
    module.recompile()


class Observed(UniformQuantizationObserverBase):  # type: ignore[misc]  # torchao has no types here
    """Counts the values of a tensor: in one histogram those of every other example, in one those of the rest."""

    def __init__(self, method: Any, percentile: float, **given: Any) -> None:
        super().__init__(**given)
        self.method, self.percentile = method, percentile
        self.halves = (Histogram(), Histogram())
        self.half = 0

    def forward(self, values: Any) -> Any:
        self.halves[self.half].add(values.detach().numpy())
        return values

    def calculate_qparams(self) -> Any:
        low, high = self.halves[0].merge(self.halves[1]).range(self.method, self.percentile)
        scale = max((high - low) / 255, float(self.eps))
        zero_point = min(max(round(-128 - low / scale), -128), 127)
        return torch.tensor([scale]), torch.tensor([zero_point])


class _Xnnpack(Quantizer):  # type: ignore[misc]
    """Says of a graph what XNNPACK computes in integers: with ranges from examples, or, without `parameters`, with
    those that every input of a linear layer has when it runs."""

    def __init__(self, parameters: Any | None) -> None:
        self.static = parameters is not None
        whole = {"dtype": torch.int8, "quant_min": -128, "quant_max": 127, "qscheme": torch.per_tensor_affine}
        if parameters is None:
            from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import get_symmetric_quantization_config

            dynamic = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
            self.activation = dynamic.input_activation
        else:
            counted = Observed.with_args(method=parameters.calibration, percentile=parameters.percentile, eps=2**-24)
            self.activation = QuantizationSpec(**whole, observer_or_fake_quant_ctr=counted)
        self.weight = QuantizationSpec(
            dtype=torch.int8, quant_min=-127, quant_max=127, qscheme=torch.per_channel_symmetric, ch_axis=0,
            observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-24),
        )  # fmt: skip

    def annotate(self, model: Any) -> Any:
        integers: set[Any] = set()  # nodes that give integers
        for node in model.graph.nodes:
            if node.meta.get(_ANNOTATION) is not None and node.meta[_ANNOTATION]._annotated:
                integers.add(node)  # the clamp behind a layer
            elif node.meta.get(_LAYER) is not None:
                self._annotate_layer(node, integers)
            elif self.static and node.op == "call_function" and node.target in (*_SUMS, *_SAME_SCALE):
                taken = [each for each in node.args if isinstance(each, torch.fx.Node)]
                if all(each in integers for each in taken):
                    self._annotate_other(node, taken, integers)
        return model

    def _annotate_layer(self, node: Any, integers: set[Any]) -> None:
        given = {node.args[0]: self.activation, node.args[1]: self.weight}
        last = self._clamp_behind(node) if self.static else None
        if self.static and last is None:
            integers.add(node)
        output = self.activation if self.static and last is None else None
        node.meta[_ANNOTATION] = QuantizationAnnotation(given, output, _annotated=True)
        if last is not None:
            last.meta[_ANNOTATION] = QuantizationAnnotation({}, self.activation, _annotated=True)

    @staticmethod
    def _clamp_behind(node: Any) -> Any | None:
        """What a kernel clamps its output by, if that is all that reads it."""
        readers = list(node.users)
        return readers[0] if len(readers) == 1 and readers[0].target in _CLAMPS else None

    def _annotate_other(self, node: Any, taken: Sequence[Any], integers: set[Any]) -> None:
        integers.add(node)
        if node.target in _SAME_SCALE:
            same = SharedQuantizationSpec((taken[0], node))
            given, output = {taken[0]: self.activation}, same
            node.meta[_ANNOTATION] = QuantizationAnnotation(given, output, _annotated=True)
            return
        last = self._clamp_behind(node)
        output = None if last is not None else self.activation
        if len(taken) < 2:  # with a number
            integers.discard(node)
            return
        node.meta[_ANNOTATION] = QuantizationAnnotation(dict.fromkeys(taken, self.activation), output, _annotated=True)
        if last is not None:
            last.meta[_ANNOTATION] = QuantizationAnnotation({}, self.activation, _annotated=True)

    def validate(self, model: Any) -> None:
        """Everything that is annotated is of a kind that XNNPACK has."""


def _calibrate(prepared: Any, inputs: Sequence[Arrays], parameters: Any) -> dict[str, Any]:
    """Run the examples through a prepared module. Returns what there is to report of the layers' ranges."""
    if not inputs:
        raise InputError("static-int8 takes calibration examples; name some with --data.")
    observers = [each for each in prepared.modules() if isinstance(each, Observed)]
    with torch.no_grad():
        for number, arrays in enumerate(inputs):
            for each in observers:
                each.half = number % 2
            prepared(**{name: torch.from_numpy(array) for name, array in arrays.items()})
    spread: dict[str, float] = {}
    for node in prepared.graph.nodes:
        name = node.meta.get(_LAYER)
        if name is None or node.op != "call_function" or node.args[0].op != "call_module":
            continue
        first, second = getattr(prepared, node.args[0].target).halves
        spread[name] = instability(first, second, parameters.calibration, parameters.percentile)
    return {"calibrated": len(spread), "unstable": spread}


def bytes_of(layers: Sequence[Layer]) -> Mapping[str, int]:
    """The bytes of layers by name."""
    return {layer.name: layer.size for layer in layers}
