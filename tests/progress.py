"""Progress that does something to a device while it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def on(word: str, action: Callable[[], Any]) -> Callable[[int, int, str], None]:
    """A progress that does something once, when it is told of `word`."""
    done: list[Any] = []

    def progress(_: int, __: int, text: str) -> None:
        if word in text and not done:
            done.append(action())

    return progress
