"""A stage run in the process of the tests, on prepared examples, and what came out of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit import stages


def run_stage(
    name: str,
    source: Path,
    output: Path,
    data: Path,
    *,
    seed: int = 0,
    resume: Path | None = None,
    progress: Any = stages._ignore,
    task: str = "text-classification",
    **parameters: Any,
) -> dict[str, Any]:
    """The stage's report. `output` is made if it is not there."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a process of the stage's own has none
    output.mkdir(parents=True, exist_ok=True)
    module = stages.get(name)
    context = stages.Context(task=task, seed=seed, data=data, resume=resume, progress=progress)
    return module.run(source, output, module.Parameters.model_validate(parameters), context)


def weights(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights file."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def digest(model: Any) -> str:
    """SHA-256 of a model's weights in memory."""
    state = {name: value.detach().numpy().tobytes() for name, value in model.state_dict().items()}
    return hashlib.sha256(b"".join(state[name] for name in sorted(state))).hexdigest()


def saved(folder: Path) -> str:
    """`digest` of a checkpoint's weights as transformers loads them."""
    from transformers import AutoModelForSequenceClassification

    return digest(AutoModelForSequenceClassification.from_pretrained(folder))


class KilledError(Exception):
    """What a progress callback raises to end a stage as a kill would."""


def kill_at(start: str, after: int) -> Callable[[int, int, str], None]:
    """A progress callback that ends the stage in the epoch that `start` names, `after` steps into the run."""

    def progress(done: int, total: int, text: str) -> None:
        if text.startswith(start) and done >= after:
            raise KilledError

    return progress
