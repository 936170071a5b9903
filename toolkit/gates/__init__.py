"""Gates: checks that must hold for a candidate to be kept. One file each, one `check` each.

A gate looks at what was measured and says pass or refuse, with the reason in words. It measures nothing itself.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Verdict:
    """What a gate says of one candidate."""

    gate: str
    passed: bool
    reason: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
