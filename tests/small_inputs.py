"""Inputs that take milliseconds to make: a checkpoint with a handful of weights, and data files for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import demo, stages

# Words of its own in each row, six of each class.
ROWS = [(f"row {number} tells of a film", str(number % 2)) for number in range(12)]


def tiny_checkpoint(folder: Path, *, labels: list[str] | None = None, **config: Any) -> Path:
    """A checkpoint folder that can be looked at and whose tokenizer is real: untrained, or trained on `labels`."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    described: dict[str, Any] = {"model_type": "bert", "architectures": ["BertModel"], "max_position_embeddings": 512}
    tensors = {"embeddings.word_embeddings.weight": np.arange(32, dtype=np.float32).reshape(8, 4)}
    if labels is not None:
        described["architectures"] = ["BertForSequenceClassification"]
        described["id2label"] = {str(index): name for index, name in enumerate(labels)}
        tensors["classifier.weight"] = np.zeros((len(labels), 4), dtype=np.float32)
    (folder / "config.json").write_text(json.dumps({**described, **config}), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    shutil.copy(demo.find().model / "tokenizer.json", folder / "tokenizer.json")
    return folder


def csv_text(rows: list[tuple[str, str]], header: str = "text,label") -> str:
    return "".join(f"{line}\n" for line in [header, *(f"{text},{label}" for text, label in rows)])


def json_lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def prepare(checkpoint: Path, data: Path, output: Path, seed: int = 0, **parameters: Any) -> dict[str, Any]:
    """Run the stage `prepare` in this process; its report."""
    module = stages.get("prepare")
    output.mkdir(parents=True)
    given = module.Parameters.model_validate({"data": str(data), **parameters})
    return module.run(checkpoint, output, given, stages.Context(task="text-classification", seed=seed))
