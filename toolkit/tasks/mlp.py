"""The network `mlp` for tables: linear layers with a rectifier between them."""

from __future__ import annotations

from typing import Any

import torch


def build(features: int, classes: int = 2, hidden: tuple[int, ...] = (64, 32), dropout: float = 0.1) -> Any:
    """A perceptron from float32[n, features] to logits float32[n, classes]."""
    layers: list[Any] = []
    for size in hidden:
        layers += [torch.nn.Linear(features, size), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
        features = size
    return torch.nn.Sequential(*layers, torch.nn.Linear(features, classes))
