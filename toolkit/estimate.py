"""An estimate of the latency on a target that is not this machine: a roofline over the whole model.

One inference takes at least the time of its arithmetic at the peak rate, and of reading its weights at the peak
bandwidth (Williams, Waterman and Patterson, 2009). Real kernels reach a part of the peak; the part that they may
reach is given as a range, so the answer is an interval and everything that prints it says *estimate*.
"""

from __future__ import annotations

import math

from toolkit.gates.speed import Latency
from toolkit.target import EngineSupport, Precision, Target

# Share of the peak arithmetic rate that inference at batch 1 reaches. The CPU range spans what a 6-layer encoder
# reached on AVX-512 cores between 16 and 128 tokens, float and int8, on two engines; on a GPU short inputs leave
# most of the machine idle.
_EFFICIENCY = {"cpu": (0.25, 0.9), "gpu": (0.03, 0.5)}
# Seconds that each operator costs besides its arithmetic: a kernel launch on a GPU, a dispatch on a CPU.
_PER_OPERATOR = {"cpu": (0.2e-6, 2e-6), "gpu": (2e-6, 10e-6)}
_BANDWIDTH_SHARE = (0.4, 0.9)


def latency(
    target: Target,
    engine: EngineSupport,
    precision: Precision,
    *,
    operations: float,
    weight_bytes: int,
    operators: int,
) -> Latency | None:
    """Estimated milliseconds for one inference of `operations` arithmetic operations (2 per multiply-add).

    None if the profile has no peak rate for this precision on the engine's processor, or if it is not known what share
    of the peak models reach on such a processor.
    """
    peaks = target.peaks.get(engine.processor)
    rate = peaks.rate(precision) if peaks else None
    if rate is None or engine.processor not in _EFFICIENCY:
        return None
    if engine.processor == "cpu" and target.cpu is not None:
        rate *= min(target.cpu.threads, target.cpu.cores) / target.cpu.cores

    def seconds(efficiency: float, share: float, overhead: float) -> float:
        arithmetic = operations / (rate * 1e9 * efficiency)
        bandwidth = target.memory.bandwidth_gb_per_s
        memory = weight_bytes / (bandwidth * 1e9 * share) if bandwidth else 0.0
        return max(arithmetic, memory) + operators * overhead

    slow, fast = _EFFICIENCY[engine.processor]
    most, least = _PER_OPERATOR[engine.processor][::-1]
    low = seconds(fast, _BANDWIDTH_SHARE[1], least) * 1e3
    high = seconds(slow, _BANDWIDTH_SHARE[0], most) * 1e3
    return Latency(math.sqrt(low * high), "estimate", low, high)
