"""Limits of an operator that can be checked against a node: each says in words what must hold, and how to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Shape = Sequence[int | str | None]  # None or a name: a size that is not fixed
NOT_CONSTANT = object()  # as the value of an input: it is computed, or given by the user
CONSTANT = object()  # the same: it is constant, and its values were not read


@dataclass(frozen=True)
class Node:
    """What is known of a node. `inputs` holds values of constant inputs by the operator's own names for them,
    NOT_CONSTANT or CONSTANT; what is not in it is not known. `shapes` are those of the tensors that the node works
    on."""

    shapes: Sequence[Shape] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] | None = None


class Constraint(BaseModel):
    """One limit. Exactly one of the checks below stands in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: str | None = Field(None, description="Name of the input that `constant`, `equals`, `below` speak of")
    attribute: str | None = Field(None, description="Name of the attribute that `equals` speaks of")
    constant: bool = Field(False, description="The input must be known when the engine is built")
    equals: int | None = Field(None, description="The value, or all of its elements, must be this")
    below: int | None = Field(None, description="The value must be smaller than this")
    static: bool = Field(False, description="No size may be left open")
    rank: tuple[int, int] | None = Field(None, description="Fewest and most dimensions")
    most_dims_over_one: int | None = Field(None, description="So many dimensions may be larger than 1, the last ones")
    dim_at_most: int | None = Field(None, description="Largest size of a dimension that is no batch dimension")
    batch_at_most: int | None = Field(None, description="Largest product of the dimensions before the last three")

    @model_validator(mode="after")
    def _one_check(self) -> Constraint:
        of_value = self.constant + (self.equals is not None) + (self.below is not None)
        of_shape = self.static + sum(
            value is not None for value in (self.rank, self.most_dims_over_one, self.dim_at_most, self.batch_at_most)
        )
        named = (self.input is not None) + (self.attribute is not None)
        if of_value + of_shape != 1 or named != of_value:
            raise ValueError("a constraint is one check: of one input or attribute, or of shapes")
        return self

    def __str__(self) -> str:
        name = self.input or self.attribute
        if self.constant:
            return f"{name} must be constant"
        if self.equals is not None:
            return f"{name} must be {self.equals}"
        if self.below is not None:
            return f"{name} must be below {self.below}"
        if self.static:
            return "shapes must be fixed"
        if self.rank is not None:
            low, high = self.rank
            return f"tensors must have {low if low == high else f'{low} to {high}'} dimensions"
        if self.most_dims_over_one is not None:
            return f"only the last {self.most_dims_over_one} dimensions may be larger than 1"
        if self.dim_at_most is not None:
            return f"dimensions must be at most {self.dim_at_most}"
        return f"the batch must be at most {self.batch_at_most}"

    def check(self, node: Node) -> tuple[bool | None, str]:
        """Whether a node keeps to it (None: not enough is known of the node), and what the node has instead."""
        if self.attribute is not None:
            if node.attributes is None or self.attribute not in node.attributes:
                return (None if node.attributes is None else True), ""  # an attribute that is left out has its default
            return self._check_value(node.attributes[self.attribute])
        if self.input is not None:
            return self._check_value(node.inputs[self.input]) if self.input in node.inputs else (None, "")
        if node.shapes is None:
            return None, ""
        results = [(self._check_shape(shape), f"here: {_text(shape)}") for shape in node.shapes]
        failed = next((result for result in results if result[0] is False), None)
        return failed or (None if any(ok is None for ok, _ in results) else True, "")

    def _check_value(self, value: Any) -> tuple[bool | None, str]:
        if value is NOT_CONSTANT:
            return (False, "here it is computed") if self.constant else (None, "")
        if self.constant:
            return True, ""
        if value is CONSTANT:
            return None, ""
        elements = _elements(value)
        good = all(e == self.equals for e in elements) if self.equals is not None else max(elements) < (self.below or 0)
        return good, f"here it is {value}"

    def _check_shape(self, shape: Shape) -> bool | None:
        fixed = [size if isinstance(size, int) else None for size in shape]
        if self.static:
            return None not in fixed
        if self.rank is not None:
            return self.rank[0] <= len(shape) <= self.rank[1]
        if self.most_dims_over_one is not None:
            return _all_at_most(fixed[: max(0, len(fixed) - self.most_dims_over_one)], 1)
        if self.dim_at_most is not None:
            return _all_at_most(fixed[-3:], self.dim_at_most)
        batch = 1
        for size in fixed[:-3]:
            if size is None:
                return None
            batch *= size
        return batch <= (self.batch_at_most or 0)


def _elements(value: Any) -> list[Any]:
    flat = value.reshape(-1).tolist() if hasattr(value, "reshape") else value
    return list(flat) if isinstance(flat, Sequence) else [flat]


def _all_at_most(sizes: Sequence[int | None], most: int) -> bool | None:
    if any(size is not None and size > most for size in sizes):
        return False
    return None if None in sizes else True


def _text(shape: Shape) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
