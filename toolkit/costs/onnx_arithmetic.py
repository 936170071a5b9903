"""How many multiply-adds an ONNX operator makes, and in which number format, from shapes and attributes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.costs.work import Work, of_convolution, of_kind

Shape = tuple[int, ...]

_FIRST = frozenset({0})
# Operators that read only some rows of these inputs.
_LOOK_UPS = {
    "Gather": _FIRST, "GatherElements": _FIRST, "GatherND": _FIRST, "GatherBlockQuantized": _FIRST,
    "EmbedLayerNormalization": frozenset({2, 3, 4}), "Slice": _FIRST,
}  # fmt: skip
_CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "NhwcFusedConv": 1, "ConvInteger": 1, "QLinearConv": 3}  # place of weights
_PRODUCTS = {  # place of the second factor
    "MatMul": 1, "FusedMatMul": 1, "MatMulInteger": 1, "MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1,
    "QLinearMatMul": 3, "TransposeMatMul": 1, "FusedMatMulActivation": 1,
}  # fmt: skip
_MATRIX_PRODUCTS = {"Gemm": 1, "FusedGemm": 1, "QGemm": 3}
_RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
_ATTENTION = {"Attention": 1, "QAttention": 1, "DynamicQuantizeAttention": 1}  # of com.microsoft: with its own weights
_INTEGER = ("QLinear", "QGemm", "QAttention", "DynamicQuantize", "MatMulInteger", "ConvInteger")
_LEVEL_INT8 = 4  # of MatMulNBits: its activations become int8 for the product


def is_integer(kind: str, attributes: Mapping[str, Any]) -> bool:
    """Whether an operator computes in int8 by its own definition."""
    if kind == "MatMulNBits":
        return bool(attributes.get("accuracy_level") == _LEVEL_INT8)
    return kind.startswith(_INTEGER) and kind != "DynamicQuantizeLinear"


def is_table(kind: str, place: int) -> bool:
    """Whether an operator reads only some rows of an input."""
    return place in _LOOK_UPS.get(kind, ())


def has_products(kind: str) -> bool:
    """Whether an operator is one that multiplies matrices, so that Q/DQ around it make it an integer kernel."""
    return kind in _CONVOLUTIONS or kind in _PRODUCTS or kind in _MATRIX_PRODUCTS or kind == "ConvTranspose"


def multiply_adds(
    kind: str, domain: str, inputs: Sequence[Shape | None], output: Shape, attributes: Mapping[str, Any]
) -> int | None:
    """Multiply-adds of one run; 0 for operators without products (bias and activations are not counted), None if an
    input's shape is missing that decides it."""

    def size(place: int) -> Shape | None:
        return inputs[place] if place < len(inputs) else None

    first = size(0)
    if kind in _CONVOLUTIONS:
        weights = size(_CONVOLUTIONS[kind])
        return None if weights is None else math.prod(output) * math.prod(weights[1:])
    if kind == "ConvTranspose":
        weights = size(1)
        return None if weights is None or first is None else math.prod(first) * math.prod(weights[1:])
    if kind in _PRODUCTS:
        if first is None:
            return None
        return math.prod(output) * (first[-2] if attributes.get("transA") and len(first) > 1 else first[-1])
    if kind in _MATRIX_PRODUCTS:
        return None if first is None else math.prod(output) * first[0 if attributes.get("transA") else 1]
    if kind == "MatMulNBits":
        return math.prod(output) * int(attributes["K"])
    if kind in _RECURRENT:
        weights, recurrent = size(1), size(2)
        if first is None or weights is None or recurrent is None:
            return None
        return first[0] * first[1] * (math.prod(weights) + math.prod(recurrent))
    if kind in _ATTENTION and domain:
        weights = size(1)
        if first is None or weights is None:
            return None
        batch, length = first[:2]
        hidden = weights[1] // 3
        return math.prod(first) * weights[1] + 2 * batch * length * length * hidden
    if kind in ("MultiHeadAttention", "Attention", "GroupQueryAttention"):
        return _attention(inputs, output)
    if kind == "Einsum":
        return _einsum(str(attributes["equation"]), inputs)
    return 0


def work(kind: str, inputs: Sequence[Shape | None], products: int, *, constant: bool) -> Work:
    """The class of an operator with that many multiply-adds; `constant`: its second factor never changes."""
    if kind in _CONVOLUTIONS or kind == "ConvTranspose":
        place = _CONVOLUTIONS.get(kind, 1)
        weights = (inputs[place] if place < len(inputs) else None) or (1, 2, 3)
        return of_convolution(weights[2:], weights[1])
    if kind in _PRODUCTS or kind == "Einsum":
        return "gemm" if constant else "attention"
    if kind == "MultiHeadAttention":
        return "attention"
    return "gemm" if products else of_kind(kind)


def second_factor(kind: str) -> int:
    """The place of an operator's second factor among its inputs."""
    return _PRODUCTS.get(kind, 1)


def _attention(inputs: Sequence[Shape | None], output: Shape) -> int | None:
    """Scores and sums of attention over given queries, keys and values: [batch, length, width] or
    [batch, heads, length, size]."""
    query, key = inputs[0], inputs[1] if len(inputs) > 1 else None
    if query is None:
        return None
    keys = (key or query)[-2]
    return keys * (math.prod(query) + math.prod(output))


def _einsum(equation: str, inputs: Sequence[Shape | None]) -> int | None:
    """One multiply-add per combination of all labels; 0 where there is one factor only."""
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) < 2:
        return 0
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, inputs, strict=False):
        if shape is None or "." in term:
            return None
        sizes.update(zip(term, shape, strict=False))
    return math.prod(sizes.values())
