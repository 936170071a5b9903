"""The whole way on a real, small model: what the bundle says is what the artifact does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import toolkit
from tests.conftest import TRAINING, TRAINING_OPTIONS, run_toolkit


def test_conversion_is_accepted_and_scored_on_the_artifact(converted: Any, bundle: Path) -> None:
    summary = converted.summary
    assert summary["accepted"]
    assert summary["score"]["before"] > 0.6  # it has learned something, so its labels mean something
    assert summary["score"]["after"] >= 0.97 * summary["score"]["before"]
    assert summary["score"]["examples"] == summary["data"]["splits"]["eval"]
    assert {c["name"] for c in summary["candidates"]} == {
        "litert fp32", "litert int8", "onnxruntime fp32", "onnxruntime int8",
    }  # fmt: skip
    assert all(c["latency"]["kind"] == "measured" for c in summary["candidates"])


def test_bundle_answers_raw_text(bundle: Path) -> None:
    classify = toolkit.load(bundle)
    one = classify("a quiet, brilliant film")
    assert one["label"] in ("negative", "positive")
    assert abs(sum(one["scores"].values()) - 1) < 1e-9
    assert classify(["dull", "bright"])[1] == classify("bright")


def test_second_run_takes_everything_from_the_cache(
    encoder: Path, reviews: Path, converted: Any, tmp_path: Path
) -> None:
    again = toolkit.convert(
        encoder, target="host", data=str(reviews), output=str(tmp_path / "again"), min_score="97%", **TRAINING
    )
    receipts = [json.loads(path.read_text()) for path in sorted((again.path / "receipts").glob("*.json"))]
    assert all(receipt["cached"] for receipt in receipts)
    assert again.manifest["content_hash"] == converted.manifest["content_hash"]


def test_second_target_reuses_the_finetuning_and_prints_estimates(
    encoder: Path, reviews: Path, converted: Any, tmp_path: Path
) -> None:
    output = tmp_path / "pi"
    done = run_toolkit(
        "convert", encoder, "--data", reviews, "--target", "raspberry-pi-5", *TRAINING_OPTIONS, "--min-score", "97%",
        "-o", output,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "finetune (from the cache)" in done.stderr
    assert "estimate" in done.stdout
    assert json.loads((output / "manifest.json").read_text())["metrics"]["latency"]["after"]["kind"] == "estimate"
