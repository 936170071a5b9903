"""2:4 sparsity: of every four neighbouring weights along the input of a linear layer, two are zero.

The sparse tensor cores of NVIDIA GPUs from compute capability 8.0 on skip the zeros (Mishra et al., 2021). No other
processor gains: the shapes stay, and so does the file's size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from toolkit import architecture
from toolkit.errors import InputError

PATTERN = "2:4"
_GROUP, _KEPT = 4, 2


def is_2_4(weight: ArrayLike) -> bool:
    """Whether at most two of every four neighbouring weights along the last axis, the input, are not zero.

    `weight` is [outputs, inputs], of any dtype. False if the inputs are no multiple of four.
    """
    array = np.asarray(weight)
    if array.shape[-1] % _GROUP:
        return False
    return bool((np.count_nonzero(array.reshape(-1, _GROUP), axis=1) <= _KEPT).all())


def weight_names(model: Any) -> list[str]:
    """The weights that become sparse: those of the linear layers within the encoder's layers.

    Embeddings, pooler and classifier stay dense. Raises InputError for an unknown architecture, and for a layer whose
    input is no multiple of four.
    """
    import torch

    kind = architecture.family(model.config.model_type)
    names = []
    for name, module in model.named_modules():
        below = name.removeprefix(f"{model.base_model_prefix}.")
        if not isinstance(module, torch.nn.Linear) or not re.match(kind.layer, below):
            continue
        if module.in_features % _GROUP:
            raise InputError(
                f"{name} has {module.in_features} inputs; {PATTERN} sparsity needs a multiple of {_GROUP}."
            )
        names.append(f"{name}.weight")
    return names


def thin(model: Any, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Set the two least important of every four weights to zero, in place, and keep them there while training goes on.

    `scores` has a tensor of each weight's shape by the weight's name; of equal scores the first ones stay. Returns the
    counts for the receipt.
    """
    import torch

    total = removed = 0
    for name, score in scores.items():
        weight = model.get_parameter(name)
        groups = score.reshape(-1, _GROUP)
        best = groups.argsort(dim=1, descending=True, stable=True)[:, :_KEPT]
        mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True).reshape(weight.shape)
        with torch.no_grad():
            weight.mul_(mask)
        # A weight at zero whose gradient is always zero has no moments and no decay: AdamW leaves it exactly there.
        weight.register_hook(lambda gradient, mask=mask: gradient * mask.to(gradient.device))
        total += weight.numel()
        removed += int(weight.numel() - mask.sum())
    return {"pattern": PATTERN, "matrices": len(scores), "weights": total, "removed": removed}


def check_written(folder: Path, names: list[str]) -> None:
    """Look at the weights that were written: all of `names` must have the pattern. Raises RuntimeError."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="numpy") as stored:
        broken = [name for name in names if not is_2_4(stored.get_tensor(name))]
    if broken:
        raise RuntimeError(f"{len(broken)} weights lost the {PATTERN} pattern, for example {broken[0]}")
