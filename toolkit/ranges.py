"""The range in which an activation is quantized, from the values that calibration examples give it.

Values beyond the range are clipped; a narrow range has finer steps. How the two are weighed is the method:

- `min-max`: nothing is clipped;
- `percentile`: a fixed share of the values is;
- `entropy`: the distribution after quantization is as near as possible to the one before, by Kullback-Leibler
  divergence (Migacz, 8-bit inference with TensorRT, 2017);
- `mse`: the mean squared error of quantization is as small as possible (Choukroun et al., 2019).

Values are only counted, in a histogram of fixed size per tensor: memory does not grow with the examples, which may
differ in length. ONNX Runtime's calibrators keep every activation of every example, and take examples of one length.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["min-max", "percentile", "entropy", "mse"]
PERCENTILE = 99.99
_BINS = 8192
_LEVELS = 128  # of the size of a value, in 8 bits
_CANDIDATES = 100


class Histogram:
    """How often a tensor had which value.

    The bins are equal and reach from -limit to limit, a power of two that grows with the values: then the counts do
    not depend on the order of the examples.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self.limit = 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, values: NDArray[Any]) -> None:
        """Count the values of an array of any shape."""
        if values.size == 0:
            return
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self._reach(max(abs(self.low), abs(self.high)))
        places = (values.ravel().astype(np.float64) + self.limit) * (_BINS / (2 * self.limit))
        self.counts += np.bincount(np.minimum(places.astype(np.int64), _BINS - 1), minlength=_BINS)

    def merge(self, other: Histogram) -> Histogram:
        """A histogram of the values of both."""
        both = Histogram()
        for part in (self, other):
            if part.limit:
                both.low, both.high = min(both.low, part.low), max(both.high, part.high)
        if self.limit or other.limit:
            both._reach(max(self.limit, other.limit))
        for part in (self, other):
            both.counts += _widened(part.counts, part.limit, both.limit)
        return both

    def _reach(self, size: float) -> None:
        if self.limit and size <= self.limit:
            return
        limit = 2.0 ** math.ceil(math.log2(size)) if size > 0 else 0.0
        limit = limit or 2.0**-60  # all zeros so far
        self.counts, self.limit = _widened(self.counts, self.limit, limit), limit

    @property
    def centers(self) -> NDArray[np.float64]:
        """The middle of each bin."""
        return np.asarray((np.arange(_BINS) + 0.5) * (2 * self.limit / _BINS) - self.limit)

    def range(self, method: Method, percentile: float = PERCENTILE) -> tuple[float, float]:
        """(lowest, highest) value that is not clipped; zero lies within, because padding is exactly zero."""
        if not self.counts.any():
            return 0.0, 0.0
        low, high = self.low, self.high
        if method == "percentile":
            shares = np.cumsum(self.counts) / self.counts.sum()
            tail = (100 - percentile) / 200
            width = 2 * self.limit / _BINS
            low = max(low, -self.limit + width * int(np.searchsorted(shares, tail)))
            high = min(high, -self.limit + width * (int(np.searchsorted(shares, 1 - tail)) + 1))
        elif method == "entropy":
            clip = _least_divergence(self)
            low, high = max(low, -clip), min(high, clip)
        elif method == "mse":
            clip = _least_error(self)
            low, high = max(low, -clip), min(high, clip)
        return min(low, 0.0), max(high, 0.0)


def _widened(counts: NDArray[np.int64], limit: float, wider: float) -> NDArray[np.int64]:
    """Counts over ±limit as counts over ±wider, both powers of two."""
    while limit and limit < wider:
        halves = counts.reshape(-1, 2).sum(axis=1)
        counts = np.zeros_like(counts)
        counts[_BINS // 4 : _BINS // 4 * 3] = halves
        limit *= 2
    return counts


def _sizes(histogram: Histogram) -> NDArray[np.int64]:
    """Counts by the size of the value, whatever its sign."""
    half = _BINS // 2
    return np.asarray(histogram.counts[half:] + histogram.counts[:half][::-1])


def _least_divergence(histogram: Histogram) -> float:
    """The clip whose quantized distribution has the least divergence from the one that clipping leaves."""
    sizes = _sizes(histogram).astype(np.float64)
    last = int(np.flatnonzero(sizes)[-1]) + 1
    best, chosen = math.inf, last
    for bins in np.unique(np.linspace(min(_LEVELS, last), last, _CANDIDATES, dtype=int)):
        kept = sizes[:bins]
        wanted = kept.copy()
        wanted[-1] += sizes[bins:].sum()
        level = np.minimum(np.arange(bins) * _LEVELS // bins, _LEVELS - 1)
        filled = kept > 0
        in_level = np.bincount(level, weights=kept, minlength=_LEVELS)
        spread = np.bincount(level, weights=filled, minlength=_LEVELS)
        given = np.where(filled, in_level[level] / np.maximum(spread[level], 1), 0.0)
        divergence = _divergence(wanted, given)
        if divergence < best:
            best, chosen = divergence, int(bins)
    return chosen * histogram.limit / (_BINS // 2)


def _divergence(wanted: NDArray[np.float64], given: NDArray[np.float64]) -> float:
    """Kullback-Leibler divergence of two unnormalized distributions; a little mass stands for a missing bin."""
    first = wanted / wanted.sum()
    second = np.maximum(given / max(given.sum(), 1e-12), 1e-9)
    there = first > 0
    return float((first[there] * np.log(first[there] / second[there])).sum())


def _least_error(histogram: Histogram) -> float:
    """The clip of the smallest mean squared error, with as many steps as the range has in 8 bits."""
    largest = max(abs(histogram.low), abs(histogram.high))
    filled = histogram.counts > 0
    values, counts = histogram.centers[filled], histogram.counts[filled]
    best, chosen = math.inf, largest
    for share in np.linspace(1 / _CANDIDATES, 1, _CANDIDATES):
        low, high = max(min(histogram.low, 0.0), -share * largest), min(max(histogram.high, 0.0), share * largest)
        step = (high - low) / 255
        if step <= 0:
            continue
        rounded = low + np.round((np.clip(values, low, high) - low) / step) * step
        error = float((counts * (values - rounded) ** 2).sum())
        if error < best:
            best, chosen = error, share * largest
    return float(chosen)


def scale_and_zero(low: float, high: float, symmetric: bool) -> tuple[float, int]:
    """Step and zero point of 8 bits over a range: signed without a zero point if `symmetric`, else unsigned."""
    if symmetric:
        return max(abs(low), abs(high), 1e-9) / 127, 0
    step = max(high - low, 1e-9) / 255
    return step, round(-low / step)


def instability(first: Histogram, second: Histogram, method: Method, percentile: float = PERCENTILE) -> float:
    """How much wider the range is by one half of the examples than by the other: 0 if it is the same, 1 if twice."""
    widths = [high - low for low, high in (half.range(method, percentile) for half in (first, second))]
    return max(widths) / max(min(widths), 1e-9) - 1
