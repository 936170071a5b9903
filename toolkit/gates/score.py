"""Score: the artifact's score, measured through its engine, against a floor."""

from __future__ import annotations

from toolkit.errors import InputError
from toolkit.gates import Verdict

NAME = "score"
DEFAULT = "99%"


def parse(text: str) -> tuple[float, bool]:
    """`--min-score`: "99%" of the float checkpoint's score → (0.99, True); "0.83" absolute → (0.83, False)."""
    try:
        relative = text.strip().endswith("%")
        value = float(text.strip().removesuffix("%")) / (100 if relative else 1)
    except ValueError as error:
        raise InputError(f"--min-score '{text}' is neither a number like 0.83 nor a share like 99%.") from error
    if not 0 <= value <= 1:
        raise InputError(f"--min-score '{text}' lies outside 0 to 1 (or 0% to 100%).")
    return value, relative


def floor(minimum: str, float_score: float) -> float:
    """The absolute score that `--min-score` asks for."""
    value, relative = parse(minimum)
    return value * float_score if relative else value


def check(score: float, float_score: float, minimum: str, score_name: str) -> Verdict:
    """Refuse a score below the floor."""
    least = floor(minimum, float_score)
    comparison = f"{score_name} {score:.4f}, the float checkpoint's is {float_score:.4f}, floor {least:.4f}"
    return Verdict(NAME, score >= least, f"{comparison} (--min-score {minimum})")
