"""How far the validation of a TensorRT candidate reached.

A rung says what was looked at, not how well it went: only an engine that was built on the device (L3) or measured
there (L4) may be called verified. An engine that TensorRT-RTX builds without a GPU does not reach L3: it never ran.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.gates import Verdict, classes, operators, parity, score
from toolkit.storage import sha256_file
from toolkit.tensorrt.recipe import ENGINES

RUNGS = {
    "L0": "operators, number formats and quantization by the rule table of the target's TensorRT",
    "L1": "NVIDIA's ONNX parser",
    "L2": "answers of the same ONNX file on ONNX Runtime's CPU kernels",
    "L3": "engine built on the device",
    "L4": "measured on the device",
}


def of(preflight: Mapping[str, Any], verdicts: Sequence[Verdict], examples: int | None) -> dict[str, Any]:
    """The rung of a candidate and the steps behind it, from the report of the stage `preflight` and the gates' verdicts
    on it; `examples` is how many it answered."""
    gates = {verdict.gate: verdict for verdict in verdicts}
    steps: dict[str, dict[str, Any]] = {}
    if preflight["rules"]:
        found = operators.check(preflight["rules"])
        steps["L0"] = {"passed": found.passed, "detail": found.reason}
    if asked := preflight["parser"]:
        passed = {"accepted": True, "refused": False}.get(asked["status"])
        steps["L1"] = {"passed": passed, "detail": asked["reason"]}
    answered = [gates[name] for name in (parity.NAME, score.NAME, classes.NAME) if name in gates]
    if answered:
        shown = next((verdict for verdict in answered if not verdict.passed), answered[0])
        steps["L2"] = {"passed": shown.passed, "detail": f"{examples} examples; {shown.reason}"}
    return {"rung": reached(steps), "steps": steps}


def with_engines(validation: Mapping[str, Any] | None, folder: Path, onnx: Path) -> dict[str, Any] | None:
    """The validation of a bundle with the engine that was built on the device since, if its folder has one of this very
    ONNX file: rung L3."""
    if validation is None:
        return None
    for engine in sorted((folder / ENGINES).glob("*.json")):
        try:
            known = json.loads(engine.read_text(encoding="utf-8"))
            of_this = known["built_from"]["onnx_sha256"] == sha256_file(onnx)
            whole = known["engine_sha256"] == sha256_file(engine.with_name(known["engine"]))
            if known["on_device"] and of_this and whole:
                return with_engine(validation, known)
        except (OSError, ValueError, KeyError, TypeError):  # a note that build_engine.py did not write
            continue
    return dict(validation)


def with_engine(validation: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The validation with an engine that build_engine.py built on the device; `known` is its report."""
    made = known["built_from"]
    by = f"{made['device']}, compute capability {made['compute_capability']}, TensorRT {made['version']}"
    steps = {**validation["steps"], "L3": {"passed": True, "detail": f"{known['typing']}; {by}"}}
    return {"rung": reached(steps), "steps": steps}


def reached(steps: Mapping[str, Mapping[str, Any]]) -> str | None:
    """The highest rung that was passed; None if none was. A step is `{"passed": True | False | None, "detail": str}`:
    None is a step that gave no answer. Of the rungs without the device, one above a refused one does not count; what
    the device did counts, whatever was expected of it."""
    best = None
    for rung in ("L0", "L1", "L2"):
        passed = steps.get(rung, {}).get("passed")
        if passed is False:
            break
        if passed:
            best = rung
    on_device = [rung for rung in ("L3", "L4") if steps.get(rung, {}).get("passed")]
    return on_device[-1] if on_device else best


def rows(steps: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """One row per rung: its name, what it looks at, the outcome, and more about that."""
    words = {True: "passed", False: "refused", None: "not known"}
    made = []
    for rung, what in RUNGS.items():
        step = steps.get(rung)
        made.append((rung, what, words[step["passed"]] if step else "not done", step["detail"] if step else ""))
    return made


def sentence(validation: Mapping[str, Any]) -> str:
    """The rung in words, for people."""
    rung = validation["rung"]
    if rung is None:
        return "Validation: no rung was reached"
    said = f"Validation rung {rung} of L4: {RUNGS[rung]}"
    return said if rung in ("L3", "L4") else f"{said}; nothing ran on the device"
