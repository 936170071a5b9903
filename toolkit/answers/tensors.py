"""Answers that are numbers of any meaning, float32[n, 1], one row per element of an output: what counts is how far they
are from those of before, as a share of their size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORST = 20
_OTHER = 0.01  # of the largest number: farther off, it is another one


def relative_error(before: NDArray[Any], after: NDArray[Any]) -> float:
    """‖after - before‖ / ‖before‖; infinite where a number is none."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    difference = float(np.linalg.norm(second - first))
    if not math.isfinite(difference):
        return math.inf
    size = float(np.linalg.norm(first))
    return difference / size if size else (0.0 if not difference else math.inf)


def sqnr_db(error: float) -> float | None:
    """A relative error as a ratio of signal to noise in decibel; None if there is no noise, or nothing else."""
    return -20 * math.log10(error) if 0 < error < math.inf else None


def targets(answers: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """The numbers themselves; a temperature says nothing about them."""
    return np.asarray(answers, dtype=np.float64)


def divergence(targets: NDArray[Any], answers: NDArray[Any]) -> float:
    """The relative error of all numbers together."""
    return relative_error(targets, answers)


def imitation(said: Any, targets: Any, temperature: float) -> Any:
    """The mean square of the differences as a loss."""
    from torch.nn import functional

    return functional.mse_loss(said.float(), targets.float())


def changed(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a number is off by more than a hundredth of the largest one."""
    largest = float(np.abs(before).max(initial=0.0))
    return np.asarray(~(np.abs(after - before).max(axis=1) <= _OTHER * largest))


def agreement(before: NDArray[Any], after: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Relative error and largest difference."""
    error = relative_error(before, after)
    worst = float(np.abs(after - before).max())
    return {
        "answers": len(after),
        "relative_error": error if math.isfinite(error) else None,
        "sqnr_db": sqnr_db(error),
        "largest_difference": worst if math.isfinite(worst) else None,
    }


def describe(
    before: NDArray[Any],
    after: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    captions: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """The behaviour report; `captions` say of every number which example it belongs to."""
    places: dict[str, list[int]] = {}
    for index, caption in enumerate(captions[: len(after)]):
        places.setdefault(caption, []).append(index)
    errors = {name: relative_error(before[rows], after[rows]) for name, rows in places.items()}
    worst = sorted(errors, key=lambda name: -errors[name])[:WORST]
    finite = [error for error in errors.values() if math.isfinite(error)]
    return {
        "examples": len(errors),
        **agreement(before, after, names),
        "median_error": float(np.median(finite)) if finite else None,
        "worst": [
            {"example": name, "relative error": round(errors[name], 6) if math.isfinite(errors[name]) else "not finite"}
            for name in worst
        ],
    }


def sentence(found: dict[str, Any]) -> str:
    """How near the numbers are to those of before."""
    error = found["relative_error"]
    if error is None:
        return f"some numbers are not finite, over {found['examples']} examples"
    ratio = f" (signal to noise {found['sqnr_db']:.1f} dB)" if found["sqnr_db"] is not None else ""
    return (
        f"the outputs are {error:.2%} off those of the model as it was given{ratio}, over {found['examples']} examples"
    )
