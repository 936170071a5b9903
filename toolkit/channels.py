"""Convolutional networks made narrower: whole channels go, those that the answers depend on least.

What has to go together - a channel of one layer, its norm, its place in every layer that reads it or is added to it -
is found by `torch_pruning` from a forward pass (DepGraph, Fang et al., 2023). Every convolution keeps the same share
of its channels, rounded to a multiple, so that a narrower network's cost is known before it is trained.

Imports torch: import it inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from toolkit import importance, modules
from toolkit.errors import InputError, missing_extra
from toolkit.importance import Method

_LAYERS = (torch.nn.modules.conv._ConvNd, torch.nn.Linear)


def shape(model: Any) -> dict[str, int]:
    """How many convolutions a network has, and how many channels they give together."""
    convolutions = [layer for layer in model.modules() if isinstance(layer, torch.nn.modules.conv._ConvNd)]
    return {"convolutions": len(convolutions), "channels": sum(layer.out_channels for layer in convolutions)}


def weight_names(model: Any) -> list[str]:
    """The weights of convolutions and linear layers."""
    return [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, _LAYERS)]


def narrow(
    model: Any,
    share: float,
    multiple: int,
    method: Method,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
    inputs: Mapping[str, Any],
) -> None:
    """Take `share` of the channels out of every convolution, in place; what stays is a multiple of `multiple`.

    `batches` are what `loss(model, batch)` takes, and what the importance is measured on; `inputs` are an example of
    the network's inputs. Layers whose groups are not their channels stay as they are. Raises InputError for a network
    that cannot be narrowed, and for a share that takes no channel.
    """
    scores = importance.of_weights(model, method, weight_names(model), batches, loss)
    model.eval()
    before = shape(model)
    try:
        graph, removed = _graph(model, inputs), 0
        by_layer = {model.get_submodule(name.removesuffix(".weight")): score for name, score in scores.items()}
        for group in list(_groups(graph, model)):
            root, handler = group[0].dep.target.module, group[0].dep.handler
            size = graph.get_out_channels(root)
            kept = importance.rounded(size, share, multiple)
            if kept == size or _is_grouped(group):
                continue
            stays = set(importance.best(_of_channels(graph, group, by_layer, size), kept))
            smaller = graph.get_pruning_group(root, handler, [index for index in range(size) if index not in stays])
            if graph.check_pruning_group(smaller):
                smaller.prune()
                removed += size - kept
        with torch.inference_mode():
            model(**inputs)
    except InputError:
        raise
    except Exception as error:  # a network's own code, traced and then run with other widths
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"The channels of this network cannot be pruned: {first}") from error
    if not removed:
        raise InputError(
            f"--channels {share:g} takes no channel out: rounded to multiples of {multiple}, all {before['channels']} "
            "stay. Take a larger share, or a smaller --multiple."
        )
    if model.config.model_type != modules.MODEL_TYPE:
        model.config.narrowed = True  # its own widths no longer hold: the weights say how wide the layers are


def _graph(model: Any, inputs: Mapping[str, Any]) -> Any:
    """What of the network depends on what."""
    try:
        import torch_pruning
    except ImportError as error:
        raise missing_extra("torch-pruning", "convert", "Pruning channels") from error
    return torch_pruning.DependencyGraph().build_dependency(
        model, dict(inputs), output_transform=lambda result: getattr(result, "logits", result)
    )


def _groups(graph: Any, model: Any) -> Iterator[Any]:
    """Every set of channels that can only go together, but for those that the answers have."""
    last = model.get_submodule(modules.last_layer(model))
    kinds = [torch.nn.modules.conv._ConvNd, torch.nn.Linear]
    yield from graph.get_all_groups(ignored_layers=[last], root_module_types=kinds)


def _is_grouped(group: Any) -> bool:
    """Whether a convolution of a group has groups of more than one channel: they would have to lose alike."""
    layers = [dep.target.module for dep, _ in group]
    return any(
        1 < layer.groups < max(layer.in_channels, layer.out_channels)
        for layer in layers
        if isinstance(layer, torch.nn.modules.conv._ConvNd)
    )


def _of_channels(graph: Any, group: Any, scores: Mapping[Any, Any], size: int) -> Any:
    """The importance of each channel of a group, float64[size]: of all weights that give it or read it."""
    total = torch.zeros(size, dtype=torch.float64)
    for index, (dep, places) in enumerate(group):
        layer = dep.target.module
        if layer not in scores:
            continue
        axis = 0 if graph.is_out_channel_pruning_fn(dep.handler) else 1
        if getattr(layer, "transposed", False):
            axis = 1 - axis
        by_channel = scores[layer].double().transpose(0, axis).flatten(1).sum(1)
        total.index_add_(0, torch.as_tensor(group[index].root_idxs), by_channel[torch.as_tensor(places)])
    return total.numpy()
