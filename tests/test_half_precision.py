"""Half precision in ONNX: what does not fit stays in float32, seen on real examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import artifacts
from toolkit import steps
from toolkit.errors import InputError
from toolkit.export import onnx_half

INPUTS = [{"x": np.linspace(-1, 1, 8, dtype=np.float32).reshape(1, 8)}]


def chain(scale: float, mask: float | None = None) -> Any:
    """x → times `scale` → plus `mask` → softmax, and a second branch that divides by `scale` again."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["large"], name="enlarge"),
        helper.make_node("Div", ["large", "scale"], ["back"], name="shrink"),
        helper.make_node("Relu", ["back"], ["positive"], name="relu"),
    ]
    constants = [numpy_helper.from_array(np.float32(scale), "scale")]
    last = "positive"
    if mask is not None:
        constants.append(numpy_helper.from_array(np.float32([0] * 7 + [mask]), "mask"))
        nodes.append(helper.make_node("Add", [last, "mask"], ["masked"], name="mask"))
        last = "masked"
    nodes.append(helper.make_node("Softmax", [last], ["y"], name="softmax", axis=-1))
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def answer(path: Path, times: float = 1) -> Any:
    """In true half precision: ONNX Runtime's CPU kernels compute some of it in float32."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(onnx.load(str(path))).run(None, {"x": np.float32(times) * INPUTS[0]["x"]})[0]


def wanted(scale: float, mask: float = 0.0) -> Any:
    values = np.maximum(INPUTS[0]["x"], 0) + np.float32([0] * 7 + [mask])
    shifted = np.exp(values - values.max())
    return shifted / shifted.sum()


@pytest.mark.parametrize("scale", [1e5, 6e4])
def test_what_overflows_stays_in_float32(scale: float, tmp_path: Path) -> None:
    """60,000 fits, but not with the margin for what examples do not show."""
    model = chain(scale)
    assert set(onnx_half.overflowing(model, INPUTS)) == {"enlarge", "shrink"}
    report = onnx_half.convert(model, tmp_path / "half.onnx", [], INPUTS)
    assert set(report["overflow"]["float32"]) == {"enlarge", "shrink"}
    assert (
        "large reaches" in report["overflow"]["float32"]["enlarge"]
        or "scale" in report["overflow"]["float32"]["enlarge"]
    )
    np.testing.assert_allclose(answer(tmp_path / "half.onnx"), wanted(scale), atol=2e-3)


def test_without_examples_the_overflow_goes_unseen(tmp_path: Path) -> None:
    """What other converters do: the reason for looking."""
    report = onnx_half.convert(chain(4e4), tmp_path / "half.onnx", [], [])
    assert report == {"overflow": {"examples": 0, "float32": {}}}
    with np.errstate(all="ignore"):
        assert not np.isfinite(answer(tmp_path / "half.onnx", 3)).all()
    onnx_half.convert(chain(4e4), tmp_path / "looked.onnx", [], [{"x": 3 * INPUTS[0]["x"]}])
    assert np.isfinite(answer(tmp_path / "looked.onnx", 3)).all()


def test_what_fits_is_converted_whole(tmp_path: Path) -> None:
    import onnx

    report = onnx_half.convert(chain(100), tmp_path / "half.onnx", [], INPUTS)
    assert report["overflow"] == {"examples": 1, "float32": {}}
    half = onnx.load(str(tmp_path / "half.onnx"))
    assert [node.op_type for node in half.graph.node].count("Cast") == 2  # in and out
    assert half.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_masks_are_no_overflow(tmp_path: Path) -> None:
    lowest = float(np.finfo(np.float32).min)
    model = chain(2, lowest)
    assert onnx_half.overflowing(model, INPUTS) == {}
    onnx_half.convert(model, tmp_path / "half.onnx", [], INPUTS)
    found = answer(tmp_path / "half.onnx")
    assert np.isfinite(found).all()
    assert found[0, -1] == 0


def test_a_norm_of_large_values_stays_in_float32() -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in ("x", "y")]
    scale = numpy_helper.from_array(np.ones(8, np.float32), "scale")
    node = helper.make_node("LayerNormalization", ["x", "scale"], ["y"], name="norm")
    graph = helper.make_graph([node], "norm", values[:1], values[1:], [scale])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    assert onnx_half.overflowing(model, INPUTS) == {}
    found = onnx_half.overflowing(model, [{"x": INPUTS[0]["x"] * 1000}])
    assert "square" in found["norm"]


def test_answers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    """The output itself does not fit, and no layer in float32 helps an infinite one."""
    with pytest.raises(InputError, match="not finite on calibration example 1"):
        onnx_half.convert(chain(1, float("nan")), tmp_path / "half.onnx", [], INPUTS)
    assert not (tmp_path / "half.onnx").exists()


def test_a_real_encoder_whose_values_overflow(
    tuned: Path, reviews: Path, tmp_path: Path, sentences: list[tuple[str, str]]
) -> None:
    """The same model in other numbers: values 100,000 times as large, undone by the weights behind them."""
    import shutil

    from safetensors.torch import load_file, save_file

    large = tmp_path / "large"
    shutil.copytree(tuned, large)
    weights = load_file(large / "model.safetensors")
    layer = "bert.encoder.layer.1.attention"
    for name in (f"{layer}.self.value.weight", f"{layer}.self.value.bias"):
        weights[name] *= 1e5
    weights[f"{layer}.output.dense.weight"] /= 1e5
    save_file(weights, large / "model.safetensors", metadata={"format": "pt"})
    steps.export(str(large), str(tmp_path / "float"), engine="tensorrt", lengths=[32])
    texts = [text for text, _ in sentences[:20]]
    expected = artifacts.answers(tmp_path / "float", texts)
    blind = steps.quantize(str(tmp_path / "float"), str(tmp_path / "blind"), method="fp16")
    assert any("Nobody looked" in warning for warning in blind["warnings"])
    assert not np.isfinite(artifacts.answers(tmp_path / "blind", texts)).all()
    looked = steps.quantize(
        str(tmp_path / "float"), str(tmp_path / "looked"), method="fp16", options={"data": str(reviews)}
    )
    assert looked["warnings"] == []
    kept = looked["overflow"]["float32"]
    assert 0 < len(kept) < 20
    assert looked["overflow"]["examples"] > 100
    np.testing.assert_allclose(artifacts.answers(tmp_path / "looked", texts), expected, atol=0.02)
    json.dumps(looked)
