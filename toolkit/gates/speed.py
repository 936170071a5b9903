"""Speed: a quantized build that is slower than the float build of the same engine does not pay, and is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from toolkit.bench.statistics import Comparison
from toolkit.gates import Verdict

NAME = "speed"
BUDGET_NAME = "latency budget"


@dataclass(frozen=True)
class Latency:
    """A latency in milliseconds and where it comes from. For an estimate `low` and `high` bound it."""

    ms: float
    kind: Literal["measured", "estimate"]
    low_ms: float | None = None
    high_ms: float | None = None

    def __str__(self) -> str:
        if self.kind == "measured":
            return f"{self.ms:.2f} ms"
        return f"estimate {self.low_ms:.2g}-{self.high_ms:.2g} ms"


def check(latency: Latency, sibling: Latency | None, against_sibling: Comparison | None) -> Verdict:
    """Refuse a candidate that is slower than its float sibling: by interval where measured, by value for an estimate.

    `sibling` is None for a float build.
    """
    if sibling is None:
        return Verdict(NAME, True, f"{latency}, the float build of its engine")
    if against_sibling is not None:
        slower = against_sibling.verdict == "slower"
        interval = f"{against_sibling.ratio:.2f}x its float build's time ({against_sibling.low:.2f}-"
        return Verdict(NAME, not slower, f"{latency}, {interval}{against_sibling.high:.2f})")
    return Verdict(NAME, latency.ms <= sibling.ms, f"{latency}, its float build: {sibling}")


def check_budget(latency: Latency | None, max_latency_ms: float | None, given_by: str = "--max-latency") -> Verdict:
    """Refuse a candidate above a budget; for an estimate the whole interval must lie above it to be refused.
    `given_by` says where the budget comes from. None: the latency is not known, which refuses if there is a budget."""
    if max_latency_ms is None:
        return Verdict(BUDGET_NAME, True, "no budget given")
    if latency is None:
        return Verdict(BUDGET_NAME, False, f"not known ({given_by} {max_latency_ms:g} ms)")
    value = latency.ms if latency.kind == "measured" else latency.low_ms or latency.ms
    return Verdict(BUDGET_NAME, value <= max_latency_ms, f"{latency} ({given_by} {max_latency_ms:g} ms)")
