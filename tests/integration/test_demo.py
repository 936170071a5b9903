"""The README's first command on the real model and data, with one epoch of its three. That other targets reuse its
fine-tuning is in tests/test_conversion.py, on two layers of it."""

from __future__ import annotations

import json
from pathlib import Path

import toolkit
from tests.conftest import run_toolkit


def test_demo_reaches_its_score_on_the_exported_artifact(tmp_path: Path) -> None:
    output = tmp_path / "demo-host"
    done = run_toolkit("convert", "demo", "--target", "host", "--epochs", "1", "-o", output, timeout=1500)
    assert done.returncode == 0, done.stderr
    printed = done.stdout + done.stderr
    metrics = json.loads((output / "manifest.json").read_text())["metrics"]
    assert metrics["score"]["examples"] == metrics["data"]["splits"]["eval"] > 1500
    assert metrics["score"]["after"] >= 0.83
    assert metrics["latency"]["after"]["kind"] == "measured"
    assert metrics["latency"]["against_before"]["verdict"] == "faster"
    for word in ("accuracy", "size", "latency", "before", "after", "Candidates", "Report:", "Next:"):
        assert word in printed
    assert toolkit.load(output)("a quiet, brilliant film")["label"] == "positive"
