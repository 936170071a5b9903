"""Forgetting: what a model that learned new data has lost on those from before, in points of its score."""

from __future__ import annotations

from toolkit.errors import InputError
from toolkit.gates import Verdict

NAME = "forgetting"
DEFAULT = "1%"
_ROUNDING = 1e-9


def parse(text: str) -> float:
    """`--max-forgetting`: "1%", one point of the hundred that a score has, → 0.01. Raises InputError."""
    value = text.strip()
    try:
        limit = float(value.removesuffix("%")) / 100
    except ValueError:
        limit = -1.0
    if not value.endswith("%") or not 0 <= limit <= 1:
        raise InputError(
            f"--max-forgetting '{text}' is not a share like 1%, which is one point of the score on the old data."
        )
    return limit


def points(before: float, after: float) -> float:
    """How many points of a hundred the score on the old evaluation examples fell; below 0 if it rose."""
    return 100 * (before - after)


def check(before: float, after: float, limit: float, score_name: str, examples: int) -> Verdict:
    """Refuse if the score on the old evaluation examples fell by more than `limit`, a share of 1."""
    reason = (
        f"{score_name} on {examples} old evaluation examples {before:.4f} → {after:.4f} "
        f"({100 * (after - before):+.2f} points; --max-forgetting {100 * limit:g}%)"
    )
    return Verdict(NAME, before - after <= limit + _ROUNDING, reason)
