"""Exported artifacts of the tests' two-layer classifier, and their answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import engines, steps, tasks
from toolkit import export as formats
from toolkit.stages import quantize

LENGTHS = [16, 24, 32, 64]
MAX_LENGTH = 64


def export(checkpoint: Path, folder: Path, engine: str) -> Path:
    """The float artifact; every test module of a session asks for the same ones, so they are made once."""
    steps.export(str(checkpoint), str(folder / engine), engine=engine, lengths=LENGTHS)
    return folder / engine


def description(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    return read


def encode(folder: Path, texts: Sequence[str]) -> list[Any]:
    artifact = description(folder)
    encoder = tasks.get("text-classification").encoder(
        folder,
        {"max_length": MAX_LENGTH},
        inputs=[tensor["name"] for tensor in artifact["inputs"]],
        lengths=artifact["lengths"],
    )
    return [encoder(text) for text in texts]


def answers(folder: Path, texts: Sequence[str]) -> Any:
    """Logits float32[n, 2] through the artifact's own engine."""
    artifact = description(folder)
    with warnings.catch_warnings(action="ignore"):  # TensorRT artifacts run on another engine here, and say so
        engine = engines.get(artifact["engine"]).load(folder / artifact["path"])
    name = artifact["outputs"][0]["name"]
    return np.asarray([engine.run(arrays)[name][0] for arrays in encode(folder, texts)])


def quantized(source: Path, output: Path, examples: Sequence[str] = (), **parameters: Any) -> Path:
    """`source` in fewer bits, made in this process, with its tokenizer beside it."""
    output.mkdir(parents=True)
    artifact = description(source)
    given = quantize.Parameters(**parameters)
    made, _ = formats.get(artifact["format"]).quantize(source, output, artifact, given, encode(source, examples))
    (output / "artifact.json").write_text(json.dumps(made))
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (output / name).write_bytes((source / name).read_bytes())
    return output
