"""PyTorch: in eager mode the reference that every artifact is compared with. Runs checkpoints, not artifacts."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit import modules
from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError, missing_extra

if TYPE_CHECKING:
    from toolkit.runtime.encoder import Encoder
    from toolkit.stages import Context
    from toolkit.tasks.task import Task

NAME = "torch"
_BATCH = 32


def version() -> str:
    """Version of the installed torch."""
    return importlib.metadata.version("torch")


def load_model(checkpoint: Path, task: Task, **options: Any) -> Any:
    """The checkpoint of a trained model in evaluation mode, float32 unless `dtype` says otherwise.

    Raises InputError if the weights do not fit the config.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_extra("torch and transformers", "convert", "Loading a checkpoint") from error
    if _is_module(checkpoint):
        from toolkit import network

        return network.load(checkpoint, task)
    auto_class = getattr(transformers, task.MODEL_CLASS)
    if _is_narrowed(checkpoint):
        return _load_narrowed(checkpoint, task)
    options.setdefault("dtype", torch.float32)
    try:
        model = auto_class.from_pretrained(
            checkpoint, local_files_only=True, trust_remote_code=False, use_safetensors=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        if "ignore_mismatched_sizes" in first:
            first = "its weights do not have the shapes that its config.json describes"
        raise InputError(f"{checkpoint} cannot be loaded as {task.MODEL_CLASS}: {first}") from error
    return _with_prompt(model, checkpoint, task).eval()


def _with_prompt(model: Any, checkpoint: Path, task: Task) -> Any:
    """The model with the prompt that the checkpoint has, if any."""
    from toolkit.adapters import prompts

    return prompts.restored(model, checkpoint, input_names(model, task))


def _is_module(checkpoint: Path) -> bool:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("model_type") == modules.MODEL_TYPE)


def _is_narrowed(checkpoint: Path) -> bool:
    """Whether channels were pruned, so that the config's widths do not hold."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    return bool(config.get("narrowed"))


def _load_narrowed(checkpoint: Path, task: Task) -> Any:
    """A transformers model whose layers are as wide as its weights, in evaluation mode. Raises InputError."""
    import transformers
    from safetensors.torch import load_file

    config = transformers.AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    model = getattr(transformers, task.MODEL_CLASS).from_config(config)
    tensors = {name: value for path in checkpoint.glob("*.safetensors") for name, value in load_file(path).items()}
    modules.fit(model, tensors)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"{checkpoint}: the weights do not fit the model: {first}") from error
    return model.float().eval()


def load_for_training(
    checkpoint: Path, task: Task, labels: Sequence[str], encoding: Mapping[str, Any], **options: Any
) -> Any:
    """The checkpoint as a model with a head for `labels`, a new one where it has none. A user's network may be built by
    `encoding`, the settings of the encoder. Raises InputError."""
    if _is_module(checkpoint):
        from toolkit import network

        return network.load(checkpoint, task, labels, encoding)
    if _is_narrowed(checkpoint):
        model = _load_narrowed(checkpoint, task)
        if [model.config.id2label[i] for i in range(len(model.config.id2label))] != list(labels):
            raise InputError(f"{checkpoint}: a model whose channels were pruned keeps its labels.")
        return model
    model, _ = load_with_head(checkpoint, task, labels, **options)
    return _with_prompt(model, checkpoint, task)


def load_with_head(checkpoint: Path, task: Task, labels: Sequence[str], **options: Any) -> tuple[Any, list[str]]:
    """(a transformers checkpoint as a model with a head for `labels`, the names of the weights that it did not have).
    Raises InputError if those are not of the head or a pooler alone."""
    import torch
    import transformers

    try:
        model, loading = getattr(transformers, task.MODEL_CLASS).from_pretrained(
            checkpoint,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{checkpoint} cannot be loaded for training: {first}") from error
    return model, _check_loaded(checkpoint, model, loading)


def _check_loaded(checkpoint: Path, model: Any, loading: Mapping[str, Any]) -> list[str]:
    """Names of the weights that were silently made anew; refuse others than the new task's head."""
    has_head = hasattr(model, model.base_model_prefix)
    body = f"{model.base_model_prefix}." if has_head else ""
    names = [*loading["missing_keys"], *(str(key[0]) for key in loading["mismatched_keys"])]
    # Poolers come from pre-training objectives that many checkpoints dropped.
    lost = sorted(name for name in names if name.startswith(body) and "pooler." not in name)
    if lost:
        raise InputError(
            f"{checkpoint}: {len(lost)} of the model's weights are missing or have another shape than its config.json "
            f"says, for example {lost[0]}."
        )
    return names


def input_names(model: Any, task: Task) -> list[str]:
    """The task's inputs that this model's forward takes."""
    import inspect

    if hasattr(model, "input_names"):
        return list(model.input_names)
    accepted = inspect.signature(model.forward).parameters
    return [name for name in task.INPUT_NAMES if name in accepted]


HOW = ("eager", "compiled", "graphs")


class TorchEngine:
    """A checkpoint, in eager mode on the CPU unless told otherwise. `how` is one of `HOW`: as it is, compiled by
    torch.compile, or recorded as a CUDA graph for every shape of inputs, which takes a GPU.

    Raises InputError for a checkpoint that cannot be loaded, MissingDependencyError for a device that torch cannot use.
    """

    def __init__(self, checkpoint: Path, task: Task, threads: int, device: str = "cpu", how: str = "eager") -> None:
        self.model = load_model(checkpoint, task)
        import torch

        torch.set_num_threads(threads)
        self.input_names = input_names(self.model, task)
        self.output_name = "output"
        self._torch, self._task, self._threads = torch, task, threads
        self._device, self._how = device, how
        try:
            self.model.to(device)
        except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without CUDA
            raise MissingDependencyError(f"torch {version()} cannot use {device}: {_first_line(error)}") from error
        self._answer: Callable[[dict[str, Any]], Any] = self._eager
        if how == "compiled":
            self._answer = torch.compile(self._eager)
        elif how == "graphs":
            self._answer = Graphs(self._eager)

    def _eager(self, tensors: dict[str, Any]) -> Any:
        return self._task.output(self.model(**tensors), tensors)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        names = [name for name in self.input_names if name in inputs]
        tensors = {name: self._torch.from_numpy(inputs[name]).to(self._device) for name in names}
        with self._torch.inference_mode():
            return {self.output_name: self._answer(tensors).float().cpu().numpy()}

    def describe(self) -> dict[str, Any]:
        found = {"engine": NAME, "version": version(), "threads": self._threads, "dtype": "float32"}
        return (
            found if self._device == "cpu" and self._how == "eager" else found | {"on": self._device, "how": self._how}
        )

    def close(self) -> None:
        del self.model, self._answer


class Graphs:
    """A function of tensors, recorded as a CUDA graph for every shape of its inputs: what is done once in Python is
    then replayed by the GPU alone. Its result holds until the next call.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs has it: a few runs on a stream of their own
    before, for what they allocate and choose once is not to be recorded.
    """

    _RUNS_BEFORE = 3

    def __init__(self, function: Callable[[dict[str, Any]], Any]) -> None:
        import torch

        self._torch, self._function = torch, function
        self._recorded: dict[tuple[Any, ...], tuple[Any, dict[str, Any], Any]] = {}

    def __call__(self, tensors: dict[str, Any]) -> Any:
        shapes = tuple((name, tuple(each.shape), each.dtype) for name, each in tensors.items())
        if shapes not in self._recorded:
            self._recorded[shapes] = self._record(tensors)
        graph, inputs, output = self._recorded[shapes]
        for name, each in tensors.items():
            inputs[name].copy_(each)
        graph.replay()
        return output

    def _record(self, tensors: dict[str, Any]) -> tuple[Any, dict[str, Any], Any]:
        cuda = self._torch.cuda
        inputs = {name: each.clone() for name, each in tensors.items()}
        aside = cuda.Stream()
        aside.wait_stream(cuda.current_stream())
        with cuda.stream(aside):
            for _ in range(self._RUNS_BEFORE):
                self._function(inputs)
        cuda.current_stream().wait_stream(aside)
        graph = cuda.CUDAGraph()
        with cuda.graph(graph):
            output = self._function(inputs)
        return graph, inputs, output


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def load(path: Path, threads: int = 1, task: str = "text-classification") -> TorchEngine:
    """Load the checkpoint folder of a trained model."""
    from toolkit import tasks

    return TorchEngine(path, tasks.get(task), threads)


def answers(
    model: Any, checkpoint: Path, task: Task, examples: Sequence[Any], encoding: Mapping[str, Any], context: Context
) -> NDArray[np.float32]:
    """Answers to all examples, float32[rows, width], in batches of similar length (float results do not depend on
    the batch beyond rounding). `checkpoint` is where the model came from: what its encoder is made from lies there."""
    import torch

    torch.set_num_threads(context.threads)
    names = input_names(model, task)
    encoder = task.encoder(checkpoint, encoding, inputs=names)
    order, encoded = list(range(len(examples))), []
    if not task.LAZY:
        encoded = [encoder(example.input) for example in examples]
        order.sort(key=lambda i: encoder.length(encoded[i]))
    found: list[Any] = [None] * len(examples)
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH]
        arrays = encoder.batch([encoded[i] if encoded else encoder(examples[i].input) for i in chosen])
        inputs = {name: torch.from_numpy(arrays[name]) for name in names}
        with torch.inference_mode():
            rows = task.rows(task.output(model(**inputs), inputs), arrays).numpy()
        counts = [len(task.truth([examples[i]])) for i in chosen]
        for i, part in zip(chosen, np.split(rows, np.cumsum(counts)[:-1]), strict=True):
            found[i] = part
        context.progress(min(start + _BATCH, len(order)), len(order), "reference answers")
    return np.concatenate(found).astype(np.float32)


def count_operations(model: Any, task: Task, encoder: Encoder, examples: Sequence[Any]) -> int:
    """Arithmetic operations (2 per multiply-add) of one forward pass over an example of about the mean length, counted
    by torch."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    encoded = [encoder(example.input) for example in (examples[:1] if task.LAZY else examples)]
    lengths = [encoder.length(arrays) for arrays in encoded]
    mean = sum(lengths) / len(lengths)
    arrays = encoded[min(range(len(encoded)), key=lambda i: abs(lengths[i] - mean))]
    inputs = {name: torch.from_numpy(arrays[name]) for name in input_names(model, task)}
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(**inputs)
    return int(counter.get_total_flops())
