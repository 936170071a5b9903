"""Whether NVIDIA's ONNX parser takes a file: asked of TensorRT-RTX, which needs no GPU for it.

TensorRT and TensorRT-RTX share the parser, so its answer holds for a Jetson too, as far as their releases agree; which
operators and opsets an older release has stands in the rule tables.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit import asking, rules
from toolkit.errors import missing_extra
from toolkit.rules import onnx_graph
from toolkit.rules.onnx_graph import Finding

PACKAGE = "tensorrt-rtx-cu12"
RULES = "tensorrt-rtx-1.7"
TIMEOUT_SECONDS = 120.0
_ASK = Path(__file__).with_name("ask_parser.py")


@dataclass(frozen=True)
class Preflight:
    """The parser's answer. `unknown`: it crashed, or took too long. `findings` are the rules of `RULES` that a refused
    file breaks."""

    status: Literal["accepted", "refused", "unknown"]
    parser: str  # name and version
    messages: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    @property
    def reason(self) -> str:
        """The answer in one line."""
        if self.status == "accepted":
            return f"accepted by the parser of {self.parser}"
        if self.status == "unknown":
            return f"not known: {self.messages[0]}"
        said = f"refused by the parser of {self.parser}: {self.messages[0] if self.messages else 'it gives no reason'}"
        if self.findings:
            first = self.findings[0]
            said += f" Rule {first.rule}: {first.reason}." + (f" Instead: {first.instead}." if first.instead else "")
        return said

    def as_dict(self) -> dict[str, Any]:
        return {
            "status": self.status,
            "parser": self.parser,
            "messages": self.messages,
            "rules": sorted({finding.rule for finding in self.findings}),
            "reason": self.reason,
        }


def is_available() -> bool:
    """Whether the parser is installed here."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


def ask(model: Path, timeout_seconds: float = TIMEOUT_SECONDS) -> Preflight:
    """Ask the parser about an ONNX file, in a process of its own: a crash is an unknown answer, not ours.

    Raises MissingDependencyError without the extra `tensorrt`, InputError if the file is not there.
    """
    said = answer(model, timeout_seconds)
    if isinstance(said, str):
        return Preflight("unknown", PACKAGE, [said])
    parser = f"TensorRT-RTX {said['version']}"
    if said["accepted"]:
        return Preflight("accepted", parser)
    findings = onnx_graph.check(model, rules.load(RULES)).refused
    return Preflight("refused", parser, [_message(error) for error in said["errors"]], _to_the_point(findings, said))


def answer(model: Path, timeout_seconds: float) -> dict[str, Any] | str:
    """What `ask_parser.py` says of an ONNX file, or in words why there is no answer. Raises as `ask` does."""
    if not is_available():
        raise missing_extra(PACKAGE, "tensorrt", "Asking NVIDIA's ONNX parser")
    return asking.ask(_ASK, model, timeout_seconds, "the parser")


def _message(error: dict[str, str]) -> str:
    """One of the parser's errors in a line. What follows its first one is a trace of how it got there."""
    first = next((line for line in error["said"].splitlines() if "Error Code" in line or "Assertion" in line), "")
    text = " ".join((first or error["said"]).split())
    where = f"{error['operator']} {error['node']}: " if error["operator"] else ""
    return f"{where}{text}".rstrip(".") + "."


def _to_the_point(findings: list[Finding], said: dict[str, Any]) -> list[Finding]:
    """The findings on nodes that the parser complains of first."""
    named = {error["node"] for error in said["errors"]}
    return sorted(findings, key=lambda finding: finding.node not in named)
