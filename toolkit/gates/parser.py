"""Parser: NVIDIA's own check of an ONNX file (validation rung L1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.gates import Verdict

NAME = "parser"


def check(answer: Mapping[str, Any] | None) -> Verdict:
    """Refuse what the parser refuses. `answer` is the report of the stage `preflight`, its `parser`; None: it was not
    asked. An unknown answer is no refusal."""
    if answer is None:
        return Verdict(NAME, True, "not asked: it comes with the extra 'tensorrt', which is not installed")
    return Verdict(NAME, answer["status"] != "refused", answer["reason"])
