"""Parity: a float artifact must give the float checkpoint's answers on real examples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import answers
from toolkit.gates import Verdict

NAME = "parity"
TOLERANCE = 1e-3  # of the largest difference of a number
ENOUGH = 200  # fewer answers say little; the verdict tells


def check(
    reference: NDArray[Any], candidate: NDArray[Any], kind: str = "classes", tolerance: float = TOLERANCE
) -> Verdict:
    """Compare answers float[n, width] of a kind (`toolkit.answers`) to the same examples. A NaN anywhere refuses."""
    count = len(candidate)
    difference = np.abs(candidate - reference[:count])
    worst = float(difference.max()) if not np.isnan(difference).any() else float("nan")
    changed = int(answers.get(kind).changed(reference[:count], candidate).sum())
    passed = worst <= tolerance and changed == 0
    reason = f"largest difference {worst:.2g} over {count} answers (limit {tolerance:g})"
    if count < ENOUGH:
        reason += f"; a sound verdict takes {ENOUGH}"
    if changed:
        reason += f", {changed} answers differ"
    return Verdict(NAME, passed, reason)
