"""What goes along with a training: told of every step of the optimizer, saved and restored with its state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Follower(Protocol):
    """Follows the optimizer. Its state is tensors by name, on the CPU."""

    def begin(self, steps: int) -> None:
        """The optimizer will make so many steps, unless the training stops early. Raises InputError if they are too
        few."""

    def after_step(self) -> None:
        """The optimizer has made a step; the gradients that it took are still there."""

    def state(self) -> dict[str, Any]:
        """What a resumed training needs besides the weights."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
