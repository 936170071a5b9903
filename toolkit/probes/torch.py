"""A checkpoint, by hooks on its modules. Imports torch: import it inside functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.engines.torch import input_names, load_model
from toolkit.probes import OUTPUT
from toolkit.tasks.task import Task


def open_probe(path: Path, task: Task) -> TorchProbe:
    """The checkpoint in a folder. Raises InputError."""
    return TorchProbe(load_model(path, task), task)


class TorchProbe:
    """A model in evaluation mode."""

    def __init__(self, model: Any, task: Task) -> None:
        self.model, self._task = model, task
        self.input_names = input_names(model, task)
        self._modules: dict[str, str] | None = None

    @property
    def modules(self) -> dict[str, str]:
        """Modules that ran once in the last `run`: one that is called twice has no single value."""
        if self._modules is None:
            raise RuntimeError("The order of modules is known after a run.")
        return self._modules

    def run(
        self, inputs: Mapping[str, NDArray[Any]], wanted: Sequence[str] | None, given: Mapping[str, NDArray[Any]]
    ) -> Arrays:
        calls: Counter[str] = Counter()
        found: Arrays = {}

        def hook(name: str) -> Any:
            def after(module: Any, _: Any, output: Any) -> Any:
                tensor, replace = _tensor(output)
                if tensor is None or not tensor.is_floating_point():
                    return None
                calls[name] += 1
                # A copy: the module behind it may write into the same memory.
                found[name] = tensor.detach().float().numpy().copy()
                if name in given:
                    return replace(torch.from_numpy(np.array(given[name], dtype=np.float32)).to(tensor.dtype))
                return None

            return after

        named = [(name, module) for name, module in self.model.named_modules() if name]
        handles = [module.register_forward_hook(hook(name)) for name, module in named]
        try:
            tensors = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.input_names}
            with torch.no_grad():
                output = self._task.output(self.model(**tensors), tensors).float().numpy()
        finally:
            for handle in handles:
                handle.remove()
        kinds = {name: type(module).__name__ for name, module in named}
        self._modules = {name: kinds[name] for name in found if calls[name] == 1}
        return {name: found[name] for name in (self._modules if wanted is None else wanted)} | {OUTPUT: output}

    def close(self) -> None:
        del self.model


def _tensor(output: Any) -> tuple[Any, Any]:
    """The first tensor of what a module returns, and a function that puts another in its place."""
    if isinstance(output, torch.Tensor):
        return output, lambda value: value
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor):
        return output[0], lambda value: (value, *output[1:])
    if isinstance(output, MutableMapping):  # the outputs of transformers
        key = next((key for key, value in output.items() if isinstance(value, torch.Tensor)), None)
        if key is not None:

            def replaced(value: Any) -> Any:
                output[key] = value
                return output

            return output[key], replaced
    return None, None
