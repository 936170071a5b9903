"""Which operators LiteRT's XNNPACK delegate takes, in which number formats and with which of them constant.

A file of one operator is made for each form in which it may come (`toolkit.rules.litert_samples`); the interpreter of
the environment is asked whether the delegate takes it. Where it does, files that break one constraint each tell which
of them the delegate has.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from toolkit.errors import missing_extra
from toolkit.rules import litert_samples as samples
from toolkit.rules.observe_litert import answers

_PROBE = Path(__file__).with_name("probe_xnnpack.py")


def operators(python: str) -> dict[str, dict[str, Any]]:
    """Operators with their forms and constraints, as the runtime of the interpreter `python` has them."""
    try:
        import ai_edge_litert  # noqa: F401
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Observing XNNPACK") from error
    names = [*samples.SAMPLES, *samples.VARIABLES]
    forms = _taken(
        python, {f"{name}.{form}": samples.usual(name, form) for name in names for form in samples.forms(name)}
    )
    found: dict[str, dict[str, Any]] = {}
    broken: dict[str, bytes] = {}
    constraints: dict[str, dict[str, Any]] = {}
    for name in names:
        known = [form for form in samples.forms(name) if f"{name}.{form}" in forms]
        found[name] = {"dtypes": known} if known else {"supported": False}
        for number, (constraint, content) in enumerate(samples.breaking(name, known[0]) if known else ()):
            broken[f"{name}.{number:02}"], constraints[f"{name}.{number:02}"] = content, constraint
    kept = _taken(python, broken)
    for key, constraint in constraints.items():
        if key not in kept:
            found[key.partition(".")[0]].setdefault("constraints", []).append(constraint)
    return found


def _taken(python: str, files: dict[str, bytes]) -> set[str]:
    """Those of the files, by name, that the delegate takes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / f"{name.replace(' ', '_')}.tflite").write_bytes(content)
        said = answers(python, _PROBE, Path(folder))
    return {name for name in files if said.get(f"{name.replace(' ', '_')}.tflite")}
