"""OpenVINO files in fewer bits.

int8 is NNCF's static quantization: weights to int8 per output channel, activations by ranges that calibration examples
give; for text encoders with its settings for transformers, which move large values of activations into weights first.
What half precision stores is widened before it is used: in float32 for fp16, and left to CPUs that multiply bfloat16
for bf16.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.errors import missing_extra
from toolkit.export.openvino_file import EDGES, Layer

_ATTENTION = ("ScaledDotProductAttention",)
PRECISIONS = {"static-int8": "int8", "fp16": "fp16", "bf16": "bf16"}


def quantize(
    model: Any, layers: Sequence[Layer], chosen: Collection[str], parameters: Any, inputs: Sequence[Arrays]
) -> tuple[Any, dict[str, Any]]:
    """(`model` in fewer bits, what there is to report); of its `layers` those called as in `chosen` change."""
    if parameters.method == "static-int8":
        ignored = _ignored(model, layers, chosen)
        return _static(model, ignored, parameters, inputs), {"calibrated": len(inputs)}
    return model, _store([layer for layer in layers if layer.name in chosen], parameters.method)


def _ignored(model: Any, layers: Sequence[Layer], chosen: Collection[str]) -> list[str]:
    """The operators that stay in float: layers that are kept, and what only such layers feed, as sums and pools.

    So does attention, as in the other formats.
    """
    names = {layer.operator.get_friendly_name(): layer.name in chosen for layer in layers}
    touched: dict[str, bool] = {}  # by operator, whether a layer that is chosen feeds it, through no other layer
    ignored = []
    for operator in model.get_ordered_ops():
        name = operator.get_friendly_name()
        before = [source.get_node().get_friendly_name() for source in operator.input_values()]
        touched[name] = names[name] if name in names else any(touched[each] for each in before)
        if operator.get_type_name() not in EDGES and (not touched[name] or operator.get_type_name() in _ATTENTION):
            ignored.append(name)
    return ignored


def _static(model: Any, ignored: Sequence[str], parameters: Any, inputs: Sequence[Arrays]) -> Any:
    try:
        import nncf
    except ImportError as error:
        raise missing_extra("nncf", "openvino", "Quantizing an OpenVINO file") from error
    texts = any(port.any_name == "input_ids" for port in model.inputs)
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            return nncf.quantize(
                model,
                nncf.Dataset(list(inputs)),
                model_type=nncf.ModelType.TRANSFORMER if texts else None,
                subset_size=len(inputs),
                ignored_scope=nncf.IgnoredScope(names=list(ignored)),
                advanced_parameters=_advanced(parameters),
            )
    finally:
        logging.disable(previous)


def _advanced(parameters: Any) -> Any:
    """How NNCF finds ranges: from the least to the greatest value as it does by itself, or by percentiles."""
    import nncf
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    advanced = nncf.AdvancedQuantizationParameters()
    if parameters.calibration == "percentile":
        outside = 1 - parameters.percentile / 100

        def end(aggregator: Any) -> Any:
            return StatisticsCollectorParameters(
                statistics_type=StatisticsType.QUANTILE, aggregator_type=aggregator, quantile_outlier_prob=outside
            )

        advanced.activations_range_estimator_params = RangeEstimatorParameters(
            min=end(AggregatorType.MIN), max=end(AggregatorType.MAX)
        )
    return advanced


def _store(layers: Sequence[Layer], method: str) -> dict[str, Any]:
    """Weights in half precision, widened before they are used. Changes the layers' model."""
    import openvino
    from openvino import opset13 as operators

    narrow = openvino.Type.bf16 if method == "bf16" else openvino.Type.f16
    left: list[str] = []
    stored: set[str] = set()
    for layer in layers:
        name = layer.weight.get_friendly_name()
        if name in stored:  # a tied weight is stored once
            continue
        stored.add(name)
        values = np.asarray(layer.weight.data)
        if method == "fp16" and np.abs(values).max() > np.finfo(np.float16).max:
            left.append(f"{layer.name} stays in float, its weights overflow")
            continue
        entries = layer.weight.output(0).get_target_inputs()
        widened = operators.convert(operators.constant(values, dtype=narrow), "f32")
        widened.set_friendly_name(f"{name}/Convert")
        for entry in entries:
            entry.replace_source_output(widened.output(0))
    return {"left_in_float": left} if left else {}
