"""Economy: a stage of the compression chain pays if what comes out is measurably faster, or smaller."""

from __future__ import annotations

from toolkit.bench.statistics import Comparison
from toolkit.gates import Verdict
from toolkit.gates.speed import Latency

NAME = "economy"
LEAST_SMALLER = 0.02  # of the size before
MOST_SLOWER = 0.05  # of the time before, for what is smaller: fewer tokens in a vocabulary are more in a text


def check(
    size_before: int,
    size_after: int,
    latency_before: Latency | None,
    latency_after: Latency | None,
    against_before: Comparison | None,
) -> Verdict:
    """Refuse what is neither faster nor smaller by 2 %, and what is slower by more than 5 %. Sizes in bytes.

    Measured latencies are compared by the interval of their ratio, estimates by value.
    """
    smaller = 1 - size_after / size_before
    reason = f"{size_before / 1e6:.2f} → {size_after / 1e6:.2f} MB"
    faster = slower = False
    if against_before is not None:
        faster, slower = against_before.verdict == "faster", against_before.low > 1 + MOST_SLOWER
        ratio, low, high = against_before.ratio, against_before.low, against_before.high
        reason += f", {latency_before} → {latency_after}: {ratio:.2f}x the time ({low:.2f}-{high:.2f})"
    elif latency_before is not None and latency_after is not None:
        faster = latency_after.ms < latency_before.ms
        slower = latency_after.ms > latency_before.ms * (1 + MOST_SLOWER)
        reason += f", {latency_before} → {latency_after}"
    passed = not slower and (faster or smaller >= LEAST_SMALLER)
    if not passed:
        reason += "; slower" if slower else "; neither faster nor smaller"
    return Verdict(NAME, passed, reason)
