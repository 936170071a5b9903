"""Where a training's numbers go besides the receipt: TensorBoard, if a folder is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from toolkit.errors import missing_extra

if TYPE_CHECKING:
    from toolkit.training.loop import Hyperparameters


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


def open_tracker(parameters: Hyperparameters) -> Tracker:
    """The tracker that a training's parameters ask for. Raises InputError if its package is missing."""
    return TensorBoard(parameters.tensorboard) if parameters.tensorboard else Tracker()
