"""Where a training's numbers go besides the receipt: TensorBoard, Weights & Biases, MLflow. Off unless they are named.

The last two by Accelerate's integrations, with the settings that these packages read from the environment: where their
server is, the project's or the experiment's name, and their offline modes (`WANDB_MODE=offline`, a file or a database
as `MLFLOW_TRACKING_URI`).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from toolkit.errors import InputError, missing_extra

if TYPE_CHECKING:
    from toolkit.training.loop import Hyperparameters

Name = Literal["wandb", "mlflow"]
NAMES: tuple[Name, ...] = ("wandb", "mlflow")
_PROJECT = "toolkit"  # unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says otherwise
# They report their own use, and their errors, to their makers. What is tracked goes where the user said.
_QUIET = {"WANDB_ERROR_REPORTING": "false", "WANDB_SILENT": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Tracker:
    """Takes a training's numbers, epoch by epoch; this one forgets them."""

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        """Numbers by name after an epoch, which counts from 1."""

    def close(self) -> None:
        """All is said."""


class TensorBoard(Tracker):
    """Event files in a folder."""

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise missing_extra("tensorboard", "tensorboard", "--tensorboard") from error
        self._writer: Any = SummaryWriter(folder)

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self) -> None:
        self._writer.close()


class Tracked(Tracker):
    """A run of Weights & Biases or MLflow. Raises InputError if it cannot be begun."""

    def __init__(self, name: Name, settings: Mapping[str, Any]) -> None:
        check([name])
        self._name = name
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
        from accelerate import tracking

        made = {
            "wandb": lambda: tracking.WandBTracker(os.environ.get("WANDB_PROJECT", _PROJECT)),
            "mlflow": lambda: tracking.MLflowTracker(_PROJECT),
        }
        try:
            self._tracker: Any = made[name]()
            self._tracker.start()
            self._tracker.store_init_configuration(dict(settings))
        except Exception as error:  # no server, no key, an unknown store: each package has its own
            lines = str(error).strip().splitlines()
            raise InputError(f"--track {name}: {lines[0] if lines else type(error).__name__}") from error

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        self._tracker.log(dict(values), step=epoch)

    def close(self) -> None:
        self._tracker.finish()
        if self._name == "wandb":
            import wandb

            wandb.teardown()  # returns when all is on its way or on disk; this process may end right after


class Several(Tracker):
    """All that were asked for."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = trackers

    def log(self, values: Mapping[str, float], epoch: int) -> None:
        for tracker in self._trackers:
            tracker.log(values, epoch)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()


def check(names: Sequence[str]) -> None:
    """Refuse a tracker whose package is not installed. Raises MissingDependencyError."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise missing_extra(name, name, f"--track {name}")


def open_tracker(parameters: Hyperparameters) -> Tracker:
    """The trackers that a training's parameters ask for. Raises InputError if one cannot be begun."""
    found: list[Tracker] = [TensorBoard(parameters.tensorboard)] if parameters.tensorboard else []
    plain = parameters.model_dump(exclude={"encoding", "tensorboard", "track"})
    settings = {name: value for name, value in plain.items() if isinstance(value, bool | int | float | str)}
    return Several([*found, *(Tracked(name, settings) for name in parameters.track)])
