"""The operations of an ONNX file: standard, fused (com.microsoft) and quantized ones, those inside If and Loop too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from toolkit.costs import Operation
from toolkit.costs import onnx_arithmetic as arithmetic
from toolkit.costs.onnx_graph import Node, item_bytes, nodes
from toolkit.costs.onnx_shapes import Run, Shape, as_rewritten, inferred, observed, with_sizes
from toolkit.costs.work import of_kind
from toolkit.errors import InputError, ToolkitError, missing_extra

_DTYPES = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}


def operations(
    path: Path, sizes: Mapping[str, int], inputs: Mapping[str, NDArray[Any]] | None = None, *, rewritten: bool = False
) -> list[Operation]:
    """All nodes of a file, in its order, those of inner graphs behind those of the outer one.

    `sizes` are those of the inputs' dynamic axes by name; an axis without one is called `input[axis]`. Where shape
    inference does not get to the end, one inference is run on `inputs`, or else on zeros: they decide which branch of
    an If is taken and how often a Loop goes round. Raises InputError for a file that cannot be read, and for a size
    that is missing.

    With `rewritten` they are those of the graph that ONNX Runtime makes of the file when it loads it: activations are
    part of convolutions, Q/DQ have become integer operators. It must be installed, and take the file.
    """
    try:
        import onnx
    except ImportError as error:
        raise missing_extra("onnx", "convert", "Counting what an ONNX file costs") from error
    try:
        model = as_rewritten(path) if rewritten else onnx.load(str(path))
    except ToolkitError:
        raise
    except Exception as error:  # protobuf's own classes
        raise InputError(f"{path} is no ONNX file that can be read: {error}") from error
    fixed = with_sizes(model, sizes, path)
    shapes, types = inferred(fixed)
    found = nodes(model)
    runs, complete = _inferred_runs(found, shapes, types), False
    if len(runs) < len(found):
        try:
            seen = observed(fixed, inputs or {})
        except (ImportError, InputError):
            pass  # what was inferred is left, and the rest is said to be unknown
        else:
            numbers, complete = {run.number for run in seen}, True
            runs = [run for run in runs if run.number not in numbers] + seen
    tally = _Tally(found, shapes, types)
    for run in runs:
        tally.add(run)
    # Nodes that the runtime takes apart have no run of their own, but those around them tell their shapes.
    for run in _inferred_runs(found, tally.shapes, tally.types):
        if run.number not in tally.counts:
            tally.add(run)
    return [tally.counts.get(number, _uncounted(node, complete)) for number, node in enumerate(found)]


def _inferred_runs(found: list[Node], shapes: Mapping[str, Shape], types: Mapping[str, str]) -> list[Run]:
    """One run of every node of the main graph whose outputs' shapes are known."""
    return [
        Run(number, [], [(types.get(name, ""), shapes[name]) for name in node.outputs])
        for number, node in enumerate(found)
        if not node.inner and all(name in shapes for name in node.outputs)
    ]


def _uncounted(node: Node, complete: bool) -> Operation:
    """A node of which no run is known: it is in a branch that was not taken, or nobody knows its shapes."""
    runs = 0 if node.is_constant or node.is_absorbed or (complete and node.inner) else 1
    kind = of_kind(node.kind)
    return Operation(_name(node), node.kind, _domain(node), node.module, kind, 0, 0, 0, "", None, runs)


class _Tally:
    """Adds up the runs of nodes, in the order in which they happen: inside a loop shapes may change."""

    def __init__(self, found: list[Node], shapes: Mapping[str, Shape], types: Mapping[str, str]) -> None:
        self._nodes = found
        self.shapes, self.types = dict(shapes), dict(types)
        self.counts: dict[int, Operation] = {}

    def add(self, run: Run) -> None:
        """Count one run of a node."""
        node = self._nodes[run.number]
        every = [name for name in node.proto.input if name]
        for names in (every, [name for name in every if name not in node.graph.constants]):
            if len(run.inputs) == len(names):  # weights may be packed out of sight
                for name, (kind, shape) in zip(names, run.inputs, strict=True):
                    self.shapes.setdefault(name, shape)  # what a loop hands in
                    self.types.setdefault(name, kind)
                break
        for name, (kind, shape) in zip(node.outputs, run.outputs, strict=False):
            self.shapes[name] = shape
            if kind:
                self.types.setdefault(name, kind)
        before = self.counts.get(run.number)
        now = self._counted(node)
        if before is not None and before.shape is None:
            now = before  # what one round did is not known, so neither is the sum
        elif before is not None and now.shape is not None:
            now = replace(
                now,
                multiply_adds=before.multiply_adds + now.multiply_adds,
                activation_bytes=before.activation_bytes + now.activation_bytes,
                weight_bytes=before.weight_bytes + now.weight_bytes,
                runs=before.runs + now.runs,
            )
        self.counts[run.number] = now

    def _counted(self, node: Node) -> Operation:
        """One run of a node at the shapes that are known now."""
        if node.is_constant or node.is_absorbed:
            shape = self._shape(node.outputs[0], node)
            return replace(_uncounted(node, complete=False), dtype=self._dtype(node), shape=shape, runs=0)
        outputs = [self._shape(name, node) for name in node.outputs]
        inputs = [self._shape(name, node) if name else None for name in node.proto.input]
        shape = outputs[0] if outputs else ()
        products = (
            None
            if shape is None
            else arithmetic.multiply_adds(node.kind, _domain(node), inputs, shape, node.attributes)
        )
        if products is None:
            return _uncounted(node, complete=False)
        place = arithmetic.second_factor(node.kind)
        constant = place < len(node.proto.input) and node.proto.input[place] in node.graph.constants
        work = arithmetic.work(node.kind, inputs, products, constant=constant)
        return Operation(
            _name(node),
            node.kind,
            _domain(node),
            node.module,
            work,
            products,
            0 if work == "view" else self._activation_bytes(node),
            self._weight_bytes(node),
            self._dtype(node),
            shape,
        )

    def _shape(self, name: str, node: Node) -> Shape | None:
        constant = node.graph.constants.get(name)
        if constant is not None and constant.shape is not None:
            return constant.shape
        return self.shapes.get(name)

    def _bytes(self, name: str, node: Node, held_in: str | None = None) -> float:
        """The bytes of a tensor; `held_in` is the type that it is held in, if that is not its own."""
        shape = self._shape(name, node)
        return 0 if shape is None else math.prod(shape) * item_bytes(held_in or self.types.get(name, ""))

    def _activation_bytes(self, node: Node) -> int:
        integer = node.is_integer
        total = 0.0
        for name in node.proto.input:
            if name and name not in node.graph.constants:
                source = node.source(name) if integer else None
                total += self._bytes(source or name, node)
        for name in node.outputs:
            total += self._bytes(name, node, "int8" if integer and node.is_quantized(name) else None)
        return round(total)

    def _weight_bytes(self, node: Node) -> int:
        total = 0.0
        for place, name in enumerate(node.proto.input):
            constant = node.graph.constants.get(name) if name else None
            if constant is None or of_kind(node.kind) == "view":
                continue
            whole = constant.bytes if constant.bytes is not None else self._bytes(name, node)
            if arithmetic.is_table(node.kind, place) and constant.shape:
                rows = self._shape(node.outputs[0], node) or ()
                total += min(whole, math.prod(rows) * whole / max(1, math.prod(constant.shape)))
            else:
                total += whole
        return round(total)

    def _dtype(self, node: Node) -> str:
        if node.is_integer:
            return "int8"
        place = 1 if node.kind == "Where" else 0  # its first input is the condition
        names = [name for name in (*node.proto.input[place : place + 1], *node.outputs[:1]) if name]
        if arithmetic.is_table(node.kind, 0) or node.kind in ("Cast", "DequantizeLinear"):
            names.reverse()
        kind = next((self.types[name] for name in names if self.types.get(name)), "")
        return _DTYPES.get(kind, kind)


def _name(node: Node) -> str:
    return str(node.proto.name or next(iter(node.outputs), ""))


def _domain(node: Node) -> str:
    return "" if node.proto.domain == "ai.onnx" else str(node.proto.domain)
