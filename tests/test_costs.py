"""Costs per operation: counts by hand on small graphs, and those of real exports against PyTorch's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests import artifacts, typed_onnx
from toolkit import costs
from toolkit.costs import Operation
from toolkit.costs import onnx as onnx_costs
from toolkit.errors import InputError


def save(path: Path, text: str, **weights: Any) -> Path:
    """An ONNX file of a graph in onnx's text form, with initializers."""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    onnx.save(model, path)
    return path


def header(inputs: str, outputs: str) -> str:
    domain = '<ir_version: 10, opset_import: ["" : 20, "com.microsoft" : 1]>'
    return f"{domain} g ({inputs}) => ({outputs})"


def total(operations: list[Operation]) -> int:
    return sum(each.multiply_adds for each in operations)


def test_products_by_hand(tmp_path: Path) -> None:
    text = (
        header("float[batch, 8, 10, 10] x", "float[batch, 5] y")
        + """ {
        a = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, dense)
        b = Conv <group = 16> (a, depthwise)
        c = Flatten (b)
        y = Gemm <transB = 1> (c, head)
    }"""
    )
    weights = {
        "dense": np.ones((16, 8, 3, 3), np.float32),
        "depthwise": np.ones((16, 1, 3, 3), np.float32),
        "head": np.ones((5, 144), np.float32),
    }
    found = costs.operations(save(tmp_path / "model.onnx", text, **weights), {"batch": 2})
    assert [each.kind for each in found] == ["Conv", "Conv", "Flatten", "Gemm"]
    assert [each.shape for each in found] == [(2, 16, 5, 5), (2, 16, 3, 3), (2, 144), (2, 5)]
    assert [each.multiply_adds for each in found] == [2 * 16 * 25 * 72, 2 * 16 * 9 * 9, 0, 2 * 144 * 5]
    assert [each.weight_bytes for each in found] == [16 * 72 * 4, 16 * 9 * 4, 0, 5 * 144 * 4]
    assert [each.activation_bytes for each in found] == [
        4 * 2 * (800 + 400), 4 * 2 * (400 + 144), 0, 4 * 2 * (144 + 5),
    ]  # fmt: skip
    assert [each.work for each in found] == ["convolution", "depthwise", "view", "gemm"]
    assert {each.dtype for each in found} == {"fp32"}


def test_a_size_is_asked_for_by_name(tmp_path: Path) -> None:
    text = header("float[batch, width] x", "float[batch, width] y") + " { y = Relu (x) }"
    with pytest.raises(InputError, match=r"input 'x' has 'width', whose size is needed: width="):
        costs.operations(save(tmp_path / "model.onnx", text), {"batch": 1})


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "model.onnx").write_bytes(b"no protobuf")
    (tmp_path / "model.tflite").write_bytes(b"no flatbuffer")
    for name, reason in (
        ("model.pt", "are counted of .onnx and .tflite files"),
        ("none.onnx", "does not exist"),
        ("model.onnx", "not an ONNX file"),
        ("model.tflite", "no LiteRT file"),
    ):
        with pytest.raises(InputError, match=reason):
            costs.operations(tmp_path / name, {})
    with pytest.raises(InputError, match=r"onnxruntime .* cannot load"):
        costs.of_engine(tmp_path / "model.onnx", {}, "onnxruntime")


def test_only_gathered_rows_are_read(tmp_path: Path) -> None:
    text = header("int64[length] ids", "float[length, 4] y") + " { y = Gather (table, ids) }"
    (found,) = costs.operations(
        save(tmp_path / "model.onnx", text, table=np.ones((1000, 4), np.float32)), {"length": 3}
    )
    assert found.weight_bytes == 3 * 4 * 4
    assert found.activation_bytes == 3 * 8 + 3 * 4 * 4


def test_what_is_computed_at_load_does_not_run(tmp_path: Path) -> None:
    text = (
        header("float[4, 6] x", "float[4, 8] y")
        + """ {
        wide = DequantizeLinear <axis = 1> (weight, scale, zero)
        y = MatMul (x, wide)
    }"""
    )
    weights = {
        "weight": np.ones((6, 8), np.int8), "scale": np.ones(8, np.float32), "zero": np.zeros(8, np.int8),
    }  # fmt: skip
    widened, product = costs.operations(save(tmp_path / "model.onnx", text, **weights), {})
    assert (widened.runs, widened.bytes) == (0, 0)
    # Its activations are float, so it is no integer product, although its weights are held in bytes.
    assert (product.dtype, product.weight_bytes, product.multiply_adds) == ("fp32", 48, 4 * 6 * 8)


def test_a_product_between_q_and_dq_is_one_of_integers(tmp_path: Path) -> None:
    text = (
        header("float[4, 6] x", "float[4, 8] y")
        + """ {
        q = QuantizeLinear (x, one, none)
        dq = DequantizeLinear (q, one, none)
        wide = DequantizeLinear (weight, one, none)
        product = MatMul (dq, wide)
        back = QuantizeLinear (product, one, none)
        y = DequantizeLinear (back, one, none)
    }"""
    )
    weights = {"weight": np.ones((6, 8), np.int8), "one": np.float32(1), "none": np.int8(0)}
    found = costs.operations(save(tmp_path / "model.onnx", text, **weights), {})
    assert [each.runs for each in found] == [1, 0, 0, 1, 0, 1]
    product = found[3]
    assert (product.dtype, product.weight_bytes, product.activation_bytes) == ("int8", 48, 4 * 6 + 4 * 8)


def test_fused_operators_are_counted(tmp_path: Path) -> None:
    text = (
        header("float[1, length, 16] x", "float[1, length, 16] y")
        + """ {
        a = com.microsoft.FusedMatMul <alpha = 2.0> (x, weight)
        y = com.microsoft.MatMulNBits <K = 16, N = 16, bits = 8, block_size = 16, accuracy_level = 4>
            (a, packed, scales)
    }"""
    )
    weights = {
        "weight": np.ones((16, 16), np.float32),
        "packed": np.ones((16, 1, 16), np.uint8),
        "scales": np.ones(16, np.float32),
    }
    fused, packed = costs.operations(save(tmp_path / "model.onnx", text, **weights), {"length": 5})
    assert (fused.multiply_adds, fused.dtype, fused.domain) == (5 * 256, "fp32", "com.microsoft")
    assert (packed.multiply_adds, packed.dtype, packed.weight_bytes) == (5 * 256, "int8", 256 + 64)


def branches(path: Path) -> Path:
    """A model with an If: a product of 6 x 8 if `flag`, else one of 6 x 2 and a sum; behind it a Loop of three rounds,
    each a product of 4 x 4."""

    def graph(name: str, nodes: list[Any], *, inputs: Any = (), outputs: Any, weights: dict[str, Any]) -> Any:
        tensors = [numpy_helper.from_array(array, key) for key, array in weights.items()]
        return helper.make_graph(nodes, name, list(inputs), list(outputs), tensors)

    def tensor(name: str, kind: int = TensorProto.FLOAT, shape: Any = None) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    # The same names in both branches, with different shapes.
    then = graph(
        "then",
        [helper.make_node("MatMul", ["x", "w"], ["t"], "wide"), helper.make_node("ReduceSum", ["t"], ["out_then"])],
        outputs=[tensor("out_then")],
        weights={"w": np.ones((6, 8), np.float32)},
    )
    other = graph(
        "else",
        [helper.make_node("MatMul", ["x", "w"], ["t"], "slim"), helper.make_node("ReduceSum", ["t"], ["out_else"])],
        outputs=[tensor("out_else")],
        weights={"w": np.ones((6, 2), np.float32)},
    )
    body = graph(
        "body",
        [
            helper.make_node("MatMul", ["carried", "square"], ["next"], "again"),
            helper.make_node("Identity", ["on"], ["on_out"]),
        ],
        inputs=[tensor("round", TensorProto.INT64, []), tensor("on", TensorProto.BOOL, []), tensor("carried")],
        outputs=[tensor("on_out", TensorProto.BOOL, []), tensor("next")],
        weights={"square": np.ones((4, 4), np.float32)},
    )
    main = graph(
        "main",
        [
            helper.make_node("If", ["flag"], ["chosen"], then_branch=then, else_branch=other),
            helper.make_node("Loop", ["rounds", "true", "start"], ["last"], body=body),
            helper.make_node("Add", ["chosen", "last"], ["y"]),
        ],
        inputs=[tensor("x", shape=["batch", 6]), tensor("flag", TensorProto.BOOL, [])],
        outputs=[tensor("y")],
        weights={"rounds": np.int64(3), "true": np.bool_(True), "start": np.ones((2, 4), np.float32)},
    )
    onnx.save(helper.make_model(main, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


@pytest.mark.parametrize("flag", [True, False])
def test_branches_and_loops_count_as_they_run(tmp_path: Path, flag: bool) -> None:
    path = branches(tmp_path / "model.onnx")
    given = {"flag": np.array(flag), "x": np.ones((5, 6), np.float32)}
    found = {each.name: each for each in onnx_costs.operations(path, {"batch": 5}, given)}
    assert [found[name].runs for name in ("wide", "slim", "again")] == [int(flag), int(not flag), 3]
    assert found["wide"].multiply_adds == 5 * 6 * 8 * flag
    assert found["slim"].multiply_adds == 5 * 6 * 2 * (not flag)
    assert found["again"].multiply_adds == 3 * 2 * 4 * 4


def test_what_cannot_be_known_is_said(tmp_path: Path) -> None:
    text = header("float[2, 2] x", "float[a, b] y") + " { z = Relu (x) y = com.microsoft.NoSuchOperator (z) }"
    known, unknown = costs.operations(save(tmp_path / "model.onnx", text), {})
    assert known.shape == (2, 2)
    assert (unknown.shape, unknown.runs, unknown.bytes) == (None, 1, 0)


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt", "litert"])
def test_an_encoder_has_the_products_that_torch_counts(
    tuned: Path, tmp_path_factory: pytest.TempPathFactory, engine: str
) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForSequenceClassification

    folder = artifacts.export(tuned, tmp_path_factory.mktemp("costs"), engine)
    path = folder / artifacts.description(folder)["path"]
    found = costs.operations(path, {"batch": 1, "length": 64})
    model = AutoModelForSequenceClassification.from_pretrained(
        tuned, dtype=torch.float32, attn_implementation="eager"
    )  # the counter does not see into the fused attention of CPUs
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=torch.zeros(1, 64, dtype=torch.int64), attention_mask=torch.ones(1, 64, dtype=torch.int64))
    assert total(found) == counter.get_total_flops() / 2
    named = {each.module for each in found if each.multiply_adds}
    assert any("bert.encoder" in name for name in named)
    # All weights are read once but the embeddings', of which a row per token is.
    read = sum(each.weight_bytes for each in found)
    whole = 4 * sum(p.numel() for name, p in model.named_parameters() if "embeddings" not in name or "Norm" in name)
    assert read == pytest.approx(whole, rel=0.05)
    assert costs.operations(path, {"batch": 1, "length": 64}) == found


def test_quantized_convolutions_are_integer_products(tmp_path: Path) -> None:
    path = typed_onnx.convolutions(tmp_path, "static-int8") / "model.onnx"
    in_float = typed_onnx.convolutions(tmp_path, None) / "model.onnx"
    floats = costs.operations(in_float, {"batch": 1})
    integers = costs.operations(path, {"batch": 1})
    assert total(integers) == total(floats) > 0
    assert {each.dtype for each in integers if each.kind == "Conv"} == {"int8"}
    convolutions = [sum(e.bytes for e in found if e.kind == "Conv") for found in (integers, floats)]
    assert convolutions[0] < 0.5 * convolutions[1]
    rewritten = costs.of_engine(in_float, {"batch": 1}, "onnxruntime")
    assert total(rewritten) == total(floats)
    left = [sum(each.kind == "Relu" for each in found) for found in (floats, rewritten)]
    assert left[1] < left[0]  # the others are part of their convolutions


def test_a_length_that_no_signature_takes(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = artifacts.export(tuned, tmp_path_factory.mktemp("costs"), "litert")
    path = folder / artifacts.description(folder)["path"]
    with pytest.raises(InputError, match="takes no input of length 65; its longest is 64"):
        costs.operations(path, {"length": 65})
    with pytest.raises(InputError, match=r"lengths 16, 24, 32, 64: give length="):
        costs.operations(path, {})
    assert costs.operations(path, {"length": 20}) == costs.operations(path, {"length": 24})


def test_pairs_of_a_graph_for_tensorrt_cost_nothing(tmp_path: Path) -> None:
    """Its builder makes them part of their neighbours."""
    path = typed_onnx.convolutions(tmp_path, "static-int8") / "model.onnx"
    kinds = {each.kind for each in costs.operations(path, {"batch": 1})}
    built = {each.kind for each in costs.of_engine(path, {"batch": 1}, "tensorrt")}
    assert kinds - built == {"QuantizeLinear", "DequantizeLinear"}
