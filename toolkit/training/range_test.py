"""The learning-rate range test (Smith, 2017): a learning rate for a model and its data, found in some steps.

The rate grows from step to step by the same factor while the model learns. The loss falls, and rises again where steps
become too long: a tenth of the rate at which it was least is taken. The model is put back to where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.errors import InputError
from toolkit.stages import Context
from toolkit.training.examples import Examples, grouped_batches
from toolkit.training.losses import Loss

if TYPE_CHECKING:
    from toolkit.training.loop import Hyperparameters

STEPS = 100
LOWEST, HIGHEST = 1e-6, 1.0
_SMOOTHING = 0.95  # of the loss before in its running mean
_HOPELESS = 2.0  # times the least loss so far: the test ends there
_LEAST_FALL = 0.99  # times the first loss: less is noise
_SAFETY = 10.0


def find(
    model: Any, train: Examples, loss: Loss, parameters: Hyperparameters, context: Context
) -> tuple[float, list[dict[str, float]]]:
    """(the rate, the smoothed loss at every rate that was tried). The weights, norms' statistics and the random state
    of the model are those from before. Raises InputError if the loss never fell."""
    import torch

    kept = {name: value.detach().clone() for name, value in model.state_dict().items()}
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=LOWEST, weight_decay=parameters.weight_decay)
    trains, device = model.training, next(model.parameters()).device
    torch.manual_seed(context.seed)
    model.train()
    tried: list[dict[str, float]] = []
    mean = 0.0
    for step, indices in enumerate(_batches(train, parameters.batch_size, context.seed)):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=parameters.bf16):
            value = loss(model, train.batch(indices, device, 0))
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(learning, parameters.max_gradient_norm)
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * float(value.detach())
        smoothed = mean / (1 - _SMOOTHING ** (step + 1))
        if not math.isfinite(smoothed) or (tried and smoothed > _HOPELESS * min(each["loss"] for each in tried)):
            break
        tried.append({"rate": rate, "loss": smoothed})
        optimizer.step()
        context.progress(step + 1, STEPS, f"learning rate {rate:.1e}, loss {smoothed:.3f}")
    model.load_state_dict(kept)
    model.zero_grad(set_to_none=True)
    model.train(trains)
    torch.manual_seed(context.seed)
    best = min(range(len(tried)), key=lambda i: tried[i]["loss"], default=0)
    if not tried or tried[best]["loss"] > _LEAST_FALL * tried[0]["loss"]:
        raise InputError("The loss fell at no learning rate that was tried. Name one with --learning-rate.")
    return float(f"{tried[best]['rate'] / _SAFETY:.2g}"), tried


def _batches(train: Examples, size: int, seed: int) -> Iterator[list[int]]:
    """`STEPS` batches, epoch after epoch in another order."""
    left, epoch = STEPS, 0
    while left:
        for batch in grouped_batches(train.lengths, size, np.random.default_rng([seed, epoch, 2]), train.task.GROUP):
            if not left:
                return
            left -= 1
            yield batch
        epoch += 1
