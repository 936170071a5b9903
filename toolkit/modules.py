"""Checkpoints of plain `torch.nn.Module`s: a Python file whose function builds the network, beside its weights.

    config.json          model_type `module`, the function, its arguments, and the labels of a trained one
    module.py            the file
    model.safetensors    the weights, whose shapes say how wide the layers are

The file is run to build the network. So a folder like this is only loaded where the user named it as code, by
`FILE.py:FUNCTION` or by --allow-code; `toolkit.checkpoint` sees to it. Bundles never hold code.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit import tasks
from toolkit.errors import InputError, missing_extra
from toolkit.storage import publish_folder, sha256_file, sha256_json

MODEL_TYPE = "module"
CODE = "module.py"
WEIGHTS = "model.safetensors"


def parse(model: str) -> tuple[Path, str] | None:
    """`net.py:build` as (file, function); None if `model` is no such name."""
    path, sign, function = model.rpartition(":")
    if not sign or not path.endswith(".py"):
        return None
    return Path(path), function


def is_ours(code: Path) -> bool:
    """Whether a file is one of the networks that come with the toolkit, unchanged."""
    own = {sha256_file(path) for task in map(tasks.get, tasks.names()) for path in task.NETWORKS.values()}
    return code.is_file() and sha256_file(code) in own


def imported(model: str, weights: str | None, cache: Path, allow_pickle: bool) -> Path:
    """A checkpoint folder of the network that `FILE.py:FUNCTION` builds, made once per content in `cache`.

    `weights` are a safetensors file, or with `allow_pickle` a state dict that torch wrote, read with weights_only=True.
    None: random ones. Raises InputError.
    """
    named = parse(model)
    assert named is not None  # noqa: S101 - callers have asked `parse`
    path, function = named
    if not path.is_file():
        raise InputError(f"{path} does not exist; a network is given as FILE.py:FUNCTION.")
    if not function.isidentifier():
        raise InputError(f"'{function}' is no name of a function; a network is given as FILE.py:FUNCTION.")
    files = {"code": sha256_file(path), "function": function}
    if weights is not None:
        if not Path(weights).is_file():
            raise InputError(f"--weights {weights} does not exist.")
        files["weights"] = sha256_file(Path(weights))
    destination = cache / "imported" / sha256_json(files)
    if destination.exists():
        return destination
    tensors = {} if weights is None else _read_weights(Path(weights), allow_pickle)
    with publish_folder(destination) as aside:
        shutil.copy(path, aside / CODE)
        config = {"model_type": MODEL_TYPE, "architectures": [function], "function": function, "arguments": {}}
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        from safetensors.torch import save_file

        save_file(tensors, str(aside / WEIGHTS), metadata={"format": "pt"})
    return destination


def _read_weights(path: Path, allow_pickle: bool) -> dict[str, Any]:
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise missing_extra("torch", "convert", "Reading weights") from error
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(str(path)))
        except (SafetensorError, OSError) as error:
            raise InputError(f"--weights {path} is not a safetensors file: {error}") from error
    if not allow_pickle:
        raise InputError(
            f"--weights {path} is a pickle, which can run code when it is read; refused. If you trust its source, "
            "--allow-pickle reads it once with weights_only=True."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError and more for a bad file
        raise InputError(
            f"--weights {path} cannot be read with weights_only=True: it is damaged, or holds more."
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise InputError(f"--weights {path} is not a state dict of tensors.")
    return {str(name): value.clone().contiguous() for name, value in state.items()}


def _function(folder: Path, name: str) -> Any:
    """The function of the folder's code."""
    path = folder / CODE
    specification = importlib.util.spec_from_file_location(f"_network_{sha256_file(path)[:16]}", path)
    assert specification is not None and specification.loader is not None  # noqa: S101 - the file ends in .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # classes look their module up
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # it is the user's code
        raise InputError(f"{path.name} cannot be run: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, name, None)):
        raise InputError(f"{path.name} has no function '{name}'.")
    return getattr(module, name)


def build(folder: Path, offered: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the network of a folder with random weights, the arguments that its function was given): those of its config,
    and those of `offered` whose names it takes. Raises InputError."""
    import torch

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    function = _function(folder, str(config["function"]))
    takes = inspect.signature(function).parameters
    arguments = {**{name: value for name, value in offered.items() if name in takes}, **config.get("arguments", {})}
    arguments |= {name: offered[name] for name in ("classes",) if name in takes and name in offered}
    try:
        network = function(**arguments)
    except Exception as error:  # it is the user's code
        raise InputError(f"{config['function']}({arguments}) failed: {type(error).__name__}: {error}") from error
    if not isinstance(network, torch.nn.Module):
        raise InputError(f"{config['function']} returned a {type(network).__name__}, not a torch.nn.Module.")
    return network, arguments


def fit(network: Any, tensors: Mapping[str, Any]) -> None:
    """Give layers the sizes that weights have, in place: pruning made them narrower than the code says.

    The weights of convolutions, linear layers and norms say how wide they are; a convolution whose groups were its
    channels keeps one group per channel.
    """
    import torch

    for name, layer in network.named_modules():
        prefix = f"{name}." if name else ""
        weight = tensors.get(f"{prefix}weight")
        if weight is None or tuple(weight.shape) == tuple(layer.weight.shape):
            _fit_others(layer, tensors, prefix)
            continue
        shape = tuple(weight.shape)
        if isinstance(layer, torch.nn.modules.conv._ConvNd):
            if layer.groups == layer.in_channels > 1:
                layer.groups = shape[0] // (layer.out_channels // layer.groups)
            layer.out_channels, layer.in_channels = shape[0], shape[1] * layer.groups
        elif isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.num_features = shape[0]
            for buffer in ("running_mean", "running_var"):
                if getattr(layer, buffer) is not None:
                    setattr(layer, buffer, torch.zeros(shape[0]))
        elif isinstance(layer, torch.nn.Linear):
            layer.out_features, layer.in_features = shape
        elif isinstance(layer, torch.nn.LayerNorm):
            layer.normalized_shape = shape
        else:
            continue
        layer.weight = torch.nn.Parameter(torch.empty(shape))
        if getattr(layer, "bias", None) is not None:
            layer.bias = torch.nn.Parameter(torch.empty(shape[0]))


def _fit_others(layer: Any, tensors: Mapping[str, Any], prefix: str) -> None:
    """Give a module's own parameters, such as a scale per channel, the sizes that weights have."""
    import torch

    for own, parameter in list(layer.named_parameters(recurse=False)):
        given = tensors.get(f"{prefix}{own}")
        if own not in ("weight", "bias") and given is not None and given.shape != parameter.shape:
            setattr(layer, own, torch.nn.Parameter(torch.empty(tuple(given.shape))))


def last_layer(network: Any) -> str:
    """The name of the layer that gives the answers: the last linear layer or convolution."""
    import torch

    kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
    names = [name for name, layer in network.named_modules() if isinstance(layer, kinds)]
    if not names:
        raise InputError("The network has no linear layer and no convolution, so nothing gives its answers.")
    return str(names[-1])
