"""Open axes of ONNX files given a size: some accelerators, and compilers for them, take fixed shapes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toolkit.errors import InputError


def open_axes(inputs: Iterable[Mapping[str, Any]]) -> list[str]:
    """The open axes of described inputs, by name, or by place (`x[0]`) where they have none."""
    return list(
        dict.fromkeys(
            axis or f"{tensor['name']}[{place}]"
            for tensor in inputs
            for place, axis in enumerate(tensor["shape"])
            if isinstance(axis, str) or not axis
        )
    )


def check(fix: Mapping[str, int], known: Sequence[str]) -> None:
    """Refuse to fix an axis that is not among the open ones. Raises InputError."""
    for name in fix:
        if name not in known:
            these = f"the open axes are {', '.join(known)}" if known else "the model has no open axis"
            raise InputError(f"--fix {name}={fix[name]}: {these}.")


def fix(model: Any, sizes: Mapping[str, int]) -> None:
    """Give open axes of the inputs a size, by the names of `open_axes`, and everything else the shape that follows."""
    import onnx

    constants = {tensor.name for tensor in model.graph.initializer}
    named: dict[str, int] = {}
    for value in model.graph.input:
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            key = axis.dim_param or f"{value.name}[{place}]"
            if value.name not in constants and not axis.dim_value and key in sizes:
                if axis.dim_param:
                    named[axis.dim_param] = sizes[key]
                axis.dim_value = sizes[key]
    for value in model.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in named:
                axis.dim_value = named[axis.dim_param]
    del model.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except ValueError:  # over 2 GB; an engine infers them itself
        return
    model.CopyFrom(inferred)


def length_of(inputs: Iterable[Mapping[str, Any]]) -> list[int] | None:
    """The one length that described inputs of integers have, if it is fixed: texts are filled up to it."""
    lengths = {tuple(tensor["shape"][1:]) for tensor in inputs if str(tensor["dtype"]).startswith("int")}
    only = next(iter(lengths)) if len(lengths) == 1 else ()
    return [int(only[0])] if len(only) == 1 and isinstance(only[0], int) and only[0] > 1 else None
