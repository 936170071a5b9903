"""Which weights learn, by the methods that leave the body of a model as it is and merge into it what was learned.

- `frozen`: the head alone learns;
- `lora`: every linear layer of the body gets a product of two narrow matrices beside it (Hu et al., 2022);
- `adalora`: the product has singular values between, shared out among the layers (`toolkit.adapters.adalora`);
- `ia3`: keys, values and the feed-forward part are scaled by vectors (Liu et al., 2022).

Adapters are those of `peft`. Prompts, which are never merged, are in `toolkit.adapters.prompts`.
"""

from __future__ import annotations

from typing import Any

from toolkit.adapters import Method
from toolkit.errors import InputError, missing_extra


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
    config: Any
    given: dict[str, Any]
    if method == "ia3":
        config = peft.IA3Config(modules_to_save=head, **_ia3_targets(model))
    else:
        given = {
            "lora_alpha": alpha, "lora_dropout": dropout, "modules_to_save": head,
            "target_modules": _linear_layers(body, model.base_model_prefix),
        }  # fmt: skip
        if method == "lora":
            config = peft.LoraConfig(r=rank, **given)
        else:  # as much again by half to choose from; the schedule is set when the number of steps is known
            config = peft.AdaLoraConfig(init_r=-(-3 * rank // 2), target_r=rank, total_step=1, **given)
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
