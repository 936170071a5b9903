"""How fast weights learn: warm-up and decay over the steps, shares over the layers."""

from __future__ import annotations

import re
from collections.abc import Sequence


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Linear from 0 to 1 over `warmup` steps, then linear to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


_LAYER = re.compile(r"(?:^|\.)(?:layers?|stages|blocks|features)\.(\d+)\.")


def rate_shares(names: Sequence[str], decay: float) -> dict[str, float]:
    """The share of the learning rate at which each weight learns (Howard and Ruder, 2018): 1 for the head, `decay` for
    the last layer of the body, its square for the one before, and so on; the embeddings least."""
    layers = {name: int(match[1]) for name in names if (match := _LAYER.search(name))}
    deepest = max(layers.values(), default=-1)
    if decay == 1.0 or deepest < 0:
        return dict.fromkeys(names, 1.0)
    powers = {
        name: deepest + 1 - layers[name] if name in layers else deepest + 2 if "embedding" in name.lower() else 0
        for name in names
    }
    return {name: decay**power for name, power in powers.items()}
