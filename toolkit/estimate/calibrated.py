"""Times from a calibration: an operation takes as long for its work as the kernels like it that were measured there."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from toolkit.costs import Operation
from toolkit.costs.work import PRODUCTS
from toolkit.estimate.seconds import NOTHING, Seconds
from toolkit.target import Calibration, KernelTime

# What a measured time is to an estimate, at least and at most, set on what benchmarks/estimates.py measured with one
# and with two threads: those wait for each other, more in a model than in a row of equal kernels.
_ONE_THREAD, _SEVERAL = (0.72, 1.45), (0.58, 1.7)
_NEAREST = 3
_CLOSE = 0.05  # distance (of logarithms) within which one kernel decides


class Calibrated:
    """An engine on the machine that was calibrated. `weights` are the bytes of weights that an inference reads: those
    that exceed the caches come from memory every time."""

    def __init__(self, calibration: Calibration, weights: int) -> None:
        self._calibration = calibration
        self._launch = calibration.operator_us * 1e-6
        self._bounds = _ONE_THREAD if calibration.threads == 1 else _SEVERAL
        self.call = self._interval(calibration.call_us * 1e-6)
        self._bandwidth = self._of_reads(weights)
        views = [kernel.time_us * 1e-6 for kernel in calibration.kernels if kernel.work == "view"]
        self._view = statistics.median(views) if views else self._launch

    def seconds(self, operation: Operation) -> Seconds:
        if not operation.runs:
            return NOTHING
        if operation.work == "view":
            return self._interval(self._view * operation.runs)
        if operation.work in PRODUCTS:
            work = self._products(operation)
            if self._bandwidth:
                work = max(work, operation.weight_bytes / self._bandwidth)
        else:
            work = self._moved(operation)
        return self._interval(work + self._launch * operation.runs)

    def _products(self, operation: Operation) -> float:
        """At the rate of measured products that are like it in size, and in multiply-adds per byte."""
        count = operation.multiply_adds / operation.runs
        if not count:
            return 0.0
        each = operation.bytes / operation.runs
        at = (math.log(count), math.log(count / max(1.0, each)))

        def place(kernel: KernelTime) -> tuple[float, ...]:
            bytes_ = kernel.weight_bytes + kernel.activation_bytes
            return math.log(kernel.multiply_adds), math.log(kernel.multiply_adds / bytes_)

        kernels = self._like(operation)
        return operation.multiply_adds / self._rate(kernels, at, place, lambda kernel: kernel.multiply_adds)

    def _moved(self, operation: Operation) -> float:
        """At the rate of measured operations of its type or class that move as many bytes. Where none was on integers,
        they are taken to take as long as on as many floats."""
        kernels = self._like(operation)
        wide = 4 if operation.dtype == "int8" and kernels[0].precision != "int8" else 1
        count = operation.bytes * wide
        if not count:
            return 0.0
        at = (math.log(count / operation.runs),)
        return count / self._rate(kernels, at, lambda kernel: (math.log(_moved_bytes(kernel)),), _moved_bytes)

    def _like(self, operation: Operation) -> list[KernelTime]:
        """The kernels of its own type in its number format; or else of its class, in its format or in float; or of
        those that every calibration has."""
        every = self._calibration.kernels
        wanted = (operation.kind, operation.work, operation.dtype)
        same = [kernel for kernel in every if (kernel.kind, kernel.work, kernel.precision) == wanted]
        if same:
            return same
        for work in (operation.work, "gemm" if operation.work in PRODUCTS else "elementwise"):
            for precision in (operation.dtype, "fp32"):
                found = [kernel for kernel in every if (kernel.work, kernel.precision) == (work, precision)]
                if found:
                    return found
        raise AssertionError("a calibration has gemm and elementwise in float")

    def _rate(
        self,
        kernels: Sequence[KernelTime],
        at: tuple[float, ...],
        place: Callable[[KernelTime], tuple[float, ...]],
        amount: Callable[[KernelTime], int],
    ) -> float:
        """Amount per second: the mean over the nearest kernels, weighted by the inverse of their squared distances."""
        near = sorted(((math.dist(at, place(kernel)), number) for number, kernel in enumerate(kernels)))[:_NEAREST]
        total = weights = 0.0
        for distance, number in near:
            kernel = kernels[number]
            took = max(kernel.time_us * 1e-6 - self._launch, kernel.time_us * 1e-7)
            weight = 1 / (distance + _CLOSE) ** 2
            total += weight * math.log(amount(kernel) / took)
            weights += weight
        return math.exp(total / weights)

    def _interval(self, seconds: float) -> Seconds:
        return Seconds(seconds * self._bounds[0], seconds, seconds * self._bounds[1])

    def _of_reads(self, weights: int) -> float:
        """Bytes per second at which as many weights are read one after the other, by float products of one row, which
        do little else; 0 if none was measured."""
        reads = [
            kernel
            for kernel in self._calibration.kernels
            if (kernel.work, kernel.precision) == ("gemm", "fp32") and 4 * kernel.multiply_adds <= kernel.weight_bytes
        ]
        if not reads or not weights:
            return 0.0
        return self._rate(
            reads,
            (math.log(weights),),
            lambda kernel: (math.log(kernel.weight_bytes * kernel.repeats),),
            lambda kernel: kernel.weight_bytes,
        )


def _moved_bytes(kernel: KernelTime) -> int:
    return kernel.weight_bytes + kernel.activation_bytes
