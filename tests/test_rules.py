"""Rule tables: what they say of operators, what is refused in one, and that those that are shipped hold together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit import rules, shipped
from toolkit.errors import InputError
from toolkit.rules.constraints import NOT_CONSTANT, Constraint, Node
from toolkit.rules.table import OperatorRule, Table


def verdict(table: str, op: str, **known: Any) -> tuple[str, str]:
    found = rules.load(table).verdict(op, **known)
    return found.status, found.reason


# The shipped tables


def test_the_runtimes_that_profiles_speak_of_have_tables() -> None:
    assert set(rules.names()) >= {
        "tensorrt-8.2", "tensorrt-8.5", "tensorrt-8.6", "tensorrt-10.3", "tensorrt-10.13", "tensorrt-10.16",
        "tensorrt-11", "tensorrt-rtx-1.7", "onnxruntime-1.31", "litert-2.3", "tflite-runtime-2.14", "xnnpack-2.3",
        "edgetpu", "dla",
    }  # fmt: skip


@pytest.mark.parametrize("name", rules.names())
def test_a_shipped_table_loads_and_says_where_it_comes_from(name: str) -> None:
    table = rules.load(name)
    assert table.name == name
    assert table.operators
    assert table.sources
    assert set(table.limits) == set(table.statements)


@pytest.mark.parametrize(
    ("version", "opset"), [("8.2.1", 13), ("8.5.2", 17), ("8.6.2", 17), ("10.3.0", 20), ("10.16.2", 24), ("11.4.1", 24)]
)
def test_each_jetpacks_tensorrt_has_its_table(version: str, opset: int) -> None:
    table = rules.fitting("tensorrt", version)
    assert table is not None
    assert table.opset_max == opset
    assert rules.fitting("tensorrt", "7.1") is None
    assert rules.fitting("litert", version) is None


@pytest.mark.parametrize(
    ("op", "since"),
    [
        ("NonZero", "8.5"), ("GridSample", "8.5"), ("OneHot", "8.5"), ("Trilu", "8.5"),
        ("LayerNormalization", "8.6"), ("GroupNormalization", "8.6"), ("Gelu", "10.3"), ("HannWindow", "10.13"),
        ("Attention", "10.15"), ("RMSNormalization", "10.15"), ("Swish", "11"),
    ],
)  # fmt: skip
def test_tensorrt_has_an_operator_since(op: str, since: str) -> None:
    releases = ["8.2", "8.5", "8.6", "10.3", "10.13", "10.15", "10.16", "11"]
    has = [verdict(f"tensorrt-{release}", op)[0] == "supported" for release in releases]
    assert has == [releases.index(release) >= releases.index(since) for release in releases]


def test_a_table_takes_over_what_it_extends() -> None:
    base, table = rules.load("tensorrt-10.15"), rules.load("tensorrt-11")
    assert table.operators["TopK"] == base.operators["TopK"]
    assert table.opset_max == base.opset_max
    assert set(base.limits) < set(table.limits)
    assert "strongly-typed-only" in set(table.limits) - set(base.limits)
    assert rules.load("tensorrt-10.13").opset_max == 20  # its own, not the base's
    assert len(table.sources) > len(base.sources)


def test_quantization_for_tensorrt() -> None:
    for release in ("8.6", "10.3", "11"):
        table = f"tensorrt-{release}"
        assert verdict(table, "DequantizeLinear", dtypes=["int8"])[0] == "supported"
        assert verdict(table, "DequantizeLinear", dtypes=["int32"])[0] == "unsupported"
        assert verdict(table, "QuantizeLinear", inputs={"y_zero_point": np.zeros(4, np.int8)})[0] == "supported"
        assert verdict(table, "QuantizeLinear", inputs={"y_zero_point": np.array([0, 3])})[0] == "unsupported"
        assert verdict(table, "QLinearConv")[0] == "unsupported"
        assert verdict(table, "FusedMatMul", domain="com.microsoft")[0] == "unsupported"
        limit = rules.load(table).statements["dq-int32"]
        assert "bias" in limit.statement
        assert limit.instead == "leave biases in float"


# Verdicts


def test_opset_outside_the_range() -> None:
    assert verdict("tensorrt-10.3", "Relu", version=20)[0] == "supported"
    assert verdict("tensorrt-10.3", "Relu", version=21) == (
        "unsupported", "TensorRT 10.3 takes opsets 9 to 20; this is 21",
    )  # fmt: skip
    assert verdict("tensorrt-8.2", "Relu", version=6)[0] == "supported"  # its lowest opset is not known
    assert verdict("tensorrt-8.2", "Relu", version=14) == (
        "unsupported", "TensorRT 8.2 takes opsets up to 13; this is 14",
    )  # fmt: skip


def test_the_domain_has_two_spellings() -> None:
    assert rules.load("tensorrt-10.3").verdict("Relu", domain="ai.onnx") == rules.load("tensorrt-10.3").verdict("Relu")


def test_types_that_are_cast() -> None:
    assert verdict("tensorrt-8.5", "Gather", dtypes=["int64"])[0] == "supported"  # becomes int32
    assert verdict("tensorrt-10.3", "Softmax", dtypes=["int64"])[0] == "unsupported"
    assert verdict("onnxruntime-1.31", "Conv", version=20, dtypes=["fp16"])[0] == "supported"  # runs in fp32
    assert verdict("onnxruntime-1.31", "Conv", version=20, dtypes=["bf16"])[0] == "unsupported"


def test_types_by_the_names_of_the_schema() -> None:
    assert (
        verdict("onnxruntime-1.31", "QuantizeLinear", version=13, dtypes={"T1": "fp32", "T2": "int8"})[0] == "supported"
    )
    found = verdict("onnxruntime-1.31", "QuantizeLinear", version=13, dtypes={"T1": "int8", "T2": "int8"})
    assert found == ("unsupported", "ONNX Runtime 1.31 (CPU) has QuantizeLinear for fp32, not for int8")


def test_kernels_by_version() -> None:
    assert verdict("onnxruntime-1.31", "LayerNormalization", version=17)[0] == "supported"
    assert verdict("onnxruntime-1.31", "Swish", version=24) == (
        "supported", "ONNX Runtime 1.31 (CPU) has no kernel for Swish and runs the operators that define it",
    )  # fmt: skip
    assert verdict("onnxruntime-1.31", "MatMulNBits", domain="com.microsoft", version=1)[0] == "supported"
    assert verdict("onnxruntime-1.31", "DoesNotExist", version=20)[0] == "unsupported"
    old = Table.model_validate(
        {
            "name": "t", "title": "T", "engine": "e", "package": "p", "version": "1", "versions": ">=1",
            "unlisted": "unknown", "sources": [{"source": "s", "confidence": "read"}],
            "operators": {"Op": {"kernels": [{"since": 13, "until": 17, "types": {"T": ["fp32"]}}]}},
        }
    )  # fmt: skip
    assert [old.verdict("Op", version=version).status for version in (12, 13, 17, 18)] == [
        "unsupported", "supported", "supported", "unsupported",
    ]  # fmt: skip
    assert old.verdict("Other").status == "unknown"


def test_litert_versions() -> None:
    assert verdict("litert-2.3", "GATHER_ND", version=5)[0] == "supported"
    assert verdict("tflite-runtime-2.14", "GATHER_ND", version=5) == (
        "unsupported", "tflite-runtime 2.14 has GATHER_ND in versions 1 to 4; this is version 5",
    )  # fmt: skip
    assert verdict("litert-2.3", "BROADCAST_TO", version=1)[0] == "unsupported"  # there never was a version 1
    assert verdict("tflite-runtime-2.14", "STABLEHLO_ADD")[0] == "unsupported"


def test_what_is_not_known_of_a_node_comes_back_as_a_condition() -> None:
    table = rules.load("tensorrt-10.3")
    assert table.verdict("TopK").conditions == ("K must be below 3840", "sorted must be 1")
    assert table.verdict("TopK", inputs={"K": 3839}, attributes={}).conditions == ()
    assert table.verdict("TopK", inputs={"K": 3840}).status == "unsupported"
    assert table.verdict("TopK", attributes={"sorted": 0}).reason == "sorted must be 1; here it is 0"


def test_constraints_on_every_node() -> None:
    dla = rules.load("dla")
    assert dla.verdict("Conv", dtypes=["fp16"], shapes=[[1, 3, 224, 224]]).status == "supported"
    assert dla.verdict("Conv", dtypes=["fp32"]).status == "unsupported"
    assert (
        dla.verdict("Conv", shapes=[["batch", 3, 224, 224]]).reason
        == "shapes must be fixed; here: [batch, 3, 224, 224]"
    )
    assert dla.verdict("Conv", shapes=[[1, 3, 8193, 1]]).status == "unsupported"
    assert dla.verdict("Conv", shapes=[[4097, 3, 8, 8]]).status == "unsupported"
    assert dla.verdict("Einsum").status == "unknown"
    edgetpu = rules.load("edgetpu")
    assert edgetpu.verdict("CONV_2D", dtypes=["int8"], shapes=[[1, 8, 8, 3]]).status == "supported"
    assert edgetpu.verdict("CONV_2D", shapes=[[2, 8, 8, 3]]).status == "unsupported"
    assert edgetpu.verdict("SOFTMAX").conditions[0] == "one dimension, at most 16000 elements"


@pytest.mark.parametrize(
    ("constraint", "node", "kept"),
    [
        ({"input": "axes", "constant": True}, Node(inputs={"axes": NOT_CONSTANT}), False),
        ({"input": "axes", "constant": True}, Node(inputs={"axes": [1]}), True),
        ({"input": "axes", "constant": True}, Node(), None),
        ({"input": "k", "below": 5}, Node(inputs={"k": NOT_CONSTANT}), None),
        ({"attribute": "dilations", "equals": 1}, Node(attributes={"dilations": [1, 2]}), False),
        ({"attribute": "dilations", "equals": 1}, Node(attributes={"dilations": [1, 1]}), True),
        ({"attribute": "dilations", "equals": 1}, Node(attributes={}), True),
        ({"attribute": "dilations", "equals": 1}, Node(), None),
        ({"rank": [4, 5]}, Node(shapes=[[1, 2, 3]]), False),
        ({"rank": [4, 5]}, Node(shapes=[[None, 2, 3, 4]]), True),
        ({"static": True}, Node(shapes=[[1, 2], [None]]), False),
        ({"most_dims_over_one": 3}, Node(shapes=[[1, 1, 5, 5, 5]]), True),
        ({"most_dims_over_one": 3}, Node(shapes=[[1, 2, 5, 5, 5]]), False),
        ({"most_dims_over_one": 3}, Node(shapes=[["n", 5, 5, 5]]), None),
        ({"batch_at_most": 6}, Node(shapes=[[2, 3, 9, 9, 9]]), True),
        ({"batch_at_most": 5}, Node(shapes=[[2, 3, 9, 9, 9]]), False),
        ({"batch_at_most": 5}, Node(shapes=[["n", 3, 9, 9, 9]]), None),
    ],
)
def test_a_constraint_is_kept_or_not_or_not_known(constraint: dict[str, Any], node: Node, kept: bool | None) -> None:
    assert Constraint.model_validate(constraint).check(node)[0] is kept


@pytest.mark.parametrize("faulty", [{}, {"input": "x"}, {"constant": True}, {"static": True, "dim_at_most": 3}])
def test_a_constraint_is_one_check(faulty: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a constraint is one check"):
        OperatorRule.model_validate({"constraints": [faulty]})


# Refusals


def test_unknown_table() -> None:
    with pytest.raises(InputError, match=r"Unknown rule table 'tensorrt-10.4'. Did you mean 'tensorrt-10.3'"):
        rules.load("tensorrt-10.4")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the shipped data that is used instead of it."""
    copy = tmp_path / "targets"
    shutil.copytree(shipped.targets_folder(), copy)
    monkeypatch.setattr(shipped, "targets_folder", lambda: copy)
    return copy


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: dla", "name: other", "differs from the file name"),
        ("dla-loadables", "dla-loadable", "there is no 'dla-loadable' in shared/limits.yaml"),
        ('versions: ">=8.2,<10.8"', "versions: 8 to 10", "is not a version range"),
        ("unlisted: unknown", "unlisted: unknown\ncolour: red", "dla.yaml:9: colour: unknown key"),
    ],
)
def test_a_faulty_table_is_refused(folder: Path, old: str, new: str, said: str) -> None:
    path = folder / "rules" / "dla.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(InputError, match=said):
        rules.load("dla")
