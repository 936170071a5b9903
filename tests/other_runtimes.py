"""A runtime that cannot be installed beside this toolkit's own: in a folder of the tests' cache, made once. A test that
needs it is skipped where it cannot be installed."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

TFLITE_RUNTIME = ("tflite-runtime==2.14.0", "numpy<2", "tokenizers", "pillow")


def tflite_runtime(cache: Path) -> Path:
    """The Python of an environment with the last tflite-runtime and what a bundle needs besides."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the last tflite-runtime has wheels for Python 3.11 and older ones")

    def make(folder: Path) -> list[str]:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        return ["--python", str(folder / "bin" / "python"), "install", "-q", *TFLITE_RUNTIME]

    return _made(cache / "tflite-runtime-2.14.0", make) / "bin" / "python"


def _made(folder: Path, arguments: Callable[[Path], list[str]]) -> Path:
    """The folder, after pip has been run with the arguments for it, unless it was before."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:  # tests run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            given = arguments(folder)
            if subprocess.run([sys.executable, "-m", "pip", *given], capture_output=True, check=False).returncode:
                shutil.rmtree(folder, ignore_errors=True)
                pytest.skip(f"cannot be installed here: {folder.name}")
            (folder / "complete").touch()
    return folder
