"""Fine-tuning of few weights: the body stays as it is, and what is learned is merged into it in the end.

- `frozen`: the head alone learns;
- `lora`: every linear layer of the body gets a product of two narrow matrices beside it (Hu et al., 2022);
- `ia3`: keys, values and the feed-forward part are scaled by vectors (Liu et al., 2022).

Adapters are those of `peft`. A merge is proved before it is written: the plain model must answer like the one with its
adapter, and the weights of its body must be others than before. A merge that changes nothing is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from toolkit import training
from toolkit.errors import InputError, ToolkitError, missing_extra

Method = Literal["full", "frozen", "lora", "ia3"]
METHODS: tuple[Method, ...] = ("full", "frozen", "lora", "ia3")
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


def adapt(model: Any, method: Method, *, rank: int, alpha: int, dropout: float) -> Any:
    """`model` with few weights that learn, in place or wrapped. Raises InputError for a model that has no body apart
    from its head."""
    if method == "full":
        return model
    body = getattr(model, model.base_model_prefix, None)
    if body is None or getattr(model.config, "model_type", None) == "module":
        raise InputError(
            f"--adapt {method} needs a transformers model with a body and a head; this one has no head of its own."
        )
    parts = dict(model.named_children())
    head = [name for name, part in parts.items() if part is not body and any(True for _ in part.parameters())]
    if method == "frozen":
        body.requires_grad_(False)
        return model
    try:
        import peft
    except ImportError as error:
        raise missing_extra("peft", "peft", f"--adapt {method}") from error
    if method == "lora":
        targets = _linear_layers(body, model.base_model_prefix)
        config: Any = peft.LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, modules_to_save=head
        )
    else:
        config = peft.IA3Config(modules_to_save=head, **_ia3_targets(model))
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise InputError(f"--adapt {method}: {str(error).splitlines()[0]}") from error


def _linear_layers(body: Any, prefix: str) -> list[str]:
    import torch

    return [f"{prefix}.{name}" for name, layer in body.named_modules() if isinstance(layer, torch.nn.Linear)]


def _ia3_targets(model: Any) -> dict[str, Any]:
    """The keys, values and feed-forward outputs of the families that we know; peft's own choice for others."""
    names = {
        "bert": (("key", "value", "output.dense"), ("output.dense",)),
        "distilbert": (("k_lin", "v_lin", "lin2"), ("lin2",)),
    }
    kind = {"roberta": "bert", "xlm-roberta": "bert", "camembert": "bert", "electra": "bert"}.get(
        model.config.model_type, model.config.model_type
    )
    if kind not in names:
        return {}
    targets, feedforward = names[kind]
    return {"target_modules": list(targets), "feedforward_modules": list(feedforward)}


def is_adapted(model: Any) -> bool:
    """Whether a model is wrapped by peft."""
    return hasattr(model, "merge_and_unload") and hasattr(model, "peft_config")


def shares(model: Any) -> dict[str, int]:
    """How many weights learn, of how many."""
    return {
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


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
            "from before. Train longer, or with a higher learning rate."
        )
    return proof


class Merger:
    """Saves the best epoch of an adapted model as a plain checkpoint, and keeps the proof of its merge."""

    def __init__(self, examples: training.Examples) -> None:
        self.examples = examples
        self.proof: Proof | None = None

    def answers(self, model: Any) -> Any:
        """A model's answers to some validation examples."""
        import torch

        indices = list(range(min(_PROVED_ON, len(self.examples))))
        device = next(model.parameters()).device
        model.eval()
        with torch.no_grad():
            rows, _ = training.answer(self.examples.task, model, self.examples.batch(indices, device))
        return rows.float().cpu().numpy()

    def save(self, model: Any, folder: Path) -> None:
        """Merge a copy, prove it, and write it."""
        plain = copy.deepcopy(model).merge_and_unload()
        self.proof = prove(model, plain, self.answers)
        plain.save_pretrained(folder)

    def as_dict(self) -> dict[str, Any]:
        """For the receipt."""
        return {} if self.proof is None else {"merge": asdict(self.proof)}
