"""Virtual tokens in front of every text: they and the head learn, its pooling layer too where the body has it; the rest
stays as it is, and nothing is merged.

- `prompt`: embeddings of tokens that no vocabulary has (Lester, Al-Rfou and Constant, 2021). They stand behind the
  first token: classifiers read the state of that one, and it stays where they look;
- `prefix`: keys and values that every layer's attention reads beside those of the text (Li and Liang, 2021).

Both begin as what the body makes of tokens that the training texts have. The checkpoint is that of the model without,
and the prompt: `prompt` in its config, and one weight more. `toolkit.engines.torch` puts both together, so that the
prompt is part of every exported graph and inputs are those of a text.

Imports torch: import it inside functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from transformers import DynamicCache

from toolkit import training
from toolkit.adapters import PromptMethod
from toolkit.adapters.merge import TOLERANCE
from toolkit.checkpoint import PROMPT_WEIGHT
from toolkit.errors import InputError, ToolkitError

_AXES = {"prompt": 2, "prefix": 5}  # of the values
_PER_TOKEN = ("logits", "last_hidden_state")  # outputs that may have a row per token


class Prompted(torch.nn.Module):  # type: ignore[misc]
    """A transformers model with a prompt. Inputs and outputs are those of the model without, but for attention, which
    it does not tell.

    `values` are float32[tokens, width] of a `prompt`, and float32[layers, 2, heads, tokens, head] of a `prefix`, keys
    first.
    """

    def __init__(self, model: Any, method: PromptMethod, values: Any, input_names: Sequence[str]) -> None:
        super().__init__()
        self.model, self.method, self.input_names = model, method, list(input_names)
        self.prompt_embeddings = values if isinstance(values, torch.nn.Parameter) else torch.nn.Parameter(values)
        self.base_model_prefix = f"model.{model.base_model_prefix}"
        self.config = model.config
        self.config.prompt = {"method": method, "tokens": int(values.shape[-2])}

    def forward(self, **inputs: Any) -> Any:
        if inputs.get("output_attentions"):
            raise InputError("The attention of a model with a prompt can be compared with no other's.")
        if self.method == "prefix":
            return self._with_prefix(inputs)
        return self._with_prompt(inputs)

    def _with_prefix(self, inputs: dict[str, Any]) -> Any:
        mask = inputs["attention_mask"]
        rows, tokens = mask.shape[0], self.prompt_embeddings.shape[-2]
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self.prompt_embeddings):
            cache.update(keys.expand(rows, -1, -1, -1), values.expand(rows, -1, -1, -1), layer)
        seen = torch.cat([mask.new_ones(rows, tokens), mask], dim=1)
        return self.model(**{**inputs, "attention_mask": seen}, past_key_values=cache)

    def _with_prompt(self, inputs: dict[str, Any]) -> Any:
        words = self.model.get_input_embeddings()(inputs["input_ids"])
        tokens = self.prompt_embeddings.shape[0]
        prompt = self.prompt_embeddings.expand(words.shape[0], -1, -1)
        longer = {
            name: self.seen(value) if name in self.input_names else value
            for name, value in inputs.items()
            if name != "input_ids"
        }
        result = self.model(inputs_embeds=torch.cat([words[:, :1], prompt, words[:, 1:]], dim=1), **longer)
        for name in _PER_TOKEN:
            if getattr(result, name, None) is not None and result[name].ndim == 3:
                result[name] = _without(result[name], tokens)
        if getattr(result, "hidden_states", None) is not None:
            result["hidden_states"] = tuple(_without(states, tokens) for states in result["hidden_states"])
        return result

    def seen(self, mask: Any) -> Any:
        """What the layers have a row for, by what the text has, int64[rows, length]: a prompt is as its first token."""
        if self.method == "prefix":
            return mask
        return torch.cat([mask[:, :1].expand(-1, self.prompt_embeddings.shape[0] + 1), mask[:, 1:]], dim=1)

    def set_attn_implementation(self, name: str) -> None:
        """As of a transformers model."""
        self.model.set_attn_implementation(name)

    def save_pretrained(self, folder: Path) -> None:
        """Write the checkpoint: the model's own, and the prompt."""
        prompt = self.prompt_embeddings.detach().clone()
        self.model.save_pretrained(folder, state_dict={**self.model.state_dict(), PROMPT_WEIGHT: prompt})


def _without(values: Any, tokens: int) -> Any:
    """A row per token of the text."""
    return torch.cat([values[:, :1], values[:, 1 + tokens :]], dim=1)


def restored(model: Any, checkpoint: Path, input_names: Sequence[str]) -> Any:
    """The model of a checkpoint folder with its prompt, if it has one. Raises InputError if there is no such prompt."""
    described = getattr(model.config, "prompt", None)
    if not described:
        return model
    for path in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            if PROMPT_WEIGHT in tensors.keys():  # noqa: SIM118 - it is no dictionary
                values, method = tensors.get_tensor(PROMPT_WEIGHT).float(), described.get("method")
                if values.ndim == _AXES.get(method):
                    return Prompted(model, method, values, input_names)
    raise InputError(f"{checkpoint} is damaged: config.json tells of a prompt that is not among its weights.")


def drawn(train: training.Examples, tokens: int, seed: int) -> list[int]:
    """Ids of different tokens of the training texts, special ones left out; again and again if they are too few."""
    bodies = [train.arrays(index)["input_ids"][0, 1:-1] for index in range(len(train))]
    known = np.unique(np.concatenate([*bodies, train.arrays(0)["input_ids"][0, :1]]))
    order = np.random.default_rng(seed).permutation(len(known))
    return [int(known[order[place % len(known)]]) for place in range(tokens)]


def begin(model: Any, method: PromptMethod, ids: Sequence[int], input_names: Sequence[str]) -> Prompted:
    """`model` with a prompt made of tokens, which learns with the head. Raises InputError where there can be none."""
    if isinstance(model, Prompted):
        raise InputError(f"--adapt {method}: the model has a prompt already; train all of it with --adapt full.")
    body = model.base_model
    body.requires_grad_(False)
    if body is not model and getattr(body, "pooler", None) is not None:
        body.pooler.requires_grad_(True)  # in other families it is the first layer of the head
    given = torch.tensor([list(ids)], device=next(model.parameters()).device)
    with torch.no_grad():
        if method == "prompt":
            values = model.get_input_embeddings()(given)[0].clone()
        else:
            values = _keys_and_values(body.eval(), given)
    return Prompted(model, method, values, input_names)


def _keys_and_values(body: Any, ids: Any) -> Any:
    """What a body's attention makes of tokens, float32[layers, 2, heads, tokens, head]. Raises InputError."""
    if "past_key_values" not in inspect.signature(body.forward).parameters:
        raise InputError(
            f"--adapt prefix: the attention of a {body.config.model_type} takes no keys and values from outside; "
            "--adapt prompt does without."
        )
    cache = DynamicCache()
    body(input_ids=ids, past_key_values=cache)
    return torch.stack([torch.stack([layer.keys[0], layer.values[0]]) for layer in cache.layers])


class Keeper:
    """Saves the best epoch of a model with a prompt, and proves that what was written has learned one.

    `answers(model)` gives an array of numbers, `load(folder)` the model of a checkpoint.
    """

    def __init__(self, model: Prompted, answers: Any, load: Any) -> None:
        self.before = model.prompt_embeddings.detach().clone()
        self.answers, self.load = answers, load

    def save(self, model: Prompted, folder: Path) -> dict[str, Any]:
        """Write the checkpoint, and read it again: the proof, for the receipt. Raises ToolkitError."""
        model.save_pretrained(folder)
        return {"prompt": prove(model, self.load(folder), self.before, self.answers)}


def prove(trained: Prompted, loaded: Any, before: Any, answers: Any) -> dict[str, Any]:
    """Compare the model that was trained with the one that was written, and with itself as if its prompt had learned
    nothing. Raises ToolkitError if it answers otherwise than the first, or like the second."""

    def around_it(prompt: Any) -> Prompted:  # anew: Accelerate lets the wrapper that it knows compute in bf16
        return Prompted(trained.model, trained.method, prompt, trained.input_names)

    said = np.asarray(answers(around_it(trained.prompt_embeddings)))
    unlearned = around_it(before.to(trained.prompt_embeddings.device))
    difference = float(np.abs(said - np.asarray(answers(loaded))).max())
    change = float(np.abs(said - np.asarray(answers(unlearned))).max())
    if not difference <= TOLERANCE:
        raise ToolkitError(
            f"The checkpoint does not answer like the model that was trained: they differ by {difference:.3g} (limit "
            f"{TOLERANCE:g}). Nothing was written."
        )
    if not change > 0:
        raise ToolkitError(
            "The prompt changes no answer: with the one that training began with, the model says the same. Train "
            "longer, or with a higher learning rate."
        )
    return {**trained.config.prompt, "answer_difference": difference, "answer_change": change}
