"""A model as exporters want it: its inputs by name, and the task's output as the one tensor that it gives.

Imports torch: import it inside functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from toolkit.tasks.task import Task

_PADDING_ONLY = "sdpa with padding as an addend"  # a name in transformers' registry of attention implementations


class Traceable(torch.nn.Module):  # type: ignore[misc]
    """A model whose forward is followed by what the task makes of its output; with `channels_last` it takes images
    [batch, height, width, channels]."""

    def __init__(self, model: Any, task: Task, channels_last: bool) -> None:
        super().__init__()
        self.model, self.task, self.channels_last = model, task, channels_last
        self.config = getattr(model, "config", None)

    def forward(self, **inputs: Any) -> Any:
        if self.channels_last:
            inputs = {name: each.permute(0, 3, 1, 2) if each.ndim == 4 else each for name, each in inputs.items()}
        return self.task.output(self.model(**inputs), inputs)


def traceable(model: Any, task: Task, names: Sequence[str], channels_last: bool = False) -> Any:
    """`model` in evaluation mode with inputs called `names`, by which exporters tell what is dynamic in which."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in ("self", *names)]

    class Named(Traceable):
        """With the names in the signature, for exporters look there."""

        def forward(self, **inputs: Any) -> Any:
            return super().forward(**inputs)

    Named.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Named(model, task, channels_last).eval()


def add_padding_mask_once(model: Any) -> None:
    """Let an encoder's attention mask be one addend of shape [batch, 1, 1, length], float32.

    The general construction compares index grids, which leaves range, gather and logical operators in the graph:
    they slow it down, need newer runtimes, and make LiteRT's converter trace every signature once more. Where padding
    is all that is masked, the addend gives the same attention. Other masks are built as they always were.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import bidirectional_mask_function, sdpa_mask

    def mask(mask_function: Any, attention_mask: Any, dtype: Any = torch.float32, **rest: Any) -> Any:
        if mask_function is bidirectional_mask_function and attention_mask is not None and attention_mask.ndim == 2:
            return (1.0 - attention_mask[:, None, None, :].to(dtype)) * torch.finfo(dtype).min
        return sdpa_mask(mask_function=mask_function, attention_mask=attention_mask, dtype=dtype, **rest)

    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(_PADDING_ONLY, sdpa_attention_forward)
        AttentionMaskInterface.register(_PADDING_ONLY, mask)
        model.set_attn_implementation(_PADDING_ONLY)
