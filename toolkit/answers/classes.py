"""Answers that are logits over classes, float32[n, classes].

How a compressed model behaves beside the float checkpoint is counted example by example: a mean hides what an
application notices, answers that flip, one class that pays for all, confidence that no longer means what it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 2000
_BINS = 15
WORST = 20


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities, float64[n, classes]."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))


def targets(answers: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """The distribution over the classes, softened by the temperature (Hinton, Vinyals and Dean, 2015)."""
    return softmax(np.asarray(answers) / temperature)


def divergence(targets: NDArray[Any], answers: NDArray[Any]) -> float:
    """Mean Kullback-Leibler divergence in nats of answers from the distributions `targets`. It tells models apart that
    a few hundred labels cannot."""
    said = np.maximum(softmax(answers), 1e-12)
    return float((targets * (np.log(np.maximum(targets, 1e-12)) - np.log(said))).sum(axis=1).mean())


def imitation(said: Any, targets: Any, temperature: float) -> Any:
    """The divergence of softened answers as a loss, times the temperature squared, which keeps the gradient's size."""
    from torch.nn import functional

    softened = functional.log_softmax(said.float() / temperature, dim=1)
    return functional.kl_div(softened, targets, reduction="batchmean") * temperature**2


def changed(before: NDArray[Any], after: NDArray[Any]) -> NDArray[np.bool_]:
    """Where the class with the largest logit is another."""
    return np.asarray(before.argmax(axis=1) != after.argmax(axis=1))


def agreement(before: NDArray[Any], after: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Flip rate against `before`, overall and per class of it, and the largest logit difference."""
    own, flipped = before.argmax(axis=1), changed(before, after)
    worst = float(np.abs(after - before).max())
    return {
        "answers": len(after),
        "flip_rate": float(flipped.mean()),
        "flip_rate_per_class": {
            name: float(flipped[own == i].mean()) if (own == i).any() else None for i, name in enumerate(names)
        },
        "largest_difference": worst if np.isfinite(worst) else None,
    }


def calibration_error(logits: NDArray[Any], labels: NDArray[Any], bins: int = _BINS) -> float:
    """Expected calibration error (Guo et al., 2017): how far confidence is from accuracy, over equal bins of it."""
    probabilities = softmax(logits)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        (places == place).sum() * abs(confidence[places == place].mean() - right[places == place].mean())
        for place in np.unique(places)
    ]
    return float(sum(gaps) / len(labels))


def interval(changes: NDArray[Any], seed: int = 0) -> tuple[float, float]:
    """95 % interval of a mean by bootstrap over examples. `changes` are per example and take few values, such as
    -1, 0 and 1, so that a resample is a draw of how often each occurs."""
    values, counts = np.unique(changes, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(changes), counts / len(changes), size=_RESAMPLES)
    low, high = np.percentile(draws @ values / len(changes), [2.5, 97.5])
    return float(low), float(high)


def class_changes(
    before: NDArray[Any], after: NDArray[Any], labels: NDArray[Any], names: Sequence[str], seed: int = 0
) -> dict[str, dict[str, float]]:
    """Recall of every class before and after, and the change with its 95 % interval (paired: the same examples)."""
    first, second = before.argmax(axis=1) == labels, after.argmax(axis=1) == labels
    changes = {}
    for index, name in enumerate(names):
        chosen = labels == index
        if not chosen.any():
            continue
        change = second[chosen].astype(float) - first[chosen].astype(float)
        low, high = interval(change, seed)
        changes[name] = {
            "examples": int(chosen.sum()),
            "recall_before": float(first[chosen].mean()),
            "recall_after": float(second[chosen].mean()),
            "change": float(change.mean()),
            "low": low,
            "high": high,
        }
    return changes


def describe(
    before: NDArray[Any],
    after: NDArray[Any],
    labels: NDArray[Any],
    names: Sequence[str],
    captions: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """The behaviour report: logits of the same examples before and after, their `labels` int[n].

    The worst examples are those whose right label lost the most probability; `captions` say what each is.
    """
    first, second = before.argmax(axis=1), after.argmax(axis=1)
    flipped = first != second
    rows = np.arange(len(labels))
    lost = softmax(before)[rows, labels] - softmax(after)[rows, labels]
    low, high = interval(flipped.astype(float), seed)
    order = np.argsort(-lost, kind="stable")[:WORST]
    return {
        "examples": len(labels),
        "flip_rate": float(flipped.mean()),
        "flip_rate_low": low,
        "flip_rate_high": high,
        "right_to_wrong": int(((first == labels) & (second != labels)).sum()),
        "wrong_to_right": int(((first != labels) & (second == labels)).sum()),
        "classes": class_changes(before, after, labels, names, seed),
        "calibration_error_before": calibration_error(before, labels),
        "calibration_error_after": calibration_error(after, labels),
        "worst": [
            {
                "example": captions[int(i)],
                "label": names[int(labels[i])],
                "before": names[int(first[i])],
                "after": names[int(second[i])],
                "probability_lost": round(float(lost[i]), 4),
            }
            for i in order
        ],
    }


def sentence(found: dict[str, Any]) -> str:
    """How many answers are others than the float checkpoint's."""
    return (
        f"{found['flip_rate']:.2%} of the answers are not the float checkpoint's (95 % interval "
        f"{found['flip_rate_low']:.2%} to {found['flip_rate_high']:.2%}): {found['right_to_wrong']} right ones became "
        f"wrong, {found['wrong_to_right']} wrong ones right, of {found['examples']}"
    )
