"""A file in OpenVINO's format: its operators are called after the modules that they came from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays, as_float32
from toolkit.engines import openvino as engine_module
from toolkit.export.openvino_file import EDGES, module_of
from toolkit.probes import OUTPUT, ancestors

_GIVEN = "given:"
_FLOATS = ("f32", "f16", "bf16")


def open_probe(path: Path) -> OpenVinoProbe:
    """The model of a file. Raises InputError."""
    return OpenVinoProbe(engine_module.read(path))


class OpenVinoProbe:
    """A graph, run by OpenVINO's CPU kernels."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._places = places(model)
        self._compiled: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}

    @property
    def modules(self) -> dict[str, str]:
        return {name: kind for name, (_, _, kind) in self._places.items()}

    def run(
        self, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None, given: Mapping[str, NDArray[Any]]
    ) -> Arrays:
        wanted = list(self._places) if wanted is None else wanted
        compiled = self._ready(tuple(wanted), tuple(given))
        feeds = {port.any_name: inputs[port.any_name] for port in self._model.inputs}
        # A module that hands on what its last child computed has one place with it.
        for name, value in given.items():
            operator, number, _ = self._places[name]
            feeds[f"{_GIVEN}{operator}:{number}"] = np.asarray(value, np.float32)
        values = list(compiled(feeds).values())
        found = dict(zip([OUTPUT, *wanted], map(as_float32, values), strict=True))
        return {name: np.asarray(value, dtype=np.float32) for name, value in found.items()}

    def _ready(self, wanted: tuple[str, ...], given: tuple[str, ...]) -> Any:
        """The model compiled so that it gives the values of modules `wanted` behind its first output, and goes on from
        those that it is given of others."""
        if (wanted, given) not in self._compiled:
            import openvino
            from openvino import opset13 as operators

            model = self._model.clone()
            by_name = {each.get_friendly_name(): each for each in model.get_ordered_ops()}
            outputs = [model.get_results()[0].input_value(0)]
            outputs += [by_name[name].output(number) for name, number, _ in (self._places[each] for each in wanted)]
            results = [operators.result(each) for each in outputs]
            parameters = list(model.get_parameters())
            for name, number in dict.fromkeys(self._places[each][:2] for each in given):
                value = by_name[name].output(number)
                parameter = operators.parameter(value.get_partial_shape(), openvino.Type.f32)
                parameter.output(0).get_tensor().set_names({f"{_GIVEN}{name}:{number}"})
                own = value.get_element_type()
                source = parameter if own == openvino.Type.f32 else operators.convert(parameter, own.get_type_name())
                parameters.append(parameter)
                for entry in value.get_target_inputs():
                    if entry.get_node() not in results:
                        entry.replace_source_output(source.output(0))
            changed = openvino.Model(results, parameters, "probe")
            options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": engine_module.arithmetic(self._model)}
            self._compiled[wanted, given] = openvino.Core().compile_model(changed, "CPU", options)
        return self._compiled[wanted, given]

    def close(self) -> None:
        self._compiled.clear()


def places(model: Any) -> dict[str, tuple[str, int, str]]:
    """Where the values of modules stand: module → (operator, which of its outputs, what computes it), in the graph's
    order. A module's value is the float tensor that leaves it: of several the last."""
    found: dict[str, tuple[str, int, str]] = {}
    for operator in model.get_ordered_ops():
        if operator.get_type_name() in EDGES:
            continue
        for number, output in enumerate(operator.outputs()):
            if output.get_element_type().get_type_name() not in _FLOATS or not output.get_names():
                continue
            readers = [_reader(entry.get_node()) for entry in output.get_target_inputs()]
            for module in ancestors(module_of(operator)):
                if any(reader != module and not reader.startswith(f"{module}.") for reader in readers):
                    found.pop(module, None)  # the last one counts, and the order is by it
                    found[module] = (operator.get_friendly_name(), number, operator.get_type_name())
    return found


def _reader(operator: Any) -> str:
    """The module that reads a value; the model itself for its outputs."""
    return "" if operator.get_type_name() == "Result" else module_of(operator)
