"""Which input lengths an artifact with fixed shapes should have, from the lengths of real examples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STEP = 8  # kernels work on multiples of the vector width
MOST_BUCKETS = 4  # each bucket is a signature: conversion time and a little file size
ALWAYS_COVERED = 128  # inputs up to this length are never truncated if the model can take them


def round_up(value: int, step: int = STEP) -> int:
    """The next multiple of `step`."""
    return -(-value // step) * step


def statistics(lengths: Sequence[int]) -> dict[str, float]:
    """Count, mean and percentiles of token counts."""
    array = np.asarray(lengths)
    points = {f"p{q}": float(np.percentile(array, q)) for q in (50, 90, 99)}
    return {"count": len(array), "mean": round(float(array.mean()), 2), "max": int(array.max()), **points}


def choose_max_length(lengths: Sequence[int], model_limit: int) -> int:
    """Truncation length: covers 99.5 % of the real examples and at least 128 tokens, within the model's limit."""
    wanted = round_up(int(np.percentile(np.asarray(lengths), 99.5)))
    return min(max(wanted, ALWAYS_COVERED), model_limit)


def choose_buckets(lengths: Sequence[int], max_length: int, most: int = MOST_BUCKETS) -> list[int]:
    """At most `most` ascending input lengths, the last one `max_length`, that waste the fewest padded tokens.

    Exact, by dynamic programming over the multiples of 8 up to `max_length`.
    """
    counts = np.bincount(np.minimum(np.asarray(lengths), max_length), minlength=max_length + 1)
    edges = [*range(STEP, max_length, STEP), max_length]
    below = [int(counts[: edge + 1].sum()) for edge in edges]
    best = [[count * edge for count, edge in zip(below, edges, strict=True)]]
    previous: list[list[int]] = [[-1] * len(edges)]
    for _ in range(1, most):
        row, origin = [], []
        for i, edge in enumerate(edges):
            choices = [(best[-1][j] + (below[i] - below[j]) * edge, j) for j in range(i)]
            cost, j = min(choices, default=(best[-1][i], -1))
            row.append(cost)
            origin.append(j)
        best.append(row)
        previous.append(origin)
    used = min(range(most), key=lambda k: (best[k][-1], k))
    chosen, index = [], len(edges) - 1
    for k in range(used, -1, -1):
        chosen.append(edges[index])
        index = previous[k][index]
        if index < 0:
            break
    return chosen[::-1]
