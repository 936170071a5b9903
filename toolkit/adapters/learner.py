"""A model as one of the methods lets it learn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit import training
from toolkit.adapters import PROMPTS, Method, adalora, merge, methods


@dataclass(frozen=True)
class Learner:
    """A model of which all or few weights learn, what its method adds to a loss, what follows the training, and how it
    is saved. None: nothing, nothing, as it is."""

    model: Any
    regularized: Callable[[training.Loss], training.Loss] | None = None
    follower: training.Follower | None = None
    save: training.Save | None = None


def make(
    model: Any,
    method: Method,
    *,
    train: training.Examples,
    validation: training.Examples,
    rank: int,
    alpha: int,
    dropout: float,
    prompt_tokens: int,
    seed: int,
) -> Learner:
    """The learner that a method makes of `model`. A prompt begins as words of `train`; what is saved is proved on
    `validation`. Raises InputError for a model that cannot be one."""
    witness = merge.Witness(validation)
    if method in PROMPTS:
        from toolkit.adapters import prompts
        from toolkit.engines.torch import load_model

        ids = prompts.drawn(train, prompt_tokens, seed)
        prompted = prompts.begin(model, method, ids, train.names)
        keeper = prompts.Keeper(prompted, witness, functools.partial(load_model, task=train.task))
        return Learner(prompted, save=keeper.save)
    model = methods.adapt(model, method, rank=rank, alpha=alpha, dropout=dropout)
    if not methods.is_adapted(model):
        return Learner(model)
    if method != "adalora":
        return Learner(model, save=functools.partial(merge.save, answers=witness))
    allocation = adalora.Allocation(model)

    def save(model: Any, folder: Path) -> dict[str, Any]:
        return {**merge.save(model, folder, witness), **allocation.ranks()}

    return Learner(model, allocation.regularized, allocation, save)
