"""Products in bfloat16 for TensorRT: its parser takes the file, and what stands in for it here gives its numbers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import artifacts
from toolkit import bisect, builds, check, costs, engines
from toolkit.errors import InputError
from toolkit.export import onnx_bf16
from toolkit.tensorrt import preflight


@pytest.fixture(scope="module")
def typed(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("typed")
    return artifacts.quantized(artifacts.export(tuned, folder, "tensorrt"), folder / "bf16", method="bf16")


def model(opset: int = 22) -> Any:
    """A convolution and a product, between them what stays in float32."""
    generator = np.random.default_rng(0)

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(generator.normal(size=shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "filter", "shift"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("ReduceMean", ["r"], ["m"], "mean", keepdims=0, axes=[2, 3])
        if opset < 18
        else helper.make_node("ReduceMean", ["r", "axes"], ["m"], "mean", keepdims=0),
        helper.make_node("Gemm", ["m", "matrix", "bias"], ["y"], "gemm", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "both",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [
            weight("filter", 8, 3, 3, 3), weight("shift", 8), weight("matrix", 4, 8), weight("bias", 4),
            numpy_helper.from_array(np.array([2, 3]), "axes"),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def test_a_product_rounds_what_goes_in_and_what_comes_out(tmp_path: Path) -> None:
    """By onnx's own evaluator, which computes in bfloat16."""
    from onnx.reference import ReferenceEvaluator

    made = model()
    x = np.random.default_rng(1).normal(size=(2, 3, 8, 8)).astype(np.float32)
    (exact,) = ReferenceEvaluator(made).run(None, {"x": x})
    assert onnx_bf16.convert(made, kept=()) == ["conv", "gemm"]
    onnx.checker.check_model(made, full_check=True)
    onnx.save(made, tmp_path / "model.onnx")
    with warnings.catch_warnings(action="ignore"):
        (said,) = engines.get("tensorrt").load(tmp_path / "model.onnx").run({"x": x}).values()
    (wanted,) = ReferenceEvaluator(made).run(None, {"x": x})
    assert np.abs(said - exact).max() > 1e-3
    assert said == pytest.approx(wanted, rel=2**-7)  # a step: it sums in bfloat16, kernels do in float32
    assert set(np.abs(said.view(np.uint32) & 0xFFFF).ravel()) == {0}  # each answer is a bfloat16


def test_convolutions_are_left_where_the_opset_has_none_in_bfloat16() -> None:
    made = model(opset=17)
    assert onnx_bf16.convert(made, kept=()) == ["gemm"]
    onnx.checker.check_model(made, full_check=True)


def test_what_is_kept_stays_in_float32() -> None:
    assert onnx_bf16.convert(model(), kept=("conv",)) == ["gemm"]


def test_every_product_of_an_encoder_is_in_bfloat16_and_the_parser_takes_it(typed: Path) -> None:
    made = onnx.load(typed / "model.onnx")
    stored = {each.name: each.data_type for each in made.graph.initializer}
    casts = {n.output[0]: n.attribute[0].i for n in made.graph.node if n.op_type == "Cast"}
    products = [node for node in made.graph.node if node.op_type in ("MatMul", "Gemm")]
    assert len(products) == 2 * (6 + 2) + 2  # layers and attention of two blocks, pooler and head
    for node in products:
        kinds = {stored.get(name, casts.get(name)) for name in node.input}
        assert kinds == {TensorProto.BFLOAT16}, node.name
    answer = preflight.ask(typed / "model.onnx")
    assert answer.status == "accepted", answer.reason


def test_builds_in_bfloat16_are_compared(typed: Path, tuned: Path, sentences: list[tuple[str, str]]) -> None:
    examples = [text for text, _ in sentences[:40]]
    first, second = builds.open_build(tuned), builds.open_build(typed)
    outcome = check.check(first, second, examples)
    assert outcome.first is None
    found = bisect.bisect(
        first.probe(), second.probe(), builds.inputs_for(first, second, examples[:3]), second.precision
    )
    assert found.first is None
    assert any(20 < row.own.sqnr_db < 60 for row in found.rows)


def test_products_in_bfloat16_are_counted_as_such(typed: Path) -> None:
    found = costs.of_engine(typed / "model.onnx", {"batch": 1, "length": 16}, "tensorrt")
    assert all(each.shape is not None for each in found if each.runs)
    products = [each for each in found if each.multiply_adds]
    assert {each.dtype for each in products} == {"bf16"}
    assert len(products) == 18


def test_onnxruntime_alone_says_that_it_has_no_kernels(typed: Path) -> None:
    with pytest.raises(InputError, match="NOT_IMPLEMENTED"):
        engines.get("onnxruntime").load(typed / "model.onnx")
