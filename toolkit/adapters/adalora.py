"""Ranks that fall while an adapter learns (AdaLoRA; Zhang et al., 2023), by the layers of `peft`.

Every layer's product has singular values between its two matrices. It begins with half as many again as were asked for;
then those that matter least over all layers go to zero step by step, until as many are left as were asked for on
average: layers that need more have more. The matrices are kept near to orthogonal by a term of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit import training
from toolkit.errors import InputError

_WARMUP = 0.1  # of the steps, with all singular values
_SETTLED = 0.3  # of the steps, at the end, with those that are left
_LEAST_STEPS = 2
_ROUNDS = 100  # how often singular values are chosen, at most


class Allocation:
    """Follows the training of an AdaLoRA model (`toolkit.training.Follower`)."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name = model.active_adapter
        self.config = model.peft_config[self.name]
        self.allocator = model.base_model.rankallocator
        self.step = 0  # the next one

    def begin(self, steps: int) -> None:
        if steps < _LEAST_STEPS:
            raise InputError("--adapt adalora: one step is too few for ranks to fall; train for more epochs.")
        self.config.total_step = steps
        self.config.tinit = int(steps * _WARMUP)
        self.config.tfinal = max(1, round(steps * _SETTLED))
        self.config.deltaT = max(1, steps // _ROUNDS)

    def after_step(self) -> None:
        self.model.base_model.update_and_allocate(self.step)
        self.step += 1

    def state(self) -> dict[str, Any]:
        """The step, the running means that importance is made of, and which singular values are left."""
        import torch

        tensors = {"step": torch.tensor(self.step)}
        for kind, values in (("mean", self.allocator.exp_avg_ipt), ("deviation", self.allocator.exp_avg_unc)):
            tensors |= {f"{kind}/{name}": value.cpu().contiguous() for name, value in values.items()}
        kept = self.config.rank_pattern or {}
        return tensors | {f"kept/{name}": torch.tensor(flags) for name, flags in kept.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        device = next(self.model.parameters()).device
        found: dict[str, dict[str, Any]] = {"mean": {}, "deviation": {}, "kept": {}}
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if name:
                found[kind][name] = value.to(device)
        self.step = int(state["step"])
        self.allocator.exp_avg_ipt, self.allocator.exp_avg_unc = found["mean"], found["deviation"]
        # peft begins anew with what has no importance yet; the values themselves are of the step at hand only.
        self.allocator.ipt = dict(found["mean"])
        self.config.rank_pattern = {name: flags.tolist() for name, flags in found["kept"].items()} or None

    def ranks(self) -> dict[str, Any]:
        """How many singular values the layers have left: on average, the fewest and the most, and how many layers have
        none; for the receipt."""
        counts = [
            int((value != 0).sum()) for name, value in self.model.named_parameters() if f"lora_E.{self.name}" in name
        ]
        mean = sum(counts) / len(counts)
        return {"ranks": {"mean": mean, "least": min(counts), "most": max(counts), "without": counts.count(0)}}

    def regularized(self, loss: training.Loss) -> training.Loss:
        """`loss`, and how far the matrices are from orthogonal: peft adds it only to a loss that the model itself
        computed."""
        import torch

        matrices = [
            (value, "lora_A" in name)
            for name, value in self.model.named_parameters()
            if any(f"{side}.{self.name}" in name for side in ("lora_A", "lora_B"))
        ]

        def distance(value: Any, rows: bool) -> Any:
            product = value @ value.T if rows else value.T @ value
            return torch.norm(product - torch.eye(len(product), device=product.device), p="fro")

        def regularized(model: Any, batch: training.Batch) -> Any:
            with torch.autocast(batch.labels.device.type, enabled=False):
                apart = torch.stack([distance(value, rows) for value, rows in matrices]).mean()
            return loss(model, batch) + self.config.orth_reg_weight * apart

        return regularized
