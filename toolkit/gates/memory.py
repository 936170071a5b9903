"""Memory: what a process needs at most that runs the artifact through its engine, against a budget; on a
microcontroller, what the interpreter needs beside the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.gates import Verdict

NAME = "memory"
PROCESS = "at most in a Python process that runs it here"
ARENA = "in the interpreter's arena"


def check(
    needed_bytes: int | None, max_memory_mb: float | None, given_by: str = "--max-memory", how: str = PROCESS
) -> Verdict:
    """Refuse what needs more memory than a budget (1 MB = 10^6 bytes): by default the peak resident set of a process.

    None: it could not be measured, which refuses if there is a budget. `given_by` says where the budget comes from,
    `how` what needs the memory.
    """
    said = "unknown" if needed_bytes is None else _text(needed_bytes)
    if max_memory_mb is None:
        return Verdict(NAME, True, f"{said}, no budget given")
    if needed_bytes is None:
        return Verdict(NAME, False, f"not measured ({given_by} {max_memory_mb:g} MB)")
    return Verdict(NAME, needed_bytes <= max_memory_mb * 1e6, f"{said} {how} ({given_by} {max_memory_mb:g} MB)")


def _text(size: int) -> str:
    return f"{size / 1e6:.0f} MB" if size >= 1e7 else f"{size / 1e3:.0f} kB"


def of_a_microcontroller(artifact: Mapping[str, Any], has_flash: bool) -> tuple[int, str]:
    """(bytes of RAM that a LiteRT file needs there, what they are): the arena, and without flash the file.

    Without the interpreter of TensorFlow Lite Micro only the activations are known, the largest part of the arena.
    """
    micro = artifact.get("micro")
    needed = micro["arena_bytes"] if micro else artifact["activation_bytes"]
    known = f"tflite-micro {micro['version']}" if micro else "the package tflite-micro tells the rest of it"
    how = f"{'' if micro else 'of activations '}{ARENA} ({known})"
    return (needed, how) if has_flash else (needed + artifact["size_bytes"], f"{how}, with the file")


def check_arena(
    artifact: Mapping[str, Any], has_flash: bool, max_memory_mb: float | None, given_by: str = "--max-memory"
) -> Verdict:
    """Refuse a LiteRT file that TensorFlow Lite Micro does not run, or that needs more than a budget there."""
    micro = artifact.get("micro")
    if micro and "error" in micro:
        return Verdict(NAME, False, f"tflite-micro {micro['version']} does not run it: {micro['error']}")
    needed, how = of_a_microcontroller(artifact, has_flash)
    return check(needed, max_memory_mb, given_by, how)
