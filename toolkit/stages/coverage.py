"""`coverage`: how much of an artifact runs where the target's engine should run it, by a rule table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from toolkit import coverage, rules
from toolkit.stages import Context
from toolkit.storage import write_json

VERSION = 2  # raised too when `toolkit.coverage` or the rules that it asks judge a file otherwise
LIBRARIES = ("onnx", "onnxruntime", "ai-edge-litert")  # onnxruntime: shapes that onnx does not infer


class Parameters(BaseModel):
    """The rule table, its hash, so that a corrected table is asked anew, and the sizes of the artifact's dynamic axes
    by name, at which multiply-adds and bytes are counted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rules: str
    rules_sha256: str
    sizes: dict[str, int] = {}


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write `coverage.json`: `toolkit.coverage.Coverage` as a dictionary."""
    artifact = json.loads((source / "artifact.json").read_text(encoding="utf-8"))
    found = coverage.of(source / artifact["path"], rules.load(parameters.rules), parameters.sizes).as_dict()
    write_json(output / "coverage.json", found)
    context.progress(1, 1, "done")
    return found
