"""Images and networks for the tests: nothing downloaded, nothing committed.

The photographs come with scikit-image. The network is a few convolutions with the parts that real ones have: depthwise
ones, norms, a residual, a pool with padding.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NETWORK = """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, values):
        return values + self.mix(torch.relu(self.norm(self.depthwise(values))))


class Network(nn.Module):
    def __init__(self, classes, channels, width):
        super().__init__()
        first = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        # Padding counts: what is pooled may all be negative.
        self.stem = nn.Sequential(first, nn.BatchNorm2d(width), nn.MaxPool2d(3, stride=1, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


def build(classes=3, channels=3, width=48):
    return Network(classes, channels, width)


def broken():
    raise RuntimeError("no network today")


def not_a_network():
    return 7
"""
CLASSES = ("dots", "stripes", "waves")


def network_file(folder: Path) -> Path:
    """A Python file with the functions `build`, `broken` and `not_a_network`."""
    path = folder / "network.py"
    path.write_text(NETWORK, encoding="utf-8")
    return path


def checkpoint(folder: Path, spec: dict[str, Any], **arguments: int) -> Path:
    """The network as a checkpoint folder whose norms have seen something. `spec` is its preprocessing, `arguments` are
    those of `build`; torch's seed decides its weights."""
    import torch

    from toolkit import modules, network, tasks

    torch.manual_seed(0)
    code = modules.imported(f"{network_file(folder)}:build", None, folder / "cache", False)
    if arguments:
        config = json.loads((code / "config.json").read_text())
        (code / "config.json").write_text(json.dumps({**config, "arguments": arguments}))
    model = network.load(code, tasks.get("image-classification"), list(CLASSES), spec)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    (folder / "model").mkdir()
    model.save_pretrained(folder / "model")
    (folder / "model" / "preprocessor.json").write_text(json.dumps(spec))
    return folder / "model"


def pattern(kind: str, generator: Any, size: int = 24) -> Any:
    """A noisy grey picture of a kind, uint8[size, size], that a small network learns to tell from the others."""
    y, x = np.mgrid[:size, :size]
    phase, pitch = generator.uniform(0, 6), generator.uniform(3, 5)
    if kind == "dots":
        values = (np.sin(x * 6.28 / pitch + phase) > 0.5) & (np.sin(y * 6.28 / pitch + phase) > 0.5)
    elif kind == "stripes":
        values = np.sin(x * 6.28 / pitch + phase) > 0
    else:
        values = np.sin(y * 6.28 / pitch + 2 * np.sin(x / 3) + phase) > 0
    noisy = 60 + 130 * values + generator.normal(0, 25, (size, size))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def image_folder(folder: Path, count: int, seed: int = 0) -> Path:
    """A folder per class with `count` PNG files each."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(pattern(kind, generator)).save(folder / kind / f"{number:03d}.png")
    return folder
