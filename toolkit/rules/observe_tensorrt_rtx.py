"""Which ONNX operators the parser of TensorRT-RTX has, asked in a process of its own: it may crash."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from toolkit.errors import InputError, missing_extra

_PROBE = Path(__file__).with_name("probe_tensorrt_rtx.py")


def operators(python: str) -> dict[str, dict[str, Any]]:
    """Every operator of the ONNX standard, supported or not, as the package in the environment of `python` says."""
    try:
        import onnx.defs
    except ImportError as error:
        raise missing_extra("onnx", "convert", "Observing TensorRT-RTX") from error
    names = sorted({schema.name for schema in onnx.defs.get_all_schemas() if not schema.domain})
    try:
        done = subprocess.run([python, str(_PROBE), *names], capture_output=True, text=True, check=False)
    except OSError as error:
        raise InputError(f"Cannot run {python}: {error.strerror}.") from error
    answers = dict(line.split() for line in done.stdout.splitlines() if line.endswith((" yes", " no")))
    if set(answers) != set(names):
        said = done.stderr.strip().splitlines()[-1:] or [f"it ended with code {done.returncode}"]
        raise InputError(f"{python} cannot ask TensorRT-RTX: {said[0]}")
    return {name: {"supported": answer == "yes"} for name, answer in answers.items()}
