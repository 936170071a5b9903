"""Estimates: the roofline by hand, its interval, and no number where the profile has none."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import estimate
from toolkit.target import Cpu, EngineSupport, Gpu, Memory, Peaks, Processor, Source, Target


def a_target(
    processor: Processor = "cpu", cores: int = 4, threads: int = 4, bandwidth: float | None = 10.0, **peaks: float
) -> tuple[Target, EngineSupport]:
    engine = EngineSupport(
        name="onnxruntime", processor=processor, precisions=["fp32", "int8"], versions=None, onnx_opset_max=None
    )
    target = Target(
        name="board",
        title="board",
        kind="board",
        cpu=Cpu(model="any", architecture="aarch64", isa=["asimd"], cores=cores, clock_mhz=None, threads=threads),
        gpu=Gpu(model="any", clock_mhz=None),
        memory=Memory(ram_gb=None, bandwidth_gb_per_s=bandwidth),
        peaks={processor: Peaks.model_validate(peaks)},
        engines=[engine],
        sources=[Source(covers=["cpu"], source="made up", confidence="recalled")],
    )
    return target, engine


def test_arithmetic_bound_by_hand() -> None:
    target, engine = a_target(fp32_gops_per_s=100, bandwidth=10.0)
    found = estimate.latency(target, engine, "fp32", operations=1e9, weight_bytes=90_000_000, operators=1000)
    assert found is not None
    # Reading 90 MB takes 10 ms and 22.5 ms meanwhile, which is less.
    # 1e9 operations at 90 % and 25 % of 100e9/s are 11.1 ms and 40 ms; 1000 operators add 0.2 ms and 2 ms.
    assert found.kind == "estimate"
    assert found.low_ms == pytest.approx(11.1111 + 0.2, abs=1e-3)
    assert found.high_ms == pytest.approx(40 + 2)
    assert found.ms == pytest.approx(math.sqrt(found.low_ms * found.high_ms))


def test_memory_bound_by_hand() -> None:
    target, engine = a_target(fp32_gops_per_s=1e6, bandwidth=10.0)
    found = estimate.latency(target, engine, "fp32", operations=1e6, weight_bytes=90_000_000, operators=0)
    assert found is not None
    # 90 MB at 90 % and 40 % of 10 GB/s.
    assert (found.low_ms, found.high_ms) == (pytest.approx(10), pytest.approx(22.5))


def test_threads_share_the_peak_of_all_cores() -> None:
    work = {"operations": 1e9, "weight_bytes": 0, "operators": 0}
    four = estimate.latency(*a_target(cores=4, threads=4, fp32_gops_per_s=100), "fp32", **work)  # type: ignore[arg-type]
    one = estimate.latency(*a_target(cores=4, threads=1, fp32_gops_per_s=100), "fp32", **work)  # type: ignore[arg-type]
    assert four is not None
    assert one is not None
    assert one.ms == pytest.approx(4 * four.ms)


def test_a_gpu_is_not_divided_by_cpu_threads() -> None:
    work = {"operations": 1e9, "weight_bytes": 0, "operators": 0}
    four = estimate.latency(*a_target("gpu", threads=4, fp32_gops_per_s=100), "fp32", **work)  # type: ignore[arg-type]
    one = estimate.latency(*a_target("gpu", threads=1, fp32_gops_per_s=100), "fp32", **work)  # type: ignore[arg-type]
    assert four == one


def test_nothing_is_estimated_without_a_peak_rate() -> None:
    target, engine = a_target(fp32_gops_per_s=100)
    assert estimate.latency(target, engine, "int8", operations=1e9, weight_bytes=1, operators=1) is None
    target, engine = a_target()
    assert estimate.latency(target, engine, "fp32", operations=1e9, weight_bytes=1, operators=1) is None
    gpu_only, _ = a_target("gpu", fp32_gops_per_s=100)
    _, cpu_engine = a_target()
    assert estimate.latency(gpu_only, cpu_engine, "fp32", operations=1e9, weight_bytes=1, operators=1) is None


def test_an_unknown_bandwidth_leaves_the_arithmetic() -> None:
    target, engine = a_target(fp32_gops_per_s=100, bandwidth=None)
    found = estimate.latency(target, engine, "fp32", operations=1e9, weight_bytes=10**12, operators=0)
    assert found is not None
    assert found.high_ms == pytest.approx(40)


@settings(deadline=None)
@given(
    operations=st.floats(1, 1e13),
    weight_bytes=st.integers(0, 10**10),
    operators=st.integers(0, 10**4),
    processor=st.sampled_from(["cpu", "gpu"]),
)
def test_the_interval_holds_the_value_and_grows_with_the_work(
    operations: float, weight_bytes: int, operators: int, processor: Processor
) -> None:
    target, engine = a_target(processor, fp32_gops_per_s=100)

    def latency(factor: int) -> tuple[float, float, float]:
        found = estimate.latency(
            target, engine, "fp32",
            operations=operations * factor, weight_bytes=weight_bytes * factor, operators=operators * factor,
        )  # fmt: skip
        assert found is not None
        assert found.low_ms is not None
        assert found.high_ms is not None
        return found.low_ms, found.ms, found.high_ms

    low, value, high = latency(1)
    assert 0 < low < value < high
    assert latency(2) == pytest.approx((2 * low, 2 * value, 2 * high))
