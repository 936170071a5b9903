"""Asks a runtime about a file, by a script in a process of its own: a runtime may crash on a file, or take too long."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from toolkit import child
from toolkit.errors import InputError
from toolkit.storage import explained


def ask(script: Path, model: Path, timeout_seconds: float, who: str) -> dict[str, Any] | str:
    """What `python script MODEL ANSWER.json` writes, or in words why there is no answer, with `who` was asked.

    Raises InputError if the model is not there.
    """
    if not model.is_file():
        raise InputError(f"{model} is not a file.")
    with explained(f"asking {who}", model), tempfile.TemporaryDirectory(prefix="toolkit-ask-") as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-P", str(script), str(model), str(answer)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=timeout_seconds,
                check=False,
                env=child.environment(),
                preexec_fn=child.bound(),
            )
        except subprocess.TimeoutExpired:
            return f"{who} did not end within {timeout_seconds:g} s"
        if done.returncode < 0:
            return f"{who}'s process ended by signal {-done.returncode}"
        if done.returncode or not answer.is_file():
            last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            return f"{who}'s process ended with code {done.returncode}" + "".join(f": {line}" for line in last)
        said: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return said
