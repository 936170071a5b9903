"""MobileNetV2 (Sandler et al., 2018), with the weight names under which its ImageNet weights are published.

toolkit finetune benchmarks/mobilenet_v2.py:build --weights mobilenet_v2.pth --allow-pickle --data photos/ ...
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Of each stage: how much wider its blocks are inside, its channels, its blocks, the stride of the first one.
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with its norm and ReLU6."""
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class Block(nn.Module):  # type: ignore[misc]  # torch has no types here
    """An inverted residual: widen, filter each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.adds = stride == 1 and inputs == outputs
        widen = [convolution(inputs, hidden, kernel=1)] if expansion > 1 else []
        narrow = [nn.Conv2d(hidden, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*widen, convolution(hidden, hidden, stride=stride, groups=hidden), *narrow)

    def forward(self, values: Any) -> Any:
        """float32[n, inputs, h, w] → float32[n, outputs, h / stride, w / stride]."""
        return values + self.conv(values) if self.adds else self.conv(values)


class MobileNetV2(nn.Module):  # type: ignore[misc]
    """The network of width 1."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        channels, layers = 32, [convolution(3, 32, stride=2)]
        for expansion, outputs, count, stride in STAGES:
            for index in range(count):
                layers.append(Block(channels, outputs, stride if index == 0 else 1, expansion))
                channels = outputs
        self.features = nn.Sequential(*layers, convolution(channels, 1280, kernel=1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, images: Any) -> Any:
        """float32[n, 3, h, w] → logits float32[n, classes]."""
        return self.classifier(self.features(images).mean((2, 3)))


def build(classes: int = 1000) -> nn.Module:
    """The network with random weights."""
    torch.manual_seed(0)
    return MobileNetV2(classes)
