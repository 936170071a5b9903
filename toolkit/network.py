"""A network that a user's function built (`toolkit.modules`), in the form in which the stages take a model.

Imports torch: import it inside functions.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from toolkit import modules
from toolkit.errors import InputError
from toolkit.tasks.task import Task


class Config:
    """What of a transformers config the stages ask for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.model_type = modules.MODEL_TYPE
        self.id2label = {int(key): str(name) for key, name in (values.get("id2label") or {}).items()}

    def save_pretrained(self, folder: Path) -> None:
        """Write `config.json`."""
        text = json.dumps(self.values, ensure_ascii=False, indent=2) + "\n"
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")


class Network(torch.nn.Module):  # type: ignore[misc]
    """The network with its inputs by name; its forward gives a tensor."""

    base_model_prefix = "net"

    def __init__(self, net: Any, config: Config, code: Path, input_names: Sequence[str]) -> None:
        super().__init__()
        self.net, self.config, self.code, self.input_names = net, config, code, list(input_names)

    def forward(self, **inputs: Any) -> Any:
        return self.net(*(inputs[name] for name in self.input_names))

    def save_pretrained(self, folder: Path) -> None:
        """Write the checkpoint folder: config, code and weights."""
        folder = Path(folder)
        self.config.save_pretrained(folder)
        if not (folder / modules.CODE).exists():
            shutil.copy(self.code, folder / modules.CODE)
        state = {name: value.detach().clone().contiguous() for name, value in self.net.state_dict().items()}
        save_file(state, str(folder / modules.WEIGHTS), metadata={"format": "pt"})


def load(
    folder: Path, task: Task, labels: Sequence[str] | None = None, encoding: Mapping[str, Any] | None = None
) -> Network:
    """The network of a checkpoint folder, float32, in evaluation mode.

    With `labels` it is to be trained: its function is asked for so many classes, and the layer that gives the answers
    may be new. Raises InputError for weights that do not fit.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    offered = {} if labels is None else {**task.offers(encoding or {}), "classes": len(labels)}
    net, arguments = modules.build(folder, offered)
    tensors = load_file(str(folder / modules.WEIGHTS))
    if tensors:
        head = modules.last_layer(net)
        own = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        if labels is not None:  # another number of classes than the weights have
            tensors = {
                name: value for name, value in tensors.items()
                if not (name.startswith(f"{head}.") and name in own and own[name][:1] != tuple(value.shape[:1]))
            }  # fmt: skip
        modules.fit(net, tensors)
        _load_weights(net, tensors, folder, f"{head}." if labels is not None else None)
    elif labels is None:
        raise InputError(f"{folder} has no weights; train it first with `toolkit finetune`.")
    config["arguments"] = arguments
    if labels is not None:
        config |= {"task": task.NAME, "id2label": {str(i): name for i, name in enumerate(labels)}}
    return Network(net.float().eval(), Config(config), folder / modules.CODE, task.INPUT_NAMES)


def _load_weights(net: Any, tensors: Mapping[str, Any], folder: Path, may_be_new: str | None) -> None:
    try:
        found = net.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{folder}: the weights do not fit the network: {first}") from error
    missing = [name for name in found.missing_keys if not (may_be_new and name.startswith(may_be_new))]
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    for kind, names in (("lack", missing), ("have, and the network has not,", found.unexpected_keys)):
        if names:
            raise InputError(f"{folder}: the weights {kind} {len(names)} tensors, for example {names[0]}.")
