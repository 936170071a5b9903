"""Answers that are directions, float32[n, width] of length 1: what counts is the cosine between two of them.

A direction that a compressed model gives is of use only beside directions that the same model gave, so what an
application notices is not the cosine itself but whether the nearest neighbours are still the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError

NEIGHBOURS = 10
WORST = 20
_OTHER = 0.999  # a cosine below it is another answer


def cosine(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
    """Row by row, float64[n]."""
    first, second = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / np.maximum(lengths, 1e-12))


def targets(answers: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """The directions themselves; a temperature says nothing about them."""
    return np.asarray(answers, dtype=np.float64)


def divergence(targets: NDArray[Any], answers: NDArray[Any]) -> float:
    """One minus the mean cosine."""
    return float(1 - cosine(targets, answers).mean())


def imitation(said: Any, targets: Any, temperature: float) -> Any:
    """One minus the mean cosine as a loss. Raises InputError if a student's directions have another width."""
    from torch.nn import functional

    if said.shape[1] != targets.shape[1]:
        raise InputError(
            f"The student's directions are {said.shape[1]} wide, its teacher's {targets.shape[1]}; they can be "
            "compared only at one width. Prune layers or the ffn, not heads or the width."
        )
    return 1 - functional.cosine_similarity(said.float(), targets.float(), dim=1).mean()


def changed(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the cosine is below 0.999."""
    return np.asarray(~(cosine(before, after) >= _OTHER))


def neighbours(answers: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The indices of the `count` nearest other rows of each row, int64[n, count]."""
    rows = np.asarray(answers, dtype=np.float32)
    found = np.empty((len(rows), count), dtype=np.int64)
    for start in range(0, len(rows), 1024):  # not all similarities at once
        similar = rows[start : start + 1024] @ rows.T
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        found[start : start + 1024] = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    return found


def kept_neighbours(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.float64]:
    """Per row, the share of its ten nearest others that are still among them, float64[n]."""
    count = min(NEIGHBOURS, len(before) - 1)
    if count < 1:
        return np.ones(len(before))
    first, second = neighbours(before, count), neighbours(after, count)
    return np.asarray([len(set(a) & set(b)) / count for a, b in zip(first.tolist(), second.tolist(), strict=True)])


def agreement(before: NDArray[Any], after: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Mean and least cosine, and the share of the nearest neighbours that are kept."""
    similar = cosine(before, after)
    worst = float(np.abs(after - before).max())
    return {
        "answers": len(after),
        "mean_cosine": float(similar.mean()),
        "least_cosine": float(similar.min()),
        "neighbours_kept": float(kept_neighbours(before, after).mean()),
        "largest_difference": worst if np.isfinite(worst) else None,
    }


def describe(
    before: NDArray[Any],
    after: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    captions: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """The behaviour report; the worst examples are those that lost most of their neighbours."""
    similar, kept = cosine(before, after), kept_neighbours(before, after)
    order = np.lexsort((similar, kept))[:WORST]
    return {
        "examples": len(after),
        "mean_cosine": float(similar.mean()),
        "least_cosine": float(similar.min()),
        "neighbours": min(NEIGHBOURS, len(before) - 1),
        "neighbours_kept": float(kept.mean()),
        "worst": [
            {
                "example": captions[int(i)],
                "cosine": round(float(similar[i]), 4),
                "neighbours_kept": round(float(kept[i]), 4),
            }
            for i in order
        ],
    }


def sentence(found: dict[str, Any]) -> str:
    """How near the answers are to the float checkpoint's."""
    return (
        f"mean cosine {found['mean_cosine']:.4f} with the float checkpoint's answers (least "
        f"{found['least_cosine']:.4f}); of the {found['neighbours']} nearest neighbours {found['neighbours_kept']:.1%} "
        f"are the same, over {found['examples']} examples"
    )
