"""PyTorch eager: the reference that every artifact is compared with. Runs checkpoints, not artifacts."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.errors import InputError, missing_extra

if TYPE_CHECKING:
    from toolkit.stages import Context
    from toolkit.tasks import TaskModule

NAME = "torch"
SUFFIX = ".safetensors"
_BATCH = 32


def version() -> str:
    """Version of the installed torch."""
    return importlib.metadata.version("torch")


def load_model(checkpoint: Path, model_class: str, **options: Any) -> Any:
    """The checkpoint as a transformers model in evaluation mode, float32 unless `dtype` says otherwise.

    Raises InputError if the weights do not fit the config.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_extra("torch and transformers", "convert", "Loading a checkpoint") from error
    auto_class = getattr(transformers, model_class)
    options.setdefault("dtype", torch.float32)
    try:
        return auto_class.from_pretrained(
            checkpoint, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        ).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        if "ignore_mismatched_sizes" in first:
            first = "its weights do not have the shapes that its config.json describes"
        raise InputError(f"{checkpoint} cannot be loaded as {model_class}: {first}") from error


def input_names(model: Any, task: TaskModule) -> list[str]:
    """The task's inputs that this model's forward takes."""
    import inspect

    accepted = inspect.signature(model.forward).parameters
    return [name for name in task.INPUT_NAMES if name in accepted]


class TorchEngine:
    """A checkpoint in eager mode."""

    def __init__(self, checkpoint: Path, model_class: str, threads: int) -> None:
        self.model = load_model(checkpoint, model_class)
        import torch

        torch.set_num_threads(threads)
        self._torch = torch
        self._threads = threads

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        tensors = {name: self._torch.from_numpy(array) for name, array in inputs.items()}
        with self._torch.inference_mode():
            return {"logits": self.model(**tensors).logits.numpy()}

    def describe(self) -> dict[str, Any]:
        return {"engine": NAME, "version": version(), "threads": self._threads, "dtype": "float32"}

    def close(self) -> None:
        del self.model


def load(path: Path, threads: int = 1) -> TorchEngine:
    """Load a text classifier's checkpoint folder."""
    return TorchEngine(path, "AutoModelForSequenceClassification", threads)


def logits(
    model: Any, checkpoint: Path, task: TaskModule, examples: Sequence[Any], max_length: int, context: Context
) -> NDArray[np.float32]:
    """Logits of all examples, float32[n, classes], in batches of similar length (float results do not depend on
    the batch beyond rounding). `checkpoint` is where the model came from: its tokenizer lies there."""
    import torch

    torch.set_num_threads(context.threads)
    encoder = task.encoder(checkpoint, inputs=input_names(model, task), max_length=max_length)
    encoded = [encoder(example.text) for example in examples]
    order = sorted(range(len(encoded)), key=lambda i: encoded[i]["input_ids"].shape[1])
    rows: list[Any] = [None] * len(encoded)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        batch = pad_batch([encoded[i] for i in chosen], encoder.padding)
        with torch.inference_mode():
            values = model(**{name: torch.from_numpy(array) for name, array in batch.items()}).logits.numpy()
        for i, value in zip(chosen, values, strict=True):
            rows[i] = value
        context.progress(min(start + _BATCH, len(order)), len(order), "reference answers")
    return np.asarray(rows, dtype=np.float32)


def pad_batch(encoded: Sequence[Arrays], padding: Mapping[str, int]) -> Arrays:
    """Stack arrays of shape [1, length] to [n, longest], padded on the right."""
    longest = max(arrays["input_ids"].shape[1] for arrays in encoded)
    batch = {}
    for name in encoded[0]:
        stacked = np.full((len(encoded), longest), padding[name], dtype=np.int64)
        for row, arrays in enumerate(encoded):
            stacked[row, : arrays[name].shape[1]] = arrays[name][0]
        batch[name] = stacked
    return batch


def count_operations(model: Any, task: TaskModule, length: int) -> int:
    """Arithmetic operations (2 per multiply-add) of one forward pass over `length` tokens, counted by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    sample = {name: torch.ones(1, length, dtype=torch.long) for name in input_names(model, task)}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**sample)
    return int(counter.get_total_flops())
