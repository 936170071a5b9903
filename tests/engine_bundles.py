"""Bundles for one engine each, of the encoder and sentences of the fixture `converted`, whose stages they reuse."""

from __future__ import annotations

from pathlib import Path

import toolkit
from tests.conftest import TRAINING
from toolkit.devices import local

ENGINES = ("litert", "onnxruntime", "openvino", "executorch")
# ExecuTorch's Python bindings are linked with torch; a device has its C++, Java or Swift runtime.
WITHOUT_TORCH = ("litert", "onnxruntime", "openvino")

# A board that this machine does not stand for and that names no peaks: nothing is measured, so the smaller file wins.
_TARGET = """\
schema_version: 1
name: {engine}-board
title: A board with {engine} only
kind: board
cpu: {{model: any, architecture: {architecture}, isa: [], cores: 1}}
engines:
  - {{name: {engine}, precisions: [fp32, int8]}}
sources:
  - {{covers: [cpu], source: made up for a test, confidence: recalled}}
"""


def engine_bundle(engine: str, encoder: Path, reviews: Path) -> Path:
    """The bundle for `engine`, made once per session. Read it only; copy it to change it."""
    folder = reviews.parent / f"{engine}-board"
    if not (folder / "bundle").exists():
        folder.mkdir()
        profile = folder / f"{engine}-board.yaml"
        other = "aarch64" if local.architecture() == "x86_64" else "x86_64"
        profile.write_text(_TARGET.format(engine=engine, architecture=other), encoding="utf-8")
        output = str(folder / "bundle")
        toolkit.convert(encoder, str(profile), data=str(reviews), output=output, min_score="97%", **TRAINING)
    return folder / "bundle"
