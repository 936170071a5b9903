"""How much a model's answers depend on each of its parts, by real examples.

Every unit of the feed-forward parts, every head and every channel of the width is multiplied by a mask of ones; the
gradient of the loss with respect to the mask says what taking the unit away would do:

- `taylor`: the mean size of the gradient (Michel, Levy and Neubig, 2019);
- `fisher`: its mean square (Kwon et al., 2022);
- `magnitude`: the norm of the weights that read the unit, which needs no example.

Single weights are scored alike, with a mask of ones over the weights themselves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit import architecture

Method = Literal["taylor", "fisher", "magnitude"]


@dataclass(frozen=True)
class Importance:
    """Higher is more important. Rows are layers."""

    ffn: NDArray[np.float64]  # [layers, ffn]
    heads: NDArray[np.float64]  # [layers, heads]
    width: NDArray[np.float64]  # [width]: one choice for all layers, which share it


def measure(
    model: Any,
    method: Method,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
) -> Importance:
    """The importance of a model's parts over `batches`, which `loss(model, batch)` takes. `magnitude` reads none."""
    readers = _readers(model)
    sizes = architecture.shape(model.config)
    if method == "magnitude":
        return _magnitude(readers, sizes)
    import torch

    masks = {
        (axis, layer): torch.ones(module.in_features, requires_grad=True)
        for axis, layers in readers.items()
        for layer, modules in layers.items()
        for module in modules[:1]
    }
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, mask=masks[axis, layer]: (inputs[0] * mask, *inputs[1:]))
        for axis, layers in readers.items()
        for layer, modules in layers.items()
        for module in modules
    ]
    power = 1 if method == "taylor" else 2
    sums: dict[tuple[str, int], NDArray[np.float64]] = {}
    model.eval()
    try:
        for batch in batches:
            for mask in masks.values():
                mask.grad = None
            loss(model, batch).backward()
            for key, mask in masks.items():
                gradient = mask.grad.double().numpy()
                if key[0] == "heads":  # a head goes as a whole
                    gradient = gradient.reshape(sizes["heads"], -1).sum(axis=1)
                sums[key] = sums.get(key, 0) + np.abs(gradient) ** power
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
    return _collected(sums, sizes)


def of_weights(
    model: Any,
    method: Method,
    names: Sequence[str],
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
) -> dict[str, Any]:
    """The importance of single weights: for each name a float32 tensor of the weight's shape.

    The gradient with respect to a weight's mask is the weight times its gradient (Molchanov et al., 2019).
    """
    import torch

    weights = {name: model.get_parameter(name) for name in names}
    if method == "magnitude":
        return {name: weight.detach().abs() for name, weight in weights.items()}
    power = 1 if method == "taylor" else 2
    sums = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    model.eval()
    for batch in batches:
        model.zero_grad(set_to_none=True)
        loss(model, batch).backward()
        for name, weight in weights.items():
            sums[name] += (weight.detach() * weight.grad).abs() ** power
    model.zero_grad(set_to_none=True)
    return sums


def _readers(model: Any) -> dict[str, dict[int, list[Any]]]:
    """Axis → layer → the modules that read what lies along it."""
    prefix = f"{model.base_model_prefix}."
    found: dict[str, dict[int, list[Any]]] = {}
    for axis, pattern in architecture.family(model.config.model_type).reads.items():
        for name, module in model.named_modules():
            if match := re.fullmatch(pattern, name.removeprefix(prefix)):
                found.setdefault(axis, {}).setdefault(int(match[1]), []).append(module)
    return found


def _magnitude(readers: dict[str, dict[int, list[Any]]], sizes: dict[str, int]) -> Importance:
    sums = {}
    for axis, layers in readers.items():
        for layer, modules in layers.items():
            squares = np.sum([(m.weight.detach().double().numpy() ** 2).sum(axis=0) for m in modules], axis=0)
            if axis == "heads":
                squares = squares.reshape(sizes["heads"], -1).sum(axis=1)
            sums[axis, layer] = np.sqrt(squares)
    return _collected(sums, sizes)


def _collected(sums: dict[tuple[str, int], NDArray[np.float64]], sizes: dict[str, int]) -> Importance:
    def stack(axis: str) -> NDArray[np.float64]:
        return np.stack([sums[axis, layer] for layer in range(sizes["layers"])])

    return Importance(ffn=stack("ffn"), heads=stack("heads"), width=stack("width").sum(axis=0))


def best(scores: NDArray[np.float64], count: int) -> list[int]:
    """The indices of the `count` highest scores, ascending; of equal ones the first."""
    return sorted(np.argsort(-scores, kind="stable")[:count].tolist())


def narrowed(model: Any, found: Importance, *, ffn: int | None = None, heads: int | None = None) -> Any:
    """A copy of `model` with its `ffn` most important feed-forward units in each layer, and its `heads` most important
    heads with their share of the width. None: all of them."""
    wanted: dict[str, Any] = {}
    if ffn is not None:
        wanted["ffn"] = [best(row, ffn) for row in found.ffn]
    if heads is not None:
        wanted["heads"] = [best(row, heads) for row in found.heads]
        wanted["width"] = best(found.width, len(found.width) // found.heads.shape[1] * heads)
    return architecture.cut(model, architecture.Cut(**wanted))


def rounded(size: int, removed: float, multiple: int) -> int:
    """What stays of `size` after a share was removed: a multiple of what the target's kernels work on, at least one."""
    kept = size * (1 - removed)
    return min(size, max(multiple, round(kept / multiple) * multiple))
