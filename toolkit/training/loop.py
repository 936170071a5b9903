"""The training loop that every stage with gradients runs: fine-tuning, distillation, recovery after pruning.

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
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from toolkit import tasks
from toolkit.stages import Context
from toolkit.storage import publish_folder, write_json
from toolkit.tasks.task import Task
from toolkit.training import trackers
from toolkit.training.examples import Examples, answer, encode, grouped_batches, share_of
from toolkit.training.follower import Follower
from toolkit.training.interrupt import Interrupt
from toolkit.training.losses import Loss
from toolkit.training.rates import learning_rate_factor, rate_shares

# Writes a model to a folder and tells of it, for the receipt.
Save = Callable[[Any, Path], dict[str, Any]]


def _as_it_is(model: Any, folder: Path) -> dict[str, Any]:
    model.save_pretrained(folder)
    return {}


class Hyperparameters(BaseModel):
    """What every training stage can be told; the defaults suit encoders of 20 to 110 million weights."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(3, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    batch_size: int = Field(32, ge=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup_fraction: float = Field(0.1, ge=0, le=1)
    max_gradient_norm: float = Field(1.0, gt=0)
    patience: int | None = Field(
        2, ge=1, description="Epochs without a better one on the validation split before stopping; None: never"
    )
    give_up_below: float | None = Field(None, description="Stop if no epoch's validation score reaches this")
    bf16: bool = False
    accumulate: int = Field(1, ge=1, description="Batches per step of the optimizer")
    layer_decay: float = Field(1.0, gt=0, le=1, description="Each layer learns at this share of the rate of the next")
    encoding: dict[str, Any] = Field({}, description="Settings of the task's encoder")
    tensorboard: str | None = None
    track: list[trackers.Name] = []


@dataclass
class Progress:
    """How far a run has come. Epochs count from 0. The best one diverges least from the teachers on the validation
    split, or scores best where there are none."""

    epoch: int = 0  # the next one
    best: dict[str, Any] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    saved: dict[str, Any] = field(default_factory=dict)  # what `save` told of the best one

    def add(self, steps: int, loss: float, score: float, divergence: float | None, keep_last: bool = False) -> bool:
        """Note an epoch; True if it is the best so far, as every one is where the last one is kept."""
        self.epoch += 1
        entry = {"epoch": self.epoch, "steps": steps, "loss": loss, "validation_score": score}
        if divergence is not None:
            entry["validation_divergence"] = divergence
        self.history.append(entry)
        better = (
            keep_last
            or self.best is None
            or (
                score > self.best["validation_score"]
                if divergence is None
                else divergence < self.best["validation_divergence"]
            )
        )
        if better:
            self.best = entry
        return better

    def gave_up(self, parameters: Hyperparameters) -> bool:
        """Whether there have been epochs, and none of them was good enough to go on from."""
        least = parameters.give_up_below
        return least is not None and bool(self.history) and max(e["validation_score"] for e in self.history) < least

    def goes_on(self, parameters: Hyperparameters) -> bool:
        waited = self.epoch - self.best["epoch"] if self.best else 0
        patient = parameters.patience is None or waited < parameters.patience
        return self.epoch < parameters.epochs and patient and not self.gave_up(parameters)


class Trainer:
    """What one training run holds: model, data, loss, optimizer, accelerator.

    `score` takes the answers to the whole validation split in its order; `divergence`, if given, too: how far they are
    from the teachers'. `beside` is a module that the loss uses and that learns along, but is no part of the model and
    is not written. `save` writes the best epoch and tells of it, for the receipt; None: as the model itself does. With
    `keep_last` the last epoch is taken for the best.
    """

    def __init__(
        self,
        model: Any,
        parameters: Hyperparameters,
        context: Context,
        *,
        train: Examples,
        validation: Examples,
        loss: Loss,
        score: Callable[[Any], float],
        divergence: Callable[[Any], float] | None = None,
        beside: Any = None,
        follower: Follower | None = None,
        save: Save | None = None,
        keep_last: bool = False,
    ) -> None:
        import torch
        from accelerate import Accelerator

        self.torch, self.parameters, self.context = torch, parameters, context
        self.train, self.validation, self.loss = train, validation, loss
        self.score, self.divergence, self.follower = score, divergence, follower
        self.keep_last = keep_last
        self.save = save or _as_it_is
        # The loop below draws every epoch's batches from its seed and hands each process its share; Accelerate
        # places the model, wraps it for several devices and reduces gradients and scores.
        self.accelerator = Accelerator(mixed_precision="bf16" if parameters.bf16 else "no")
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.beside = beside
        if beside is not None:
            beside.to(self.accelerator.device)
            trained |= {f"beside/{name}": p for name, p in beside.named_parameters()}
        grouped: dict[tuple[float, float], list[str]] = {}
        shares = rate_shares(list(trained), parameters.layer_decay)
        for name, parameter in trained.items():
            decay = parameters.weight_decay if parameter.ndim > 1 else 0.0  # biases and norms are not decayed
            grouped.setdefault((decay, shares[name]), []).append(name)
        ordered = sorted(grouped, key=lambda kind: (-kind[0], -kind[1]))
        self.optimized = [name for kind in ordered for name in grouped[kind]]  # the optimizer's order
        groups = [
            {"params": [trained[name] for name in grouped[decay, share]], "weight_decay": decay, "share": share}
            for decay, share in ordered
        ]
        optimizer = torch.optim.AdamW(groups, lr=parameters.learning_rate)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

    @property
    def raw(self) -> Any:
        """The model without the accelerator's wrapper."""
        return self.accelerator.unwrap_model(self.model)

    def validate(self) -> tuple[float, float | None]:
        """Score on the validation split, and divergence from the teachers if there are any, over all processes."""
        # Unwrapped: each forward pass of the wrapper is a collective operation, and shares differ in length.
        model, examples = self.raw.eval(), self.validation
        share = list(range(self.accelerator.process_index, len(examples), self.accelerator.num_processes))
        share.sort(key=lambda i: examples.lengths[i])
        found: list[tuple[int, Any]] = []
        for start in range(0, len(share), self.parameters.batch_size * 2):
            chosen = share[start : start + self.parameters.batch_size * 2]
            with self.torch.no_grad():
                rows, _ = answer(examples.task, model, examples.batch(chosen, self.accelerator.device))
            found += zip(chosen, examples.rows(rows.float().cpu().numpy(), chosen), strict=True)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            found = gather_object(found)
        answers = np.concatenate([rows for _, rows in sorted(found, key=lambda pair: pair[0])])
        return self.score(answers), self.divergence(answers) if self.divergence is not None else None

    def stopping(self, stop: Interrupt) -> bool:
        """Whether any process was asked to stop: all of them leave the loop after the same batch."""
        if self.accelerator.num_processes == 1:
            return stop.requested
        asked = self.torch.tensor([float(stop.requested)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(asked).item() > 0)

    def epoch(self, number: int, first_step: int, total: int, stop: Interrupt) -> tuple[int, float, bool]:
        """One pass over the training data: (steps done, mean loss, whether it was interrupted)."""
        parameters, torch = self.parameters, self.torch
        self.model.train()
        torch.manual_seed(self.context.seed * 1_000_003 + number)
        generator = np.random.default_rng([self.context.seed, number])
        processes = self.accelerator.num_processes
        together = self.train.task.GROUP
        shown = self.train.of_epoch(self.context.seed, number)
        lengths = [self.train.lengths[i] for i in shown]
        batches = grouped_batches(lengths, parameters.batch_size * processes, generator, together)
        losses: list[float] = []
        interrupted = False
        warmup = math.ceil(total * parameters.warmup_fraction)
        for index, places in enumerate(batches):
            step = first_step + index
            chosen = [shown[place] for place in places]
            share = share_of(chosen, self.accelerator.process_index, processes, together)
            for group in self.optimizer.param_groups:
                group["lr"] = parameters.learning_rate * group["share"] * learning_rate_factor(step, total, warmup)
            with self.accelerator.autocast():
                loss = self.loss(self.model, self.train.batch(share, self.accelerator.device, number))
            self.accelerator.backward(loss / parameters.accumulate)
            if (index + 1) % parameters.accumulate == 0 or index + 1 == len(batches):
                self.accelerator.clip_grad_norm_(self.model.parameters(), parameters.max_gradient_norm)
                self.optimizer.step()
                if self.follower is not None:
                    self.follower.after_step()
                self.optimizer.zero_grad()
            losses.append(float(loss.detach()))
            text = f"epoch {number + 1} of {parameters.epochs}, loss {np.mean(losses[-50:]):.3f}"
            self.context.progress(step + 1, total, text)
            interrupted = self.stopping(stop)
            if interrupted:
                break
        return len(losses), float(np.mean(losses)), interrupted

    def run(self, output: Path, stop: Interrupt) -> dict[str, Any]:
        """Train, and write the best epoch's `config.json` and weights to `output`: what was done, for the receipt."""
        parameters, context = self.parameters, self.context
        first = self.accelerator.is_main_process
        tracker = trackers.open_tracker(parameters) if first else trackers.Tracker()
        shown = len(self.train.of_epoch(context.seed, 0))
        per_epoch = math.ceil(shown / (parameters.batch_size * self.accelerator.num_processes))
        best_folder = (context.resume or output) / "best"
        progress = Progress()
        if self.follower is not None:
            self.follower.begin(parameters.epochs * math.ceil(per_epoch / parameters.accumulate))
        if context.resume is not None:
            context.resume.mkdir(parents=True, exist_ok=True)
            progress = self._load_state(context.resume)
        interrupted = False
        while not interrupted and progress.goes_on(parameters):
            done, total = progress.epoch * per_epoch, parameters.epochs * per_epoch
            steps, loss, interrupted = self.epoch(progress.epoch, done, total, stop)
            score, divergence = self.validate()
            if progress.add(steps, loss, score, divergence, self.keep_last):
                if interrupted:  # part of an epoch: the best whole one stays for a later run to go on from
                    best_folder = output / "best"
                if first:
                    with publish_folder(best_folder, replace=True) as aside:
                        progress.saved = self.save(self.raw, aside)
            tracker.log({"train/loss": loss, "validation/score": score}, progress.epoch)
            if context.resume is not None and first and not interrupted:
                self._save_state(context.resume, progress)
        tracker.close()
        self.accelerator.wait_for_everyone()
        if first:
            for path in best_folder.iterdir():
                shutil.copy(path, output / path.name)
                (output / path.name).chmod(0o644)
            if best_folder.parent == output:
                shutil.rmtree(best_folder)
        return {
            "epochs_run": progress.epoch,
            "best_epoch": progress.best["epoch"] if progress.best else 0,
            "validation_score": progress.best["validation_score"] if progress.best else None,
            "history": progress.history,
            "gave_up": progress.gave_up(parameters),
            "interrupted": interrupted,
            "bf16": parameters.bf16,
            "processes": self.accelerator.num_processes,
            **progress.saved,
        }

    def _save_state(self, folder: Path, progress: Progress) -> None:
        """The whole training state as safetensors + JSON, published in one step."""
        from safetensors.torch import save_file

        moments = {
            f"{key}/{self.optimized[index]}": value.detach().contiguous()
            for index, entry in self.optimizer.optimizer.state_dict()["state"].items()
            for key, value in entry.items()
        }
        weights = {name: value.detach().clone().contiguous() for name, value in self.raw.state_dict().items()}
        with publish_folder(folder / "state", replace=True) as aside:
            save_file(weights, str(aside / "weights.safetensors"))
            save_file(moments, str(aside / "optimizer.safetensors"))
            if self.beside is not None:
                save_file(self.beside.state_dict(), str(aside / "beside.safetensors"))
            if self.follower is not None:
                save_file(self.follower.state(), str(aside / "follower.safetensors"))
            write_json(aside / "progress.json", asdict(progress))

    def _load_state(self, folder: Path) -> Progress:
        """Restore what `_save_state` wrote, if it wrote anything."""
        from safetensors.torch import load_file

        state, optimizer = folder / "state", self.optimizer.optimizer
        if not (state / "progress.json").exists():
            return Progress()
        self.raw.load_state_dict(load_file(str(state / "weights.safetensors")))
        if self.beside is not None:
            self.beside.load_state_dict(load_file(str(state / "beside.safetensors")))
        if self.follower is not None:
            self.follower.restore(load_file(str(state / "follower.safetensors")))
        moments: dict[int, dict[str, Any]] = {}
        for key, value in load_file(str(state / "optimizer.safetensors")).items():
            kind, _, name = key.partition("/")
            moments.setdefault(self.optimized.index(name), {})[kind] = value
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        return Progress(**json.loads((state / "progress.json").read_text(encoding="utf-8")))


def begin(context: Context) -> tuple[Task, list[str]]:
    """Make torch give the same numbers on every run, from the seed: the task, and the labels of the prepared data."""
    import torch

    assert context.data is not None  # noqa: S101 - the runner always prepares data before a stage trains
    torch.set_num_threads(context.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(context.seed)  # a new head starts from it
    labels: list[str] = json.loads((context.data / "labels.json").read_text(encoding="utf-8"))
    return tasks.get(context.task), labels


def fit(
    model: Any,
    parameters: Hyperparameters,
    context: Context,
    stop: Interrupt,
    output: Path,
    *,
    labels: list[str],
    train: Examples,
    loss: Loss,
    validation: Examples | None = None,
    score: Callable[[Any], float] | None = None,
    divergence: Callable[[Any], float] | None = None,
    files: Path | None = None,
    beside: Any = None,
    follower: Follower | None = None,
    save: Save | None = None,
    keep_last: bool = False,
) -> dict[str, Any]:
    """Train `model` and write the epoch that was best on the validation split to `output`; with what the encoder of the
    checkpoint `files` is made from, if one is given. `validation` and `score` are those of the prepared data and of the
    task unless given. `Trainer` explains the rest. What was done, for the receipt."""
    assert context.data is not None  # noqa: S101
    task = tasks.get(context.task)
    judged = validation or encode(task, context.data, "validation", train.encoder, train.names)
    trainer = Trainer(
        model,
        parameters,
        context,
        train=train,
        validation=judged,
        loss=loss,
        score=score or (lambda answers: float(task.metrics(answers, judged.examples, labels)["score"])),
        divergence=divergence,
        beside=beside,
        follower=follower,
        save=save,
        keep_last=keep_last,
    )
    report = trainer.run(output, stop)
    if files is not None and trainer.accelerator.is_main_process:
        task.copy_files(files, output, parameters.encoding)
    return report
