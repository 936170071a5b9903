"""The rule tables that were observed, compared with the runtimes that are installed here; and how tables are read."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tests import other_runtimes
from toolkit import rules
from toolkit.errors import InputError
from toolkit.export import litert as litert_export
from toolkit.export import onnx as onnx_export
from toolkit.rules import observe, observe_litert, observe_onnxruntime, observe_xnnpack, read_onnx_tensorrt
from toolkit.rules.table import OperatorRule


def shipped(name: str, package: str) -> rules.Table:
    """A table, if the installed package is the one that it was observed with."""
    table = rules.load(name)
    if importlib.metadata.version(package) != table.version:
        pytest.skip(f"{name} is of {package} {table.version}, installed is {importlib.metadata.version(package)}")
    return table


def as_rules(operators: dict[str, dict[str, Any]]) -> dict[str, OperatorRule]:
    return {name: OperatorRule.model_validate(rule) for name, rule in operators.items()}


def test_onnxruntime_has_the_kernels_of_its_table() -> None:
    table = shipped("onnxruntime-1.31", "onnxruntime")
    assert as_rules(observe_onnxruntime.operators()) == table.operators


def test_onnxruntime_takes_the_opsets_of_its_table() -> None:
    table = shipped("onnxruntime-1.31", "onnxruntime")
    assert observe_onnxruntime.opset_and_ir() == (table.opset_max, table.ir_version)
    assert table.opset_of_version["1.31"] == table.opset_max


@pytest.mark.parametrize(
    ("op", "dtype", "opens"),
    [
        ("MatMul", "FLOAT16", True),
        ("MatMul", "BFLOAT16", False),
        ("Softplus", "DOUBLE", False),
        ("Relu", "DOUBLE", True),
    ],
)
def test_onnxruntime_opens_what_its_table_supports(op: str, dtype: str, opens: bool) -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    inputs = ["a", "b"] if op == "MatMul" else ["a"]
    values = [helper.make_tensor_value_info(name, getattr(TensorProto, dtype), [2, 2]) for name in [*inputs, "y"]]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "one", values[:-1], values[-1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    name = {"FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp64"}[dtype]
    said = rules.load("onnxruntime-1.31").verdict(op, version=20, dtypes=[name]).status
    assert said == ("supported" if opens else "unsupported")
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:
        assert not opens
    else:
        assert opens


def test_litert_has_the_operators_of_its_table() -> None:
    table = shipped("litert-2.3", "ai-edge-litert")
    assert as_rules(observe_litert.operators(sys.executable)) == table.operators


def test_xnnpack_takes_the_operators_of_its_table() -> None:
    table = shipped("xnnpack-2.3", "ai-edge-litert")
    assert as_rules(observe_xnnpack.operators(sys.executable)) == table.operators


def test_tflite_runtime_has_the_operators_of_its_table(cache_folder: Path) -> None:
    python = other_runtimes.tflite_runtime(cache_folder)
    assert as_rules(observe_litert.operators(str(python))) == rules.load("tflite-runtime-2.14").operators


def test_the_tables_of_litert_agree_with_the_versions_that_its_source_states() -> None:
    stated = json.loads(Path(litert_export.__file__).with_name("litert_op_versions.json").read_text(encoding="utf-8"))
    operators = rules.load("tflite-runtime-2.14").operators
    for name, minimum in stated["minimum_runtime"].items():
        known = [int(version) for version, runtime in minimum.items() if Version(runtime) <= Version("2.14.0")]
        assert operators[name].versions == ((min(known), max(known)) if known else None), name


def test_the_minimum_runtime_of_an_opset_is_what_the_table_says() -> None:
    table = rules.load("onnxruntime-1.31")
    highest = {Version(version): opset for version, opset in table.opset_of_version.items()}
    for opset in range(20, max(highest.values()) + 1):
        first = min(version for version, reaches in highest.items() if reaches >= opset)
        assert Version(onnx_export._RUNTIME_OF_OPSET[opset]) == first


def test_a_python_without_a_runtime_is_one_message(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    with pytest.raises(InputError, match="has no LiteRT runtime: ModuleNotFoundError"):
        observe_litert.operators(python)
    with pytest.raises(InputError, match="Cannot run /no/python"):
        observe_litert.operators("/no/python")


# onnx-tensorrt's list of operators

DOCUMENT = """\
# Supported ONNX Operators
TensorRT 9.9 supports operators in the inclusive range of opset 9 to opset 20.

| Operator | Supported | Supported Types | Restrictions |
|----------|-----------|-----------------|--------------|
| Abs      | Y         | FP32, FP16, BF16, INT64 |
| Det      | N         |
| MaxPool | Y | FP32 | 2D or 3D pooling only. `Indices` output tensor unsupported. `dilations` must be empty or all ones
| Loop     | Y [EXPERIMENTAL] | BOOL | Scan output length cannot be dynamic.
"""


def test_the_list_of_operators_is_read() -> None:
    found = as_rules(read_onnx_tensorrt.operators(DOCUMENT, "9.9"))
    assert set(found) == {"Abs", "Det", "MaxPool", "Loop"}
    assert found["Abs"].dtypes == ["fp32", "fp16", "bf16", "int64"]
    assert not found["Det"].supported
    assert [str(each) for each in found["MaxPool"].constraints] == [
        "dilations must be 1", "tensors must have 4 to 5 dimensions",
    ]  # fmt: skip
    assert found["MaxPool"].limits == ["no output Indices"]
    assert found["Loop"].limits == ["experimental", "scan outputs of a fixed length"]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("TensorRT 9.9", "TensorRT 8.9", "not the list of operators of TensorRT 9.9"),
        ("FP32, FP16,", "FP32, FP17,", "Abs: no known type: FP17"),
        ("Scan output length cannot be dynamic.", "On Sundays only.", "Loop: no known restriction: On Sundays only."),
    ],
)
def test_what_is_not_known_in_the_list_is_refused(old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_onnx_tensorrt.operators(DOCUMENT.replace(old, new), "9.9")


def test_operators_are_put_into_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "operators.md").write_text(DOCUMENT, encoding="utf-8")
    table = tmp_path / "table.yaml"
    table.write_text("# by hand\nname: x\noperators:\n  Old: {}\n", encoding="utf-8")
    arguments = ["--file", str(tmp_path / "operators.md"), "--version", "9.9", "--into", str(table)]
    monkeypatch.setattr(sys, "argv", ["observe", "onnx-tensorrt", *arguments])
    assert observe.main() == 0
    text = table.read_text(encoding="utf-8")
    assert text.startswith("# by hand\nname: x\noperators:\n  Abs: {dtypes: [fp32, fp16, bf16, int64]}\n")
    assert "Old" not in text
