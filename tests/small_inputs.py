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


_SIZES = {"vocab_size": 200, "max_position_embeddings": 64, "pad_token_id": 0, "num_labels": 3}
_WIDE = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96}
# model_type → config, one per family of architectures.
ENCODERS: dict[str, dict[str, int]] = {
    "bert": _WIDE,
    "roberta": {**_WIDE, "pad_token_id": 1, "max_position_embeddings": 66},
    "electra": {**_WIDE, "embedding_size": 64},
    "distilbert": {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 96},
}


def random_encoder(kind: str) -> Any:
    """A small classifier with random weights, of three labels, four layers and 200 tokens."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**_SIZES, **ENCODERS[kind]})
    return AutoModelForSequenceClassification.from_config(config).eval()


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


def one_layer(folder: Path, dropout: float = 0.1) -> Path:
    """A narrow encoder with one layer of random weights and the real tokenizer: an epoch takes a moment."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo.find().model / name, folder / name)
    return folder
