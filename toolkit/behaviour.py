"""How a compressed model behaves beside the float checkpoint, example by example.

A mean hides what an application notices: answers that flip, one class that pays for all, confidence that no longer
means what it did. Everything here is counted on the same labelled examples, answered by both.
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
    texts: Sequence[str],
    seed: int = 0,
) -> dict[str, Any]:
    """The behaviour report. `before` and `after` are logits float[n, classes] of the same examples, `labels` int[n].

    The worst examples are those whose right label lost the most probability.
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
                "text": texts[int(i)],
                "label": names[int(labels[i])],
                "before": names[int(first[i])],
                "after": names[int(second[i])],
                "probability_lost": round(float(lost[i]), 4),
            }
            for i in order
        ],
    }
