"""A time that is not known exactly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Seconds:
    """What is likely, and what bounds it. Errors of one model's operations go the same way, so bounds add up."""

    low: float
    likely: float
    high: float

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(self.low + other.low, self.likely + other.likely, self.high + other.high)

    def times(self, factor: float) -> Seconds:
        return Seconds(self.low * factor, self.likely * factor, self.high * factor)


def larger(a: Seconds, b: Seconds) -> Seconds:
    """The longer of two things that happen at the same time."""
    return Seconds(max(a.low, b.low), max(a.likely, b.likely), max(a.high, b.high))


NOTHING = Seconds(0.0, 0.0, 0.0)
