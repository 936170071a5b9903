"""Estimates: the roofline by hand from peaks and from a calibration; its interval; no number where nothing is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit import estimate
from toolkit.costs import Operation
from toolkit.costs.work import PRODUCTS, WORKS
from toolkit.gates.speed import Latency
from toolkit.target import (
    Calibration,
    Cpu,
    EngineSupport,
    Gpu,
    KernelTime,
    Memory,
    Peaks,
    Processor,
    Source,
    Target,
)


def a_target(
    processor: Processor = "cpu", cores: int = 4, threads: int = 4, bandwidth: float | None = 10.0,
    isa: tuple[str, ...] = ("asimd",), clock: int | None = None, calibration: tuple[Calibration, ...] = (),
    **peaks: float,
) -> tuple[Target, EngineSupport]:  # fmt: skip
    engine = EngineSupport(
        name="onnxruntime", processor=processor, precisions=["fp32", "int8"], versions=None, onnx_opset_max=None
    )
    target = Target(
        name="board",
        title="board",
        kind="board",
        cpu=Cpu(
            model="any", architecture="x86_64" if "avx2" in isa else "aarch64", isa=list(isa), cores=cores,
            clock_mhz=clock, threads=threads,
        ),
        gpu=Gpu(model="any", clock_mhz=None),
        memory=Memory(ram_gb=None, bandwidth_gb_per_s=bandwidth),
        peaks={processor: Peaks.model_validate(peaks)} if peaks else {},
        engines=[engine],
        calibration=list(calibration),
        sources=[Source(covers=["cpu"], source="made up", confidence="recalled")],
    )  # fmt: skip
    return target, engine


def an_operation(
    work: Any = "gemm", multiply_adds: int = 0, weights: int = 0, moved: int = 0, **others: Any
) -> Operation:
    return Operation(
        **{
            "name": work, "kind": work, "domain": "", "module": "", "work": work, "multiply_adds": multiply_adds,
            "activation_bytes": moved, "weight_bytes": weights, "dtype": "fp32", "shape": (1,), **others,
        }
    )  # fmt: skip


def estimated(
    made: tuple[Target, EngineSupport], *operations: Operation, precision: Any = "fp32"
) -> tuple[float, float, float]:
    found = estimate.latency(*made, precision, operations)
    assert found is not None
    assert found.kind == "estimate"
    assert found.low_ms is not None
    assert found.high_ms is not None
    return found.low_ms, found.ms, found.high_ms


# From peaks


def test_arithmetic_bound_by_hand() -> None:
    low, likely, high = estimated(a_target(fp32_gops_per_s=100), an_operation(multiply_adds=10**9, weights=1000))
    # 2e9 operations at 95 % and 30 % of 100e9/s are 21.05 ms and 66.67 ms; an operator adds 0.1 to 4 us, an inference
    # 5 to 60 us.
    assert low == pytest.approx(21.0526 + 0.0001 + 0.005, abs=1e-3)
    assert high == pytest.approx(66.6667 + 0.004 + 0.06, abs=1e-3)
    assert likely == pytest.approx(math.sqrt(21.0526 * 66.6667), abs=0.05)


def test_memory_bound_by_hand() -> None:
    low, _, high = estimated(a_target(fp32_gops_per_s=1e6), an_operation(multiply_adds=10**6, weights=90_000_000))
    # 90 MB at 90 % and 35 % of 10 GB/s.
    assert (low, high) == (pytest.approx(10, abs=0.01), pytest.approx(25.714, abs=0.1))


def test_few_weights_are_read_from_caches() -> None:
    target = a_target(fp32_gops_per_s=1e6)
    few, many = (an_operation(multiply_adds=1000, weights=count) for count in (1_000_000, 10_000_000))
    assert estimated(target, few)[1] < estimated(target, many)[1] / 15


def test_threads_share_the_peak_of_all_cores() -> None:
    work = an_operation(multiply_adds=10**9)
    four = estimated(a_target(cores=4, threads=4, fp32_gops_per_s=100), work)[1]
    one = estimated(a_target(cores=4, threads=1, fp32_gops_per_s=100), work)[1]
    assert one == pytest.approx(4 * four, rel=0.01)


def test_a_gpu_is_not_divided_by_cpu_threads() -> None:
    work = an_operation(multiply_adds=10**9)
    four = estimated(a_target("gpu", threads=4, fp32_gops_per_s=100), work)
    assert four == estimated(a_target("gpu", threads=1, fp32_gops_per_s=100), work)


def test_on_a_gpu_what_stands_between_products_may_cost_nothing() -> None:
    target = a_target("gpu", fp32_gops_per_s=100)
    product, sums = an_operation(multiply_adds=10**9), an_operation("elementwise", moved=10**6)
    alone, both = estimated(target, product), estimated(target, product, sums)
    assert both[0] == alone[0]
    assert both[2] > alone[2]


def test_integers_on_a_matrix_unit_reach_a_smaller_share() -> None:
    work = an_operation(multiply_adds=10**9, dtype="int8")
    peaks = {"fp32_gops_per_s": 100, "int8_gops_per_s": 1000}
    vectors = estimated(a_target(isa=("avx2", "avx512_vnni"), **peaks), work, precision="int8")
    unit = estimated(a_target(isa=("avx2", "avx512_vnni", "amx_int8"), **peaks), work, precision="int8")
    assert unit[0] > vectors[0]
    assert unit[1] > vectors[1]


def test_depthwise_integers_gain_nothing_from_the_peak_of_integers() -> None:
    work = an_operation("depthwise", multiply_adds=10**9, dtype="int8")
    slow, fast = (
        estimated(a_target(fp32_gops_per_s=100, int8_gops_per_s=rate), work, precision="int8") for rate in (200, 1000)
    )
    assert slow == fast


def test_nothing_is_estimated_without_a_peak_rate() -> None:
    work = [an_operation(multiply_adds=10**9)]
    assert estimate.latency(*a_target(fp32_gops_per_s=100), "int8", work) is None
    assert estimate.latency(*a_target(), "fp32", work) is None
    gpu_only, _ = a_target("gpu", fp32_gops_per_s=100)
    _, cpu_engine = a_target()
    assert estimate.latency(gpu_only, cpu_engine, "fp32", work) is None
    assert estimate.rows(gpu_only, cpu_engine, "fp32", work) is None


def test_nothing_is_estimated_of_a_model_with_an_operation_that_is_not_known() -> None:
    target = a_target(fp32_gops_per_s=100)
    known, unknown = an_operation(multiply_adds=10**9), an_operation("elementwise", shape=None)
    assert estimate.latency(*target, "fp32", [known, unknown]) is None
    rows = estimate.rows(*target, "fp32", [known, unknown])
    assert rows is not None
    assert [row.operation for row in rows] == [known]
    not_run = an_operation("elementwise", shape=None, runs=0)  # of a branch that is not taken
    assert estimate.latency(*target, "fp32", [known, not_run]) == estimate.latency(*target, "fp32", [known])


def test_an_unknown_bandwidth_follows_from_the_clock_or_leaves_the_arithmetic() -> None:
    work = an_operation(multiply_adds=10**6, weights=10**9)
    assert estimated(a_target(fp32_gops_per_s=100, bandwidth=None), work)[2] < 1
    clocked = a_target(fp32_gops_per_s=100, bandwidth=None, clock=1000)
    assert estimated(clocked, work)[2] == pytest.approx(1e9 / (4 * 1e9 * 0.35) * 1e3, rel=0.01)


def test_rows_add_up_and_the_most_expensive_is_first() -> None:
    target = a_target(fp32_gops_per_s=100)
    work = [
        an_operation("elementwise", moved=1000), an_operation(multiply_adds=10**9), an_operation("view"),
        an_operation("gemm", runs=0),
    ]  # fmt: skip
    rows = estimate.rows(*target, "fp32", work)
    assert rows is not None
    assert [row.operation.work for row in rows] == ["gemm", "elementwise", "view"]
    assert sum(row.ms for row in rows) == pytest.approx(estimated(target, *work)[1], rel=0.01)
    assert rows[0].as_dict()["multiply_adds"] == 10**9


# From a calibration


def a_kernel(
    work: Any, time_us: float, multiply_adds: int = 0, weights: int = 0, moved: int = 0, **others: Any
) -> KernelTime:
    return KernelTime(
        **{
            "work": work, "kind": work, "precision": "fp32", "multiply_adds": multiply_adds, "weight_bytes": weights,
            "activation_bytes": moved, "repeats": 1, "time_us": time_us, **others,
        }
    )  # fmt: skip


KERNELS = (
    a_kernel("gemm", 100, 1_000_000, 400_000, 100_000),
    a_kernel("gemm", 400, 8_000_000, 400_000, 800_000),
    a_kernel("gemm", 20, 1_000_000, 100_000, 100_000, precision="int8"),
    a_kernel("gemm", 1000, 2_000_000, 8_000_000, 1000, repeats=10),  # one row, 80 MB of weights: 8 GB/s
    a_kernel("elementwise", 10, moved=100_000, kind="Add"),
    a_kernel("elementwise", 40, moved=100_000, kind="Where"),
)


def calibrated(
    *,
    engine: Any = "onnxruntime",
    threads: int = 4,
    operator_us: float = 0.0,
    kernels: tuple[KernelTime, ...] = KERNELS,
) -> Calibration:
    return Calibration(
        engine=engine, version="1", threads=threads, operator_us=operator_us, call_us=0, kernels=list(kernels)
    )


def test_an_operation_takes_as_long_as_the_kernel_that_it_is() -> None:
    target = a_target(calibration=(calibrated(),))
    for kernel in KERNELS[:3]:
        work = an_operation(
            multiply_adds=kernel.multiply_adds, weights=kernel.weight_bytes, moved=kernel.activation_bytes,
            dtype=kernel.precision,
        )  # fmt: skip
        low, likely, high = estimated(target, work, precision=kernel.precision)
        assert likely * 1e3 == pytest.approx(kernel.time_us, rel=0.02)
        assert low < likely < high


def test_of_operators_its_own_type_counts_and_else_its_class() -> None:
    target = a_target(calibration=(calibrated(),))
    add, where, other = (
        estimated(target, an_operation("elementwise", moved=100_000, kind=kind))[1] for kind in ("Add", "Where", "Max")
    )
    assert add * 1e3 == pytest.approx(10, rel=0.01)
    assert where * 1e3 == pytest.approx(40, rel=0.01)
    assert add < other < where
    assert estimated(target, an_operation("copy", moved=100_000))[1] == other  # nothing like it was measured


def test_sizes_between_two_kernels_take_times_between_theirs() -> None:
    target = a_target(calibration=(calibrated(),))
    between = estimated(target, an_operation(multiply_adds=3_000_000, weights=400_000, moved=300_000))[1]
    assert 0.1 < between < 0.4


def test_many_weights_come_from_memory() -> None:
    target = a_target(calibration=(calibrated(),))
    one = an_operation(multiply_adds=1_000_000, weights=8_000_000, moved=1000)
    assert estimated(target, *[one] * 10)[1] == pytest.approx(10, rel=0.1)  # 80 MB at 8 GB/s


def test_launches_and_the_call_are_added() -> None:
    bare, with_launch = (
        estimated(a_target(calibration=(calibrated(operator_us=us),)), an_operation("view", runs=3))[1] for us in (0, 5)
    )
    assert (bare, with_launch) == (0, pytest.approx(0.015))


def test_a_calibration_is_of_one_engine_and_number_of_threads() -> None:
    work = an_operation(multiply_adds=1_000_000, weights=400_000, moved=100_000)
    plain = a_target(fp32_gops_per_s=100)
    other = a_target(fp32_gops_per_s=100, calibration=(calibrated(threads=2),))
    own = a_target(fp32_gops_per_s=100, calibration=(calibrated(threads=2), calibrated(threads=4)))
    assert estimated(other, work) == estimated(plain, work)
    assert not estimate.is_calibrated(*other)
    assert estimate.is_calibrated(*own)
    assert estimated(own, work) != estimated(plain, work)
    with pytest.raises(ValueError, match="calibration of 'litert', which is no engine"):
        a_target(calibration=(calibrated(engine="litert"),))
    with pytest.raises(ValueError, match="calibrated twice"):
        a_target(calibration=(calibrated(), calibrated()))


def test_a_calibration_that_nothing_can_go_by_is_refused() -> None:
    with pytest.raises(ValueError, match="has no elementwise in fp32"):
        calibrated(kernels=KERNELS[:4])
    with pytest.raises(ValueError, match="a kernel of gemm needs multiply_adds"):
        a_kernel("gemm", 1, weights=100)
    with pytest.raises(ValueError, match="a kernel of copy needs weight_bytes or activation_bytes"):
        a_kernel("copy", 1)


# Both


@settings(deadline=None)
@given(
    work=st.sampled_from([work for work in WORKS if work != "view"]),
    size=st.integers(1, 10**9),
    dtype=st.sampled_from(["fp32", "int8"]),
    processor=st.sampled_from(["cpu", "gpu"]),
    measured=st.booleans(),
)
def test_the_interval_holds_the_value_and_grows_with_the_work(
    work: Any, size: int, dtype: str, processor: Processor, measured: bool
) -> None:
    calibration = (calibrated(),) if measured and processor == "cpu" else ()
    target = a_target(processor, fp32_gops_per_s=100, calibration=calibration)

    def latency(count: int) -> Latency:
        one = an_operation(
            work, multiply_adds=size if work in PRODUCTS else 0, weights=size // 10, moved=size, dtype=dtype
        )
        found = estimate.latency(*target, "fp32", [one] * count)
        assert found is not None
        return found

    once, thrice = latency(1), latency(3)
    for found in (once, thrice):
        assert found.low_ms is not None
        assert found.high_ms is not None
        assert 0 <= found.low_ms <= found.ms <= found.high_ms
    assert once.ms < thrice.ms
    assert latency(1) == once
