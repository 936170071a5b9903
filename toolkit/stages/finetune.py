"""`finetune`: all weights of a checkpoint on the task's own data.

AdamW (Loshchilov and Hutter, 2019) with linear warm-up and decay, gradient clipping, bf16 autocast where the CPU or
GPU has bf16 arithmetic, batches of similar length, early stopping on the validation split. The best epoch is kept.
Accelerate carries the loop, so that `accelerate launch` spreads it over several devices.

The state after each epoch is saved as safetensors: a killed run goes on from there with the same numbers as if it
had never stopped, because every epoch draws its order and its dropout from (seed, epoch) alone. The first Ctrl-C
ends training after the batch at hand and keeps the best epoch so far.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from toolkit import tasks
from toolkit.errors import InputError
from toolkit.stages import Context
from toolkit.storage import publish_folder, write_json

VERSION = 2
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers")
_LENGTH_STEP = 8  # tokens


class Parameters(BaseModel):
    """Hyperparameters; the defaults suit encoders of 20 to 110 million weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    max_gradient_norm: float = Field(1.0, gt=0)
    patience: int = Field(2, ge=1, description="Epochs without a better validation score before stopping")
    bf16: bool = False
    max_length: int = Field(128, ge=4)
    tensorboard: str | None = None


class _Interrupt:
    """Turns the first SIGINT into a flag that the training loop looks at. `toolkit.child` starts stages with the
    signal blocked, so that one sent while they load is kept for here."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> _Interrupt:
        self._previous = signal.signal(signal.SIGINT, self._note)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self

    def _note(self, *_: Any) -> None:
        self.requested = True

    def __exit__(self, *_: Any) -> None:
        signal.signal(signal.SIGINT, self._previous)


def grouped_batches(lengths: list[int], size: int, generator: np.random.Generator) -> list[list[int]]:
    """Indices in batches of similar length, in random order: shuffle, sort within windows, shuffle the batches."""
    order = generator.permutation(len(lengths))
    window = size * 50
    batches = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window].tolist(), key=lambda i: (lengths[i], i))
        batches += [part[i : i + size] for i in range(0, len(part), size)]
    return [batches[int(i)] for i in generator.permutation(len(batches))]


def learning_rate_factor(step: int, total: int, warmup: int) -> float:
    """Linear from 0 to 1 over `warmup` steps, then linear to 0 at `total`."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (total - step) / max(1, total - warmup))


@dataclass
class _Progress:
    """How far a run has come. Epochs count from 0."""

    epoch: int = 0  # the next one
    best: float = -1.0  # validation score
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)

    def add(self, steps: int, loss: float, score: float) -> bool:
        """Note an epoch; True if it is the best so far."""
        self.history.append({"epoch": self.epoch + 1, "steps": steps, "loss": loss, "validation_score": score})
        better = score > self.best
        if better:
            self.best, self.best_epoch = score, self.epoch
        self.epoch += 1
        return better

    def goes_on(self, parameters: Parameters) -> bool:
        return self.epoch < parameters.epochs and self.epoch - self.best_epoch <= parameters.patience


def _save_state(folder: Path, model: Any, optimizer: Any, names: list[str], progress: _Progress) -> None:
    """The whole training state as safetensors + JSON, published in one step. `names` are the optimizer's parameters
    in its order."""
    from safetensors.torch import save_file

    state = optimizer.state_dict()["state"]
    moments = {
        f"{key}/{names[index]}": value.detach().contiguous()
        for index, entry in state.items()
        for key, value in entry.items()
    }
    weights = {name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}
    with publish_folder(folder / "state", replace=True) as aside:
        save_file(weights, str(aside / "weights.safetensors"))
        save_file(moments, str(aside / "optimizer.safetensors"))
        write_json(aside / "progress.json", asdict(progress))


def _load_state(folder: Path, model: Any, optimizer: Any, names: list[str]) -> _Progress:
    """Restore what `_save_state` wrote, if it wrote anything."""
    from safetensors.torch import load_file

    state = folder / "state"
    if not (state / "progress.json").exists():
        return _Progress()
    model.load_state_dict(load_file(str(state / "weights.safetensors")))
    moments: dict[int, dict[str, Any]] = {}
    for key, value in load_file(str(state / "optimizer.safetensors")).items():
        kind, _, name = key.partition("/")
        moments.setdefault(names.index(name), {})[kind] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return _Progress(**json.loads((state / "progress.json").read_text(encoding="utf-8")))


def _check_loaded(source: Path, model: Any, loading: dict[str, Any]) -> None:
    """Refuse weights that were silently made anew: only the new task's head may be."""
    body = f"{model.base_model_prefix}."
    names = [*loading["missing_keys"], *(str(key[0]) for key in loading["mismatched_keys"])]
    # Poolers come from pre-training objectives that many checkpoints dropped.
    lost = sorted(name for name in names if name.startswith(body) and ".pooler." not in name)
    if lost:
        raise InputError(
            f"{source}: {len(lost)} of the model's weights are missing or have another shape than its config.json "
            f"says, for example {lost[0]}."
        )


class _Trainer:
    """What one fine-tuning run holds: model, data, optimizer, accelerator."""

    def __init__(self, source: Path, parameters: Parameters, context: Context) -> None:
        import torch
        import transformers
        from accelerate import Accelerator

        from toolkit.engines.torch import input_names

        assert context.data is not None  # noqa: S101 - the runner always prepares data before it trains
        self.torch, self.parameters, self.context = torch, parameters, context
        torch.set_num_threads(context.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        self.task = tasks.get(context.task)
        self.names: list[str] = json.loads((context.data / "labels.json").read_text(encoding="utf-8"))
        torch.manual_seed(context.seed)  # a new head starts from it
        try:
            model, loading = getattr(transformers, self.task.MODEL_CLASS).from_pretrained(
                source,
                num_labels=len(self.names),
                id2label=dict(enumerate(self.names)),
                label2id={name: index for index, name in enumerate(self.names)},
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            first = str(error).strip().splitlines()[0]
            raise InputError(f"{source} cannot be loaded for fine-tuning: {first}") from error
        _check_loaded(source, model, loading)
        # The loop below draws every epoch's batches from its seed and hands each process its share; Accelerate
        # places the model, wraps it for several devices and reduces gradients and scores.
        self.accelerator = Accelerator(mixed_precision="bf16" if parameters.bf16 else "no")
        self.inputs = input_names(model, self.task)
        self.encoder = self.task.encoder(source, inputs=self.inputs, max_length=parameters.max_length)
        self.train = self._encode("train")
        self.validation = self._encode("validation")
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Biases and norms are not decayed.
        decayed = [name for name, p in trained.items() if p.ndim > 1]
        others = [name for name, p in trained.items() if p.ndim <= 1]
        self.optimized = decayed + others  # the optimizer's order
        groups = [
            {"params": [trained[name] for name in decayed], "weight_decay": parameters.weight_decay},
            {"params": [trained[name] for name in others], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=parameters.learning_rate)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    def _encode(self, split: str) -> list[tuple[dict[str, Any], int]]:
        assert self.context.data is not None  # noqa: S101
        examples = self.task.read_examples(self.context.data, split)
        return [(self.encoder(example.text), example.label) for example in examples]

    def batch(self, items: list[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        from toolkit.engines.torch import pad_batch

        arrays = pad_batch([arrays for arrays, _ in items], self.encoder.padding)
        # Few different lengths: oneDNN keeps a kernel and its workspace for every shape it has seen.
        length = arrays["input_ids"].shape[1]
        more = min(-length % _LENGTH_STEP, self.parameters.max_length - length)
        tensors = {
            name: self.torch.from_numpy(np.pad(array, ((0, 0), (0, more)), constant_values=self.encoder.padding[name]))
            for name, array in arrays.items()
        }
        tensors["labels"] = self.torch.tensor([label for _, label in items])
        return {name: tensor.to(self.accelerator.device) for name, tensor in tensors.items()}

    def validate(self) -> float:
        """Score on the validation split, over all processes."""
        # Unwrapped: each forward pass of the wrapper is a collective operation, and shares differ in length.
        model = self.accelerator.unwrap_model(self.model).eval()
        share = self.validation[self.accelerator.process_index :: self.accelerator.num_processes]
        share.sort(key=lambda item: item[0]["input_ids"].shape[1])
        logits, labels = [], []
        for start in range(0, len(share), self.parameters.batch_size * 2):
            batch = self.batch(share[start : start + self.parameters.batch_size * 2])
            with self.torch.no_grad():
                logits.append(model(**batch).logits.float().cpu().numpy())
            labels.append(batch["labels"].cpu().numpy())
        parts = [(np.concatenate(logits), np.concatenate(labels))] if logits else []
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            parts = gather_object(parts)
        every = np.concatenate([part for part, _ in parts])
        truth = np.concatenate([part for _, part in parts])
        return float(self.task.metrics(every, truth, self.names)["score"])

    def stopping(self, stop: _Interrupt) -> bool:
        """Whether any process was asked to stop: all of them leave the loop after the same batch."""
        if self.accelerator.num_processes == 1:
            return stop.requested
        asked = self.torch.tensor([float(stop.requested)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked).item() > 0)

    def epoch(self, number: int, first_step: int, total: int, stop: _Interrupt) -> tuple[int, float, bool]:
        """One pass over the training data: (steps done, mean loss, whether it was interrupted)."""
        parameters, torch = self.parameters, self.torch
        self.model.train()
        torch.manual_seed(self.context.seed * 1_000_003 + number)
        generator = np.random.default_rng([self.context.seed, number])
        lengths = [arrays["input_ids"].shape[1] for arrays, _ in self.train]
        processes = self.accelerator.num_processes
        batches = grouped_batches(lengths, parameters.batch_size * processes, generator)
        losses: list[float] = []
        interrupted = False
        warmup = math.ceil(total * parameters.warmup_fraction)
        for index, chosen in enumerate(batches):
            step = first_step + index
            share = chosen[self.accelerator.process_index :: processes] or chosen[:1]
            for group in self.optimizer.param_groups:
                group["lr"] = parameters.learning_rate * learning_rate_factor(step, total, warmup)
            with self.accelerator.autocast():
                loss = self.model(**self.batch([self.train[i] for i in share])).loss
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.model.parameters(), parameters.max_gradient_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(float(loss.detach()))
            text = f"epoch {number + 1} of {parameters.epochs}, loss {np.mean(losses[-50:]):.3f}"
            self.context.progress(step + 1, total, text)
            interrupted = self.stopping(stop)
            if interrupted:
                break
        return len(losses), float(np.mean(losses)), interrupted


def _writer(parameters: Parameters) -> Any:
    if parameters.tensorboard is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        from toolkit.errors import missing_extra

        raise missing_extra("tensorboard", "tensorboard", "--tensorboard") from error
    return SummaryWriter(parameters.tensorboard)


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Fine-tune the checkpoint `source`; write the best epoch as a Hugging Face folder to `output`."""
    with _Interrupt() as stop:
        return _run(source, output, parameters, context, stop)


def _run(source: Path, output: Path, parameters: Parameters, context: Context, stop: _Interrupt) -> dict[str, Any]:
    context.progress(0, 1, "loading torch and the checkpoint")
    trainer = _Trainer(source, parameters, context)
    first = trainer.accelerator.is_main_process
    writer = _writer(parameters) if first else None
    raw = trainer.accelerator.unwrap_model(trainer.model)
    per_epoch = math.ceil(len(trainer.train) / (parameters.batch_size * trainer.accelerator.num_processes))
    best_folder = (context.resume or output) / "best"
    progress = _Progress()
    if context.resume is not None:
        context.resume.mkdir(parents=True, exist_ok=True)
        progress = _load_state(context.resume, raw, trainer.optimizer.optimizer, trainer.optimized)
    interrupted = False
    while not interrupted and progress.goes_on(parameters):
        done, total = progress.epoch * per_epoch, parameters.epochs * per_epoch
        steps, loss, interrupted = trainer.epoch(progress.epoch, done, total, stop)
        score = trainer.validate()
        if progress.add(steps, loss, score):
            if interrupted:  # part of an epoch: the best whole one stays for a later run to go on from
                best_folder = output / "best"
            if first:
                with publish_folder(best_folder, replace=True) as aside:
                    raw.save_pretrained(aside)
        if writer is not None:
            writer.add_scalar("train/loss", loss, progress.epoch)
            writer.add_scalar("validation/score", score, progress.epoch)
        if context.resume is not None and first and not interrupted:
            _save_state(context.resume, raw, trainer.optimizer.optimizer, trainer.optimized, progress)
    if writer is not None:
        writer.close()
    trainer.accelerator.wait_for_everyone()
    if first:
        _collect(best_folder, source, output)
    return {
        "epochs_run": progress.epoch,
        "best_epoch": progress.best_epoch + 1,
        "validation_score": progress.best,
        "history": progress.history,
        "interrupted": interrupted,
        "bf16": parameters.bf16,
        "processes": trainer.accelerator.num_processes,
    }


def _collect(best: Path, source: Path, output: Path) -> None:
    """Put the best epoch's weights and the tokenizer of `source` into `output`."""
    for path in best.iterdir():
        shutil.copy(path, output / path.name)
        (output / path.name).chmod(0o644)
    if best.parent == output:
        shutil.rmtree(best)
    for path in source.iterdir():
        if path.is_file() and path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens", "spiece")):
            shutil.copy(path, output / path.name)
