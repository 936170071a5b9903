"""What a row of a model's answers is, and how two models' answers compare. One file per kind, with the same few names.

    targets(answers, temperature)          what a student is to give for a teacher's answers
    divergence(targets, answers)           how far answers are from targets, on average: a float, 0 if they are the same
    imitation(said, targets, temperature)  the same as a loss, of torch tensors
    changed(before, after)                 bool[n]: which answers an application would see as others
    agreement(before, after, names)        in numbers, for the report
    describe(...)                          how one model behaves beside another, example by example
    sentence(found)                        what `describe` found, in one line

Answers are float32[n, width]: most tasks have one row per example, some have several (a word each), in order.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, Protocol, cast

from numpy.typing import NDArray


class AnswersModule(Protocol):
    """What every file of this folder offers."""

    def targets(self, answers: NDArray[Any], temperature: float = 1.0) -> NDArray[Any]: ...

    def divergence(self, targets: NDArray[Any], answers: NDArray[Any]) -> float: ...

    def imitation(self, said: Any, targets: Any, temperature: float) -> Any: ...

    def changed(self, before: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]: ...

    def agreement(self, before: NDArray[Any], after: NDArray[Any], names: Sequence[str]) -> dict[str, Any]: ...

    def describe(
        self,
        before: NDArray[Any],
        after: NDArray[Any],
        labels: NDArray[Any],
        names: Sequence[str],
        captions: Sequence[str],
        seed: int = 0,
    ) -> dict[str, Any]: ...

    def sentence(self, found: dict[str, Any]) -> str: ...


# Adding a kind: one file in this folder and one line here.
_MODULES = {kind: f"toolkit.answers.{kind}" for kind in ("classes", "vectors", "tensors")}


def get(kind: str) -> AnswersModule:
    """The module of a kind, as `Task.ANSWERS` names it."""
    return cast(AnswersModule, importlib.import_module(_MODULES[kind]))
