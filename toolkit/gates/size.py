"""Size: the artifact's bytes against a budget, and against its float sibling."""

from __future__ import annotations

from toolkit.gates import Verdict

NAME = "size"


def check(size_bytes: int, max_size_mb: float | None, given_by: str = "--max-size") -> Verdict:
    """Refuse an artifact above a budget (1 MB = 10^6 bytes). `given_by` says where the budget comes from."""
    megabytes = size_bytes / 1e6
    if max_size_mb is None:
        return Verdict(NAME, True, f"{megabytes:.1f} MB, no budget given")
    return Verdict(NAME, megabytes <= max_size_mb, f"{megabytes:.1f} MB ({given_by} {max_size_mb:g} MB)")
