"""`preflight`: what can be told of a file without its device, by the rule table of what runs or compiles it there; of a
typed ONNX file for TensorRT also by NVIDIA's parser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from toolkit import rules
from toolkit.rules import litert_graph, onnx_graph
from toolkit.stages import Context
from toolkit.storage import write_json
from toolkit.tensorrt import preflight

VERSION = 1
LIBRARIES = ("onnx", "ai-edge-litert", preflight.PACKAGE)


class Parameters(BaseModel):
    """The rule table of the target's runtime (None: the profile names none), its hash, so that a corrected table is
    asked anew, and how long the parser may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: str | None
    rules_sha256: str | None
    timeout_seconds: float = preflight.TIMEOUT_SECONDS


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write `preflight.json`: the nodes that the table refuses, and the parser's answer (None: there is no table, the
    parser is not installed, or it is no file for it)."""
    artifact = json.loads((source / "artifact.json").read_text(encoding="utf-8"))
    model = source / artifact["path"]
    context.progress(0, 2, "rule table")
    found = _by_the_table(model, artifact["format"], parameters.rules) if parameters.rules else None
    context.progress(1, 2, "NVIDIA's parser")
    asks = artifact["format"] == "onnx" and preflight.is_available()
    asked = preflight.ask(model, parameters.timeout_seconds).as_dict() if asks else None
    report = {"rules": found, "parser": asked}
    write_json(output / "preflight.json", report)
    context.progress(2, 2, "done")
    return report


def _by_the_table(model: Path, form: str, name: str) -> dict[str, Any]:
    table = rules.load(name)
    found = (litert_graph if form == "litert" else onnx_graph).check(model, table)
    return {
        "table": table.name,
        "title": table.title,
        "nodes": found.nodes,
        "refused": [finding.as_dict() for finding in found.refused],
        "unknown": found.unknown,
    }
