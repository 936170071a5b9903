"""Runs a bundle's builder script here, in a process of its own: TensorRT may crash, and may want much memory."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toolkit import child
from toolkit.errors import InputError, MissingDependencyError, RefusedError, ToolkitError
from toolkit.tensorrt import recipe as recipes

TIMEOUT_SECONDS = 3600.0
# By the exit code of build_engine.py.
ERRORS: dict[int, type[ToolkitError]] = {1: RefusedError, 2: InputError, 3: MissingDependencyError}


def rtx_is_available() -> bool:
    """Whether TensorRT-RTX is installed here."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


def describe() -> dict[str, Any]:
    """What this machine is, as the script sees it: device, compute capability, L4T, image."""
    done = subprocess.run([sys.executable, str(recipes.SCRIPT), "--describe"], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(
    folder: Path,
    arguments: Sequence[str],
    *,
    script: Path = recipes.SCRIPT,
    timeout_seconds: float = TIMEOUT_SECONDS,
    on_line: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Run the builder script on a folder that holds an ONNX file: what is known of the engine.

    `on_line` gets its lines of progress. Raises RefusedError if TensorRT builds none, InputError for a damaged folder
    or a builder that crashed or took too long, MissingDependencyError if no TensorRT is installed.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-build-") as aside:
        report = Path(aside) / "report.json"
        command = [sys.executable, "-P", str(script), "--folder", str(folder), "--report", str(report), *arguments]
        try:
            done = _stream(command, timeout_seconds, on_line)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"The build of the engine did not end within {timeout_seconds:g} s.") from error
        if not report.is_file():
            how = f"by signal {-done}" if done < 0 else f"with code {done}"
            raise InputError(f"The builder's process ended {how}; the memory may have run out.")
        known: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    if "error" in known:
        raise ERRORS[known["exit_code"]](known["error"])
    return known


def _stream(command: Sequence[str], timeout_seconds: float, on_line: Callable[[str], None]) -> int:
    """Run a command, hand its lines on as they come; its exit code. Raises TimeoutExpired after ending it."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=child.environment(),
        preexec_fn=child.bound(),
    ) as process:
        timer = threading.Timer(timeout_seconds, process.kill)
        timer.start()
        try:
            assert process.stdout is not None  # noqa: S101 - a pipe was asked for
            for line in process.stdout:
                on_line(line.strip())
            process.wait()
            if not timer.is_alive():
                raise subprocess.TimeoutExpired(command, timeout_seconds)
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        return process.returncode
