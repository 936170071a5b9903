"""Times from a profile's peaks: arithmetic at a share of the peak rate, bytes at a share of the bandwidth.

The shares of x86 are those that ONNX Runtime 1.31 and LiteRT 2.3 reached on a server core with AVX-512 and AMX, batch 1
(the kernels of `toolkit targets calibrate`; benchmarks/estimates.py). They exceed 1 because profiles give the sustained
clock, and such cores run above it. Those of other CPUs are the same without that, and those of GPUs, where short inputs
leave most of the machine idle, are rules of thumb: nothing was measured there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from toolkit.costs import Operation
from toolkit.costs.work import PRODUCTS, Work
from toolkit.estimate.seconds import NOTHING, Seconds, larger
from toolkit.target import EngineSupport, Precision, Processor, Target

Range = tuple[float, float]  # least and most


@dataclass(frozen=True)
class _Shares:
    """What a kind of processor reaches.

    `arithmetic`: of the peak rate, by class of work; `int8`: a factor on that for products of integers. `between`:
    bytes per second of what stands between the products, in bandwidths of the memory; values stay in caches there, and
    GELU and the like wait for arithmetic. `weights`: the same of a model's weights, one after the other; `few`: of so
    few that caches hold them. `launch` and `call`: seconds that an operator, and an inference, cost besides.
    """

    arithmetic: dict[Work, Range]
    int8: Range
    between: dict[Work, Range]
    weights: Range
    few: Range
    launch: Range
    call: Range


_X86 = _Shares(
    arithmetic={
        "gemm": (0.5, 1.8), "convolution": (0.4, 1.8), "pointwise": (0.5, 1.8), "attention": (0.3, 1.6),
        "depthwise": (0.15, 0.7),
    },
    int8=(0.5, 1.0),
    between={"elementwise": (1.5, 20), "copy": (1, 8), "normalization": (0.25, 4), "activation": (0.8, 4)},
    weights=(0.5, 3.0), few=(1.0, 12.0), launch=(0.02e-6, 1.5e-6), call=(2e-6, 15e-6),
)  # fmt: skip
_CPU = _Shares(
    arithmetic={
        "gemm": (0.3, 0.95), "convolution": (0.25, 0.95), "pointwise": (0.3, 0.95), "attention": (0.15, 0.85),
        "depthwise": (0.08, 0.4),
    },
    int8=(0.6, 1.0),
    between={"elementwise": (0.6, 8), "copy": (0.4, 4), "normalization": (0.15, 3), "activation": (0.3, 3)},
    weights=(0.35, 0.9), few=(0.5, 4.0), launch=(0.1e-6, 4e-6), call=(5e-6, 60e-6),
)  # fmt: skip
_GPU = _Shares(
    arithmetic={
        "gemm": (0.03, 0.6), "convolution": (0.03, 0.6), "pointwise": (0.03, 0.6), "attention": (0.02, 0.5),
        "depthwise": (0.003, 0.1),
    },
    int8=(0.5, 1.0),
    between={"elementwise": (0.4, 4), "copy": (0.3, 3), "normalization": (0.2, 2), "activation": (0.4, 4)},
    weights=(0.4, 0.9), few=(0.4, 4.0), launch=(2e-6, 10e-6), call=(5e-6, 100e-6),
)  # fmt: skip
# The same factor for a matrix unit such as AMX: models give it too little to do at a time.
_MATRIX_UNIT: Range = (0.1, 0.35)
_CLOCKED: Range = (1.0, 4.0)  # bytes per clock and core that stand for the bandwidth where a profile has none
_CACHED = 4e6  # bytes of weights that caches usually hold


@dataclass(frozen=True)
class Peaked:
    """A processor by its peaks. `rates` are multiply-adds per second by number format, `bandwidth` bytes per second at
    least and at most; None: not known, and then bytes take no time. `weights` are those that an inference reads."""

    processor: Processor
    shares: _Shares
    rates: dict[str, float]
    bandwidth: Range | None
    int8: Range
    weights: int

    @classmethod
    def of(cls, target: Target, engine: EngineSupport, precision: Precision, weights: int) -> Peaked | None:
        """The processor that an engine runs on; None if its rate for a precision is not known, or none of its kind's
        shares."""
        peaks = target.peaks.get(engine.processor)
        if peaks is None or peaks.rate(precision) is None or engine.processor not in ("cpu", "gpu"):
            return None
        given = target.memory.bandwidth_gb_per_s
        bandwidth = (given * 1e9, given * 1e9) if given is not None else None
        shares, part, int8 = _GPU, 1.0, _GPU.int8
        if engine.processor == "cpu" and target.cpu is not None:
            cpu = target.cpu
            used = min(cpu.threads, cpu.cores)
            shares, part = _X86 if cpu.architecture == "x86_64" else _CPU, used / cpu.cores
            int8 = _MATRIX_UNIT if "amx_int8" in cpu.isa else shares.int8
            if bandwidth is None and cpu.clock_mhz is not None:
                clocks = used * cpu.clock_mhz * 1e6
                bandwidth = (_CLOCKED[0] * clocks, _CLOCKED[1] * clocks)
        rates: dict[str, float] = {}
        for name in ("fp32", "fp16", "bf16", "int8"):
            rate = peaks.rate(name)
            if rate is not None:
                rates[name] = rate * 1e9 / 2 * part  # a multiply-add is two operations
        return cls(engine.processor, shares, rates, bandwidth, int8, weights)

    @property
    def call(self) -> Seconds:
        return _between(*self.shares.call)

    def seconds(self, operation: Operation) -> Seconds:
        if not operation.runs:
            return NOTHING
        launch = _between(*self.shares.launch).times(operation.runs)
        if operation.work in PRODUCTS:
            share = self.shares.few if self.weights <= _CACHED else self.shares.weights
            return larger(self._arithmetic(operation), self._moved(operation.weight_bytes, share)) + launch
        moved = NOTHING
        if operation.work != "view":
            moved = self._moved(operation.bytes, self.shares.between[operation.work])
        whole = moved + launch
        if self.processor == "gpu":  # there, what stands between products usually becomes part of them
            return Seconds(0.0, whole.likely / 2, whole.high)
        return whole

    def _arithmetic(self, operation: Operation) -> Seconds:
        dtype = operation.dtype
        least, most = self.shares.arithmetic[operation.work]
        if operation.work == "depthwise" and dtype == "int8":
            dtype = "fp32"  # nothing is summed over channels, which is what instructions on integers are for
        elif dtype == "int8":
            least, most = least * self.int8[0], most * self.int8[1]
        rate = self.rates.get(dtype, self.rates.get("fp32", max(self.rates.values())))
        return _between(operation.multiply_adds / (rate * most), operation.multiply_adds / (rate * least))

    def _moved(self, count: int, share: Range) -> Seconds:
        if self.bandwidth is None:
            return NOTHING
        return _between(count / (self.bandwidth[1] * share[1]), count / (self.bandwidth[0] * share[0]))


def _between(low: float, high: float) -> Seconds:
    """A time between two bounds; likely is their geometric mean."""
    return Seconds(low, math.sqrt(low * high), high)
