"""The README's first command on the real model and data, then two more targets that reuse its fine-tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests.conftest import run_toolkit


def convert_demo(target: str, folder: Path) -> tuple[dict[str, Any], str]:
    """(the bundle's manifest, what was printed)."""
    output = folder / f"demo-{target}"
    done = run_toolkit("convert", "demo", "--target", target, "-o", output, timeout=1500)
    assert done.returncode == 0, done.stderr
    return json.loads((output / "manifest.json").read_text()), done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def host(folder: Path) -> tuple[dict[str, Any], str]:
    return convert_demo("host", folder)


def test_demo_reaches_its_score_on_the_exported_artifact(host: tuple[dict[str, Any], str], folder: Path) -> None:
    manifest, printed = host
    metrics = manifest["metrics"]
    assert manifest["accepted"]
    assert metrics["score"]["examples"] == metrics["data"]["splits"]["eval"] > 1500
    assert metrics["score"]["after"] >= 0.83
    assert metrics["latency"]["after"]["kind"] == "measured"
    assert metrics["latency"]["against_before"]["verdict"] == "faster"
    for word in ("accuracy", "size", "latency", "before", "after", "Candidates", "Report:", "Next:"):
        assert word in printed
    assert toolkit.load(folder / "demo-host")("a quiet, brilliant film")["label"] == "positive"


@pytest.mark.parametrize(("target", "engine"), [("jetson", "tensorrt"), ("raspberry-pi-5", "litert")])
def test_another_target_reuses_the_finetuning(
    host: tuple[dict[str, Any], str], folder: Path, target: str, engine: str
) -> None:
    manifest, printed = convert_demo(target, folder)
    assert "finetune (from the cache)" in printed
    assert manifest["engine"]["name"] == engine
    assert manifest["metrics"]["latency"]["after"]["kind"] == "estimate"
    assert "estimate" in printed
    assert manifest["metrics"]["score"]["before"] == host[0]["metrics"]["score"]["before"]
