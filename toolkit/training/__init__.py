"""Training: one loop for every stage with gradients, and what it is made of, a file each."""

from __future__ import annotations

from toolkit.training.augmentation import augmenter
from toolkit.training.examples import Batch, Examples, answer, encode, sampled
from toolkit.training.follower import Follower
from toolkit.training.interrupt import Interrupt
from toolkit.training.loop import Hyperparameters, Progress, Save, Trainer, begin, fit
from toolkit.training.losses import Loss, balanced_weights, from_labels
from toolkit.training.rates import rate_shares
from toolkit.training.regularization import adversarial, check_dropout, input_embeddings

__all__ = [
    "Batch", "Examples", "Follower", "Hyperparameters", "Interrupt", "Loss", "Progress", "Save", "Trainer",
    "adversarial", "answer", "augmenter", "balanced_weights", "begin", "check_dropout", "encode", "fit", "from_labels",
    "input_embeddings", "rate_shares", "sampled",
]  # fmt: skip
