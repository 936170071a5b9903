"""Files in OpenVINO's format: their operators and layers under the names of PyTorch modules, and the same bytes for the
same model.

An operator is called `module/Type`, as `bert.encoder.layer.0.output.dense/MatMul`. Where its output is the value of
what was one operation in PyTorch the tensor is called so too; inside of one, as between a product and the addition of
its bias, it has no name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.engines.openvino import PRECISION, WEIGHTS_SUFFIX
from toolkit.export.onnx_layers import LEAST_TABLE
from toolkit.probes import common
from toolkit.storage import explained

AXES = "axes"  # what a graph is told of its inputs' axes, in their order: "batch,length;batch,length"
CONSTANT = "Constant"
CONVOLUTIONS = ("Convolution", "GroupConvolution")
EDGES = (CONSTANT, "Parameter", "Result")  # what no operator is
_ON_THE_WAY = ("Convert", "Reshape", "Transpose", "Unsqueeze")  # between a weight and what reads it


@dataclass(frozen=True)
class Layer:
    """A linear layer, a convolution or an embedding table: the operator that reads its weight, and the weight."""

    name: str
    operator: Any
    weight: Any  # the constant

    @property
    def size(self) -> int:
        """Bytes of the weight."""
        return int(self.weight.get_byte_size())

    @property
    def is_table(self) -> bool:
        return str(self.operator.get_type_name()) == "Gather"


def find(model: Any) -> list[Layer]:
    """All layers of a model in float32, in the graph's order, each under a name of its own."""
    found: list[Layer] = []
    taken: set[str] = set()
    for operator in model.get_ordered_ops():
        kind = operator.get_type_name()
        place = 0 if kind == "Gather" else 1
        if kind not in ("Gather", "MatMul", *CONVOLUTIONS):
            continue
        weight = constant(operator.input_value(place).get_node())
        if weight is None or len(weight.get_output_shape(0)) < 2:
            continue
        if str(weight.get_element_type().get_type_name()) != "f32":
            continue
        if kind == "Gather" and np.prod(weight.get_output_shape(0)) < LEAST_TABLE:
            continue
        name = module_of(operator) or operator.get_friendly_name()
        while name in taken:
            name += "'"
        taken.add(name)
        found.append(Layer(name, operator, weight))
    return found


def constant(node: Any) -> Any | None:
    """The constant that a node is, or that it only converts or arranges; None for others."""
    while node.get_type_name() in _ON_THE_WAY:
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == CONSTANT else None


def module_of(operator: Any) -> str:
    """The PyTorch module that an operator of a file written here came from; "" for the model itself."""
    module, slash, _ = str(operator.get_friendly_name()).partition("/")
    return module if slash else ""


def name_operators(model: Any, module: Callable[[Any], str | None], complete: Callable[[Any], bool]) -> None:
    """Call operators after modules. `module` tells an operator's, None where it is not known: then it is the innermost
    that holds all readers. `complete` tells of an output whether it is the value of a whole operation."""
    operators = [each for each in model.get_ordered_ops() if each.get_type_name() not in EDGES]
    said: dict[str, str] = {}
    whole: dict[str, list[bool]] = {}
    for each in reversed(operators):
        own = module(each)
        own = own.replace("/", ".") if own else own
        around = [said.get(reader.get_friendly_name(), "") for reader in readers(each)]
        said[each.get_friendly_name()] = own if own is not None else common(around) or ""
        whole[each.get_friendly_name()] = [complete(output) for output in each.outputs()]
    taken: set[str] = set()
    for each in operators:
        before = each.get_friendly_name()
        kind = each.get_type_name()
        name = _free(f"{said[before]}/{kind}" if said[before] else kind, taken)
        each.set_friendly_name(name)
        for number, (output, is_whole) in enumerate(zip(each.outputs(), whole[before], strict=True)):
            output.get_tensor().set_names({f"{name}:{number}"} if is_whole else set())


def readers(operator: Any) -> list[Any]:
    """The operators that read what one computes."""
    return [entry.get_node() for output in operator.outputs() for entry in output.get_target_inputs()]


def _free(name: str, taken: set[str]) -> str:
    """A name that is not taken: with a number behind it, if it must be. Takes it."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def describe_run(model: Any, arithmetic: str, axes: Mapping[str, Sequence[Any]]) -> None:
    """Write into a model what it is to be run with, and what its axes are called. What converters and quantizers
    noted, as their settings and versions, goes."""
    for key in list(model.rt_info):
        del model.rt_info[key]
    model.set_rt_info(arithmetic, PRECISION)
    shapes = [[re.sub("[,;]", " ", str(size)) for size in axes[port.any_name]] for port in model.inputs]
    model.set_rt_info(";".join(map(",".join, shapes)), AXES)


def axes_of(model: Any) -> dict[str, list[str | int]]:
    """What the inputs' axes are called, or how long they are where that is fixed."""
    said = str(model.get_rt_info(AXES).value).split(";") if model.has_rt_info(AXES) else []
    found: dict[str, list[str | int]] = {}
    for number, port in enumerate(model.inputs):
        sizes = list(port.get_partial_shape())
        given = said[number].split(",") if number < len(said) else []
        given += ["?"] * (len(sizes) - len(given))
        found[port.any_name] = [
            int(size.get_length()) if size.is_static else name or "?" for size, name in zip(sizes, given, strict=False)
        ]
    return found


def describe_ports(model: Any) -> dict[str, list[dict[str, Any]]]:
    """Names, types and shapes of a model's `inputs` and `outputs`; of an output what is not fixed is the inputs' first
    axis, or has no name."""
    axes = axes_of(model)
    rows = next((shape[0] for shape in axes.values() if shape and isinstance(shape[0], str)), "?")

    def shape(port: Any) -> list[str | int]:
        sizes = enumerate(port.get_partial_shape())
        return [int(size.get_length()) if size.is_static else "?" if place else rows for place, size in sizes]

    def described(port: Any, shape: Sequence[str | int]) -> dict[str, Any]:
        dtype = np.dtype(port.get_element_type().to_dtype()).name
        return {"name": port.any_name, "dtype": dtype, "shape": list(shape)}

    return {
        "inputs": [described(port, axes[port.any_name]) for port in model.inputs],
        "outputs": [described(port, shape(port)) for port in model.outputs],
    }


def names(model: Any) -> set[str]:
    """What a model's operators are called."""
    return {str(each.get_friendly_name()) for each in model.get_ordered_ops() if each.get_type_name() != CONSTANT}


def save(model: Any, path: Path, outputs: Sequence[str], named: Collection[str]) -> None:
    """Write a model to `path` and its weights beside it, the same bytes for the same model. `outputs` are the names of
    its outputs, `named` those of its operators that stay. Constants, and what OpenVINO only numbered, are called after
    what reads them."""
    import openvino

    ordered = model.get_ordered_ops()
    places = {each.get_friendly_name(): place for place, each in enumerate(ordered)}
    numbered = [each for each in ordered if each.get_friendly_name() not in named and _is_numbered(each)]
    taken = names(model) - {each.get_friendly_name() for each in numbered}
    for each in reversed(numbered):
        reading = [
            (places[entry.get_node().get_friendly_name()], entry.get_index(), entry.get_node().get_friendly_name())
            for output in each.outputs()
            for entry in output.get_target_inputs()
        ]
        _, index, reader = min(reading)
        places[_free(f"{reader}/{index}", taken)] = places[each.get_friendly_name()]
        each.set_friendly_name(next(reversed(places)))
        each.output(0).get_tensor().set_names(set())
    for number, (result, name) in enumerate(zip(model.get_results(), outputs, strict=True)):
        result.set_friendly_name(f"Result_{number}")
        result.input_value(0).get_tensor().set_names({name})
    model.set_friendly_name("model")
    with explained("writing the model", path):
        openvino.save_model(model, str(path), compress_to_fp16=False)


def _is_numbered(operator: Any) -> bool:
    """Whether an operator has the name that OpenVINO gives one that has none: its type and how many there were."""
    kind = operator.get_type_name()
    return kind == CONSTANT or re.fullmatch(rf"{kind}_\d+", operator.get_friendly_name()) is not None


def output_names(model: Any) -> list[str]:
    """The names of a model's outputs."""
    return [str(port.any_name) for port in model.outputs]


def files(path: Path) -> list[Path]:
    """A model's files."""
    return [path, path.with_suffix(WEIGHTS_SUFFIX)]


def weights(model: Any) -> Iterable[Any]:
    """The constants of a model that are weights: of more than one number, in any of the formats of weights."""
    for each in model.get_ordered_ops():
        if each.get_type_name() == CONSTANT and np.prod(each.get_output_shape(0)) > 1:
            yield each
