"""Probes: what flows through a model, module by module, whatever its format. One file each, with the same few names.

    open_probe(path, …) -> Probe            a model, ready to be looked into

A module is a PyTorch module, called by its dotted name (`bert.encoder.layer.0`); its value is the tensor that it hands
on. Exported graphs remember the names of the modules that they came from, so that a checkpoint and its artifacts can be
compared layer by layer. `Probe.run` reads values, and it can put others in their place: a module whose inputs are those
of another model shows its own error and not what came down to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from toolkit.engines import Arrays

OUTPUT = "(output)"  # the name under which the model's own output is among the values


class Probe(Protocol):
    """A model whose inner values can be read and replaced."""

    @property
    def modules(self) -> dict[str, str]:
        """The modules whose values this model has, in the order in which they are computed: name → what it is (a
        class, an operator). Of a checkpoint it is known after a run."""

    def run(
        self, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None, given: Mapping[str, NDArray[Any]]
    ) -> Arrays:
        """The values of the modules `wanted` (None: of all) and of the output, float32, for one example.

        Behind each module of `given` the model goes on with that value; what is returned is what the module itself
        computed.
        """

    def close(self) -> None:
        """Release the model."""


def ancestors(name: str) -> list[str]:
    """A module and those that it lies in, the innermost first; none for the model itself, which is called ""."""
    parts = name.split(".") if name else []
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def common(names: Sequence[str]) -> str | None:
    """The innermost module that all `names` lie in or are; None if there are none."""
    if not names:
        return None
    shared = []
    for level in zip(*(name.split(".") for name in names), strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)
