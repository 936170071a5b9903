"""Memory: what a process needs at most that runs the artifact through its engine, against a budget."""

from __future__ import annotations

from toolkit.gates import Verdict

NAME = "memory"


def check(peak_rss_bytes: int | None, max_memory_mb: float | None, given_by: str = "--max-memory") -> Verdict:
    """Refuse a peak resident set above a budget (1 MB = 10^6 bytes). None: it could not be measured, which
    refuses if there is a budget. `given_by` says where the budget comes from."""
    if max_memory_mb is None:
        known = "unknown" if peak_rss_bytes is None else f"{peak_rss_bytes / 1e6:.0f} MB"
        return Verdict(NAME, True, f"{known}, no budget given")
    if peak_rss_bytes is None:
        return Verdict(NAME, False, f"not measured ({given_by} {max_memory_mb:g} MB)")
    megabytes = peak_rss_bytes / 1e6
    return Verdict(
        NAME,
        megabytes <= max_memory_mb,
        f"{megabytes:.0f} MB at most in a Python process that runs it here ({given_by} {max_memory_mb:g} MB)",
    )
