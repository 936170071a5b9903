"""An adapter goes into the weights of its model, and the merge is proved before it is written.

The plain model must answer like the one with its adapter, and the weights of its body must be others than before. A
merge that changes nothing is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import training
from toolkit.errors import ToolkitError

TOLERANCE = 1e-3  # of a number of the answers: a merge rounds the sum of two products once, and not twice
_PROVED_ON = 64  # examples


@dataclass(frozen=True)
class Proof:
    """What a merge changed: the largest difference of an answer from the model with its adapter, the largest change of
    a weight, and how many matrices of the body changed of how many."""

    answer_difference: float
    weight_change: float
    changed: int
    adapted: int


def _adapted_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """(name in the plain model, the weight before) of every layer that has an adapter."""
    for name, layer in model.named_modules():
        base = getattr(layer, "base_layer", None)
        if base is not None and hasattr(base, "weight"):
            yield name.removeprefix("base_model.model."), base.weight


def prove(adapted: Any, plain: Any, answers: Any) -> Proof:
    """Compare a merged model with the one that it was merged from; `answers(model)` gives an array of numbers.

    Raises ToolkitError if they answer differently, or if no weight of the body changed.
    """
    # The model inside: Accelerate lets the wrapper around it compute in bf16, and a merge is proved in float32.
    with_adapter, merged = np.asarray(answers(adapted.get_base_model())), np.asarray(answers(plain))
    difference = float(np.abs(with_adapter - merged).max())
    weights = dict(plain.named_parameters())
    changes = [
        float((weights[f"{name}.weight"].detach() - before.detach()).abs().max())
        for name, before in _adapted_layers(adapted)
    ]
    proof = Proof(difference, max(changes, default=0.0), sum(change > 0 for change in changes), len(changes))
    if not difference <= TOLERANCE:
        raise ToolkitError(
            f"The merged model does not answer like the one with its adapter: they differ by {difference:.3g} (limit "
            f"{TOLERANCE:g}). Nothing was written."
        )
    if not proof.changed:
        raise ToolkitError(
            f"The adapter changed none of the {proof.adapted} matrices it belongs to: the merge would be the model "
            "from before. It has to be trained longer, or with a higher learning rate."
        )
    return proof


class Witness:
    """A model's answers to some validation examples."""

    def __init__(self, examples: training.Examples) -> None:
        self.examples = examples

    def __call__(self, model: Any) -> Any:
        """float32[rows, width], in evaluation mode."""
        import torch

        indices = list(range(min(_PROVED_ON, len(self.examples))))
        device = next(model.parameters()).device
        model.eval()
        with torch.no_grad():
            rows, _ = training.answer(self.examples.task, model, self.examples.batch(indices, device))
        return rows.float().cpu().numpy()


def save(adapted: Any, folder: Path, answers: Any) -> dict[str, Any]:
    """Merge a copy, prove it, and write it as a plain checkpoint: the proof, for the receipt."""
    plain = copy.deepcopy(adapted).merge_and_unload()
    proof = prove(adapted, plain, answers)
    plain.save_pretrained(folder)
    return {"merge": asdict(proof)}
