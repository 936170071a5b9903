"""Graphs in an older operator set answer as they did before, or are refused by the operator's name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from toolkit import recipe, target
from toolkit.errors import InputError
from toolkit.export import OLDEST_OPSET, onnx_file, onnx_layers, onnx_lower

NEW = 20


def graph_of(
    *nodes: Any,
    constants: dict[str, Any] | None = None,
    opset: int = NEW,
    kind: int = TensorProto.FLOAT,
    result: int | None = None,
) -> Any:
    """A model from `x` [2, 3, 4] to `y`."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info("x", kind, [2, 3, 4])],
        [helper.make_tensor_value_info("y", result or kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)  # the checker wants to know the shape of outputs


def run(model: Any, dtype: Any = np.float32) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = np.random.default_rng(0).normal(size=(2, 3, 4)) * 3
    return session.run(None, {"x": values.astype(dtype)})[0]


def node(kind: str, *inputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs or ["x"], ["y"], "the-node", **attributes)


NORM = {"scale": np.linspace(1, 2, 4, dtype=np.float32), "bias": np.linspace(-1, 1, 4, dtype=np.float32)}
CASES = {
    "gelu": graph_of(node("Gelu")),
    "gelu with tanh": graph_of(node("Gelu", approximate="tanh")),
    "layer norm": graph_of(node("LayerNormalization", "x", "scale", "bias", epsilon=1e-3), constants=NORM),
    "layer norm without bias": graph_of(node("LayerNormalization", "x", "scale"), constants={"scale": NORM["scale"]}),
    "layer norm over two axes": graph_of(
        node("LayerNormalization", "x", "scale", axis=-2), constants={"scale": np.ones((3, 4), np.float32)}
    ),
    "hard swish": graph_of(node("HardSwish")),
    "mish": graph_of(node("Mish")),
    "mean": graph_of(node("ReduceMean", "x", "axes", keepdims=0), constants={"axes": np.array([-1, 1])}),
    "largest of all": graph_of(node("ReduceMax", keepdims=0)),
    "mean of nothing": graph_of(node("ReduceMean", noop_with_empty_axes=1)),
    "part of a shape": graph_of(node("Shape", start=1, end=2), result=TensorProto.INT64),
    "end of a shape": graph_of(node("Shape", start=-2), result=TensorProto.INT64),
    "reshape": graph_of(node("Reshape", "x", "shape", allowzero=1), constants={"shape": np.array([4, 6])}),
    "cast": graph_of(node("Cast", to=TensorProto.INT64, saturate=1), result=TensorProto.INT64),
    "sum": graph_of(node("ReduceSum", "x", "axes"), constants={"axes": np.array([1])}),
}


@pytest.mark.parametrize("opset", [17, OLDEST_OPSET])
@pytest.mark.parametrize("name", CASES)
def test_answers_as_before(name: str, opset: int) -> None:
    model = onnx.ModelProto.FromString(CASES[name].SerializeToString())
    before = run(model)
    onnx_lower.lower(model, opset)
    assert [entry.version for entry in model.opset_import] == [opset]
    onnx.checker.check_model(model, full_check=True)
    assert run(model) == pytest.approx(before, abs=2e-6)


def test_an_operator_that_a_runtime_lacks_is_written_without() -> None:
    model = graph_of(node("LayerNormalization", "x", "scale"), constants={"scale": NORM["scale"]})
    before = run(model)
    onnx_lower.lower(model, 17, avoid=["LayerNormalization"])
    assert "LayerNormalization" not in {each.op_type for each in model.graph.node}
    assert run(model) == pytest.approx(before, abs=2e-6)


def test_constants_are_of_the_type_that_the_operator_works_in() -> None:
    model = graph_of(node("Gelu"), kind=TensorProto.FLOAT16)
    before = run(model, np.float16)
    onnx_lower.lower(model, 13)
    onnx.checker.check_model(model, full_check=True)
    assert run(model, np.float16).astype(np.float32) == pytest.approx(before.astype(np.float32), abs=1e-2)


def test_a_replaced_operator_keeps_its_module() -> None:
    model = graph_of(node("Gelu"))
    model.graph.node[0].metadata_props.add(key=onnx_layers.SCOPES, value="['', 'encoder.act', 'gelu']")
    onnx_lower.lower(model, 17)
    assert len(model.graph.node) > 3
    assert {each.metadata_props[0].value for each in model.graph.node} == {"['', 'encoder.act', 'gelu']"}


def test_graphs_inside_nodes_are_written_anew_too() -> None:
    def branch(kind: str, name: str) -> Any:
        return helper.make_graph(
            [helper.make_node(kind, ["x"], [name], name)],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)],
        )

    choose = helper.make_node("If", ["yes"], ["y"], then_branch=branch("Gelu", "a"), else_branch=branch("Mish", "b"))
    model = graph_of(choose, constants={"yes": np.array(True)})
    before = run(model)
    onnx_lower.lower(model, 13)
    kinds = {each.op_type for graph in onnx_file.graphs(model.graph) for each in graph.node}
    assert not kinds & {"Gelu", "Mish"}
    assert run(model) == pytest.approx(before, abs=2e-6)


def test_what_has_no_older_form_is_named() -> None:
    model = graph_of(node("Bernoulli"))
    with pytest.raises(InputError, match="'the-node' is a Bernoulli, which opset 13 does not have"):
        onnx_lower.lower(model, 13)
    computed = graph_of(helper.make_node("Shape", ["x"], ["axes"], end=1), node("ReduceMean", "x", "axes"))
    with pytest.raises(InputError, match="'axes', which must be constant"):
        onnx_lower.lower(computed, 13)
    with pytest.raises(InputError, match="Opset 12"):
        onnx_lower.lower(graph_of(node("Gelu")), 12)


def test_a_model_in_an_older_opset_stays_in_it() -> None:
    model = graph_of(node("Relu"), opset=14)
    onnx_lower.lower(model, 17)
    assert model.opset_import[0].version == 14


@pytest.mark.parametrize("name", ["jetson-nano", "jetson-xavier-nx", "jetson-orin-nx-16gb@jetpack-5.1"])
def test_boards_with_old_jetpacks_get_candidates(name: str) -> None:
    chosen, _ = recipe.candidates(target.resolve(name))
    assert "tensorrt fp16" in [plan.name for plan in chosen]


def test_exported_in_an_old_opset(tuned: Path, tmp_path: Path) -> None:
    from toolkit import steps

    steps.export(str(tuned), str(tmp_path / "old"), engine="tensorrt", lengths=[16], opset=13)
    model = onnx.load(str(tmp_path / "old" / "model.onnx"))
    assert (model.opset_import[0].version, model.ir_version) == (13, 7)
    onnx.checker.check_model(model, full_check=True)
    assert not {each.op_type for each in model.graph.node} & set(onnx_lower.REPLACED)
