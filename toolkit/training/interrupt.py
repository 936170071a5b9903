"""Ctrl-C, as a training takes it: end well, and keep what was learned."""

from __future__ import annotations

import signal
from typing import Any


class Interrupt:
    """Turns the first SIGINT into a flag that the training loop looks at. `toolkit.child` starts stages with the
    signal blocked, so that one sent while they load is kept for here."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self

    def _note(self, *_: Any) -> None:
        self.requested = True

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._previous)
