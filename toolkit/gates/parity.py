"""Parity: a float artifact must give the float checkpoint's logits and labels on real examples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.gates import Verdict

NAME = "parity"
TOLERANCE = 1e-3  # max abs logit difference
ENOUGH_EXAMPLES = 200  # fewer say little; the verdict tells


def check(reference: NDArray[Any], candidate: NDArray[Any], tolerance: float = TOLERANCE) -> Verdict:
    """Compare logits float[n, classes] of the same examples. A NaN anywhere refuses."""
    count = len(candidate)
    difference = np.abs(candidate - reference[:count])
    worst = float(difference.max()) if not np.isnan(difference).any() else float("nan")
    flips = int((candidate.argmax(axis=1) != reference[:count].argmax(axis=1)).sum())
    passed = worst <= tolerance and flips == 0
    reason = f"largest logit difference {worst:.2g} over {count} examples (limit {tolerance:g})"
    if count < ENOUGH_EXAMPLES:
        reason += f"; a sound verdict takes {ENOUGH_EXAMPLES}"
    if flips:
        reason += f", {flips} labels differ"
    return Verdict(NAME, passed, reason)


def agreement(reference: NDArray[Any], candidate: NDArray[Any], names: list[str]) -> dict[str, Any]:
    """Flip rate against the reference, overall and per reference class, and the largest logit difference."""
    count = len(candidate)
    before = reference[:count].argmax(axis=1)
    flipped = candidate.argmax(axis=1) != before
    worst = float(np.abs(candidate - reference[:count]).max())
    return {
        "examples": count,
        "flip_rate": float(flipped.mean()),
        "flip_rate_per_class": {
            name: float(flipped[before == i].mean()) if (before == i).any() else None for i, name in enumerate(names)
        },
        "max_abs_logit_difference": worst if np.isfinite(worst) else None,
    }
