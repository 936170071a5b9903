"""Times from a profile's peaks: arithmetic at a share of the peak rate, bytes at a share of the bandwidth.

The shares of CPUs are what ONNX Runtime 1.31 and LiteRT 2.3 reached on one x86 core with AVX-512 and AMX, batch 1 (the
kernels of `toolkit targets calibrate`; benchmarks/estimates.py), widened for other cores. Those of GPUs are a guess:
short inputs leave most of such a machine idle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.costs import Operation
from toolkit.costs.work import PRODUCTS, Work
from toolkit.estimate.seconds import NOTHING, Seconds, larger
from toolkit.target import EngineSupport, Precision, Processor, Target

Share = tuple[float, float]  # least and most

# Of the peak rate of arithmetic.
_ARITHMETIC: dict[Processor, dict[Work, Share]] = {
    "cpu": {
        "gemm": (0.3, 0.95), "convolution": (0.3, 0.95), "pointwise": (0.3, 0.95), "attention": (0.15, 0.8),
        "depthwise": (0.08, 0.4),
    },
    "gpu": {
        "gemm": (0.03, 0.6), "convolution": (0.03, 0.6), "pointwise": (0.03, 0.6), "attention": (0.02, 0.5),
        "depthwise": (0.003, 0.1),
    },
}  # fmt: skip
# Of what it would be in float, where a matrix unit multiplies int8: models give it too little to do at a time.
_AMX_SHARE = (0.15, 0.4)
# Bytes per second of what stands between the products, in bandwidths of the memory: between operations, values stay in
# caches, which are faster; GELU and the like wait for arithmetic.
_BETWEEN: dict[Work, Share] = {
    "elementwise": (0.7, 8.0), "copy": (0.4, 4.0), "normalization": (0.4, 4.0), "activation": (0.4, 4.0),
}  # fmt: skip
_WEIGHTS: Share = (0.4, 0.9)  # the same of weights; all of a model's, one after the other, do not stay in caches
_CLOCKED: Share = (1.0, 4.0)  # bytes per clock and core that stand for the bandwidth where a profile has none
# Seconds that each operator costs besides its work: a dispatch on a CPU, a kernel launch on a GPU.
_LAUNCH: dict[Processor, Share] = {"cpu": (0.05e-6, 2e-6), "gpu": (2e-6, 10e-6)}
_CALL: dict[Processor, Share] = {"cpu": (2e-6, 50e-6), "gpu": (5e-6, 100e-6)}


@dataclass(frozen=True)
class Peaked:
    """A processor by its peaks. `rates` are multiply-adds per second by number format, `bandwidth` bytes per second at
    least and at most; None: not known, and then bytes take no time."""

    processor: Processor
    rates: dict[str, float]
    bandwidth: Share | None
    int8_share: Share

    @classmethod
    def of(cls, target: Target, engine: EngineSupport, precision: Precision) -> Peaked | None:
        """The processor that an engine runs on; None if its rate for a precision is not known."""
        peaks = target.peaks.get(engine.processor)
        if peaks is None or peaks.rate(precision) is None or engine.processor not in _ARITHMETIC:
            return None
        part = 1.0
        amx = False
        clocked = None
        if engine.processor == "cpu" and target.cpu is not None:
            used = min(target.cpu.threads, target.cpu.cores)
            part, amx = used / target.cpu.cores, "amx_int8" in target.cpu.isa
            if target.cpu.clock_mhz is not None:
                clocked = _scaled(_CLOCKED, used * target.cpu.clock_mhz * 1e6)
        known: dict[str, float] = {}
        for name in ("fp32", "fp16", "bf16", "int8"):
            rate = peaks.rate(name)
            if rate is not None:
                known[name] = rate * 1e9 / 2 * part  # a multiply-add is two operations
        given = target.memory.bandwidth_gb_per_s
        bandwidth = (given * 1e9, given * 1e9) if given is not None else clocked
        return cls(engine.processor, known, bandwidth, _AMX_SHARE if amx else (1.0, 1.0))

    @property
    def call(self) -> Seconds:
        return _of_range(*_CALL[self.processor])

    def seconds(self, operation: Operation) -> Seconds:
        if not operation.runs:
            return NOTHING
        launch = _of_range(*_LAUNCH[self.processor]).times(operation.runs)
        if operation.work in PRODUCTS:
            return larger(self._arithmetic(operation), self._moved(operation.weight_bytes, _WEIGHTS)) + launch
        moved = self._moved(operation.bytes, _BETWEEN[operation.work]) if operation.work != "view" else NOTHING
        whole = moved + launch
        if self.processor == "gpu":  # there, what stands between products usually becomes part of them
            return Seconds(0.0, whole.likely / 2, whole.high)
        return whole

    def _arithmetic(self, operation: Operation) -> Seconds:
        rate = self.rates.get(operation.dtype, self.rates.get("fp32", max(self.rates.values())))
        least, most = _ARITHMETIC[self.processor][operation.work]
        if operation.dtype == "int8":
            least, most = least * self.int8_share[0], most * self.int8_share[1]
        return _of_range(operation.multiply_adds / (rate * most), operation.multiply_adds / (rate * least))

    def _moved(self, count: int, share: Share) -> Seconds:
        if self.bandwidth is None:
            return NOTHING
        return _of_range(count / (self.bandwidth[1] * share[1]), count / (self.bandwidth[0] * share[0]))


def _scaled(share: Share, factor: float) -> Share:
    return share[0] * factor, share[1] * factor


def _of_range(low: float, high: float) -> Seconds:
    """A time between two bounds; likely is their geometric mean."""
    return Seconds(low, math.sqrt(low * high), high)
