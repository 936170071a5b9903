"""Memory: what a process needs at most that runs the artifact through its engine, against a budget; on a
microcontroller, what the interpreter needs beside the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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


def check_arena(
    artifact: Mapping[str, Any], has_flash: bool, max_memory_mb: float | None, given_by: str = "--max-memory"
) -> Verdict:
    """Refuse a LiteRT file that TensorFlow Lite Micro does not run, or whose arena is above a budget. Without flash
    the file counts too.

    Without its interpreter only the activations are known, the largest part of the arena; the reason says so.
    """
    budget = "no budget given" if max_memory_mb is None else f"{given_by} {max_memory_mb:g} MB"
    micro = artifact.get("micro")
    if micro and "error" in micro:
        return Verdict(NAME, False, f"tflite-micro {micro['version']} does not run it: {micro['error']}")
    needed = micro["arena_bytes"] if micro else artifact["activation_bytes"]
    how = (
        f"the arena in tflite-micro {micro['version']}"
        if micro
        else ("activations alone; the package tflite-micro tells the whole arena")
    )
    if not has_flash:
        needed, how = needed + artifact["size_bytes"], f"the file and {how}"
    passed = max_memory_mb is None or needed <= max_memory_mb * 1e6
    return Verdict(NAME, passed, f"{needed / 1e3:.0f} kB of memory, {how} ({budget})")
