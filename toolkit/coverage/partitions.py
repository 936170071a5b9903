"""The parts that a model falls into where some of its operators run elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Placed(Protocol):
    """What must be known of an operator."""

    @property
    def taken(self) -> bool | None: ...
    @property
    def inputs(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...


def runs(placements: Sequence[Placed]) -> int:
    """How many parts the operators that are taken make, as NVIDIA's parser cuts a graph: each run of them in the file's
    order. An operator that is not known is on the other side."""
    sides = [bool(each.taken) for each in placements]
    return sum(now and not before for before, now in zip([False, *sides], sides, strict=False))


def epochs(placements: Sequence[Placed]) -> int:
    """The same as LiteRT cuts a graph for a delegate: of what can run next everything of one side runs before the other
    side goes on."""
    producers = {name: place for place, each in enumerate(placements) for name in each.outputs}
    waits = [{producers[name] for name in each.inputs if name in producers} for each in placements]
    waits = [{other for other in needed if other != place} for place, needed in enumerate(waits)]
    done: set[int] = set()
    left = list(range(len(placements)))
    parts, side = 0, None
    while left:
        ready = next((place for place in left if waits[place] <= done), None)
        if ready is None:  # a cycle, through a variable: what is left is one more part
            return parts + any(placements[place].taken for place in left)
        side = bool(placements[ready].taken)
        parts += side
        rest = []
        for place in left:  # in the file's order, so that one pass finds all that follow
            if bool(placements[place].taken) == side and waits[place] <= done:
                done.add(place)
            else:
                rest.append(place)
        left = rest
    return parts


def crossings(placements: Sequence[Placed]) -> int:
    """How many tensors go from operators that are taken to others, or back."""
    producers = {name: place for place, each in enumerate(placements) for name in each.outputs}
    crossing = {
        name
        for each in placements
        for name in each.inputs
        if name in producers and bool(placements[producers[name]].taken) != bool(each.taken)
    }
    return len(crossing)
