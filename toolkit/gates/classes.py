"""Classes: no class may pay for the others. The mean can stay where it is while one class collapses."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.gates import Verdict

NAME = "classes"
MOST_LOST = 0.05  # of a class's recall


def check(changes: Mapping[str, Mapping[str, float]], allowed: float = 0.0) -> Verdict:
    """Refuse if a class lost more than 5 points of recall, and its 95 % interval says that it lost some at all.

    `changes` are those of `toolkit.answers.classes.class_changes`. `allowed` is what the mean may lose by the budget on
    the score: each class may lose as much besides.
    """
    most_lost = MOST_LOST + max(allowed, 0.0)
    worst = min(changes, key=lambda name: changes[name]["change"], default=None)
    if worst is None:
        return Verdict(NAME, True, "no labelled example")
    change = changes[worst]
    passed = not any(c["change"] < -most_lost and c["high"] < 0 for c in changes.values())
    reason = (
        f"recall of '{worst}' {change['recall_before']:.4f} → {change['recall_after']:.4f} "
        f"({change['change']:+.4f}, 95 % interval {change['low']:+.4f} to {change['high']:+.4f}; "
        f"limit {-most_lost:+.2f})"
    )
    return Verdict(NAME, passed, reason)
