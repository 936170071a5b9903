"""What is told of an ONNX file for TensorRT without its device: by the rule tables, and by NVIDIA's own parser."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import typed_onnx
from toolkit import rules, stages
from toolkit.errors import InputError, MissingDependencyError
from toolkit.gates import operators, parser
from toolkit.rules import onnx_graph
from toolkit.stages import preflight as preflight_stage
from toolkit.tensorrt import preflight, rungs

JETSON_TABLES = ("tensorrt-10.3", "tensorrt-10.13", "tensorrt-10.16", "tensorrt-11")


@pytest.fixture
def float_network(typed: dict[str, Path]) -> Path:
    return typed["float network"] / "model.onnx"


def quantized_by_onnxruntime(source: Path, output: Path, **given: Any) -> Path:
    """The small network as onnxruntime's own quantizer makes it."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            generator = np.random.default_rng(0)
            shape = (2, 1, typed_onnx.SIDE, typed_onnx.SIDE)
            self.batches = [{"pixel_values": generator.random(shape, dtype=np.float32)} for _ in range(2)]

        def get_next(self) -> Mapping[str, Any] | None:
            return self.batches.pop() if self.batches else None

    quantize_static(str(source), str(output), Images(), **given)
    return output


def forms() -> dict[str, tuple[dict[str, Any], str, str]]:
    """What onnxruntime's quantizer can be told, the rule that it breaks, and what the parser says of it."""
    from onnxruntime.quantization import QuantFormat, QuantType

    return {
        "defaults": ({}, "dq-int32", "Int32"),
        "float biases": ({"extra_options": {"QuantizeBias": False}}, "zero-point-zero", "zero point"),
        "16 bits": (
            {
                "activation_type": QuantType.QInt16,
                "extra_options": {"QuantizeBias": False, "ActivationSymmetric": True},
            },
            "no-16-bit-qdq",
            "Failed to import initializer",
        ),
        "QOperator": ({"quant_format": QuantFormat.QOperator}, "no-qoperator", "zero point"),
    }


@pytest.mark.parametrize("form", ["defaults", "float biases", "16 bits", "QOperator"])
def test_what_onnxruntime_quantizes_is_refused_with_the_rule(form: str, float_network: Path, tmp_path: Path) -> None:
    given, rule, words = forms()[form]
    model = quantized_by_onnxruntime(float_network, tmp_path / "model.onnx", **given)
    answer = preflight.ask(model)
    assert answer.status == "refused"
    assert words in answer.messages[0]
    assert rule in answer.as_dict()["rules"]
    verdict = parser.check(answer.as_dict())
    assert not verdict.passed
    # The rule that is named first is one of the node that the parser stumbles over.
    assert f"Rule {answer.findings[0].rule}: " in verdict.reason
    assert form == "QOperator" or answer.findings[0].rule == rule
    # The tables of every TensorRT say the same without asking.
    for table in JETSON_TABLES:
        assert rule in {finding.rule for finding in onnx_graph.check(model, rules.load(table)).refused}


def test_symmetric_int8_of_onnxruntime_with_float_biases_is_accepted(float_network: Path, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType

    options = {"QuantizeBias": False, "ActivationSymmetric": True, "WeightSymmetric": True}
    given: dict[str, Any] = {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8}
    model = quantized_by_onnxruntime(float_network, tmp_path / "model.onnx", **given, extra_options=options)
    assert preflight.ask(model).status == "accepted"
    assert not onnx_graph.check(model, rules.load("tensorrt-rtx-1.7")).refused


@pytest.mark.parametrize("which", ["fp16 encoder", "int8 network", "float network"])
def test_what_this_toolkit_makes_is_accepted(which: str, typed: dict[str, Path]) -> None:
    answer = preflight.ask(typed[which] / "model.onnx")
    assert answer.status == "accepted"
    assert parser.check(answer.as_dict()).passed
    for table in (*JETSON_TABLES, "tensorrt-rtx-1.7"):
        found = onnx_graph.check(typed[which] / "model.onnx", rules.load(table))
        assert found.refused == []
        assert found.unknown == []
        assert found.nodes > 5


def test_an_opset_that_is_too_new_is_one_finding(typed: dict[str, Path]) -> None:
    found = onnx_graph.check(typed["float network"] / "model.onnx", rules.load("tensorrt-8.2"))
    assert [finding.rule for finding in found.refused] == ["opset"]
    assert found.refused[0].reason == "TensorRT 8.2 takes opsets up to 13; this is 20"


def test_an_operator_that_a_release_lacks_is_found(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 8]) for name in "xy")
    nodes = [
        helper.make_node("LayerNormalization", ["x", "scale"], ["n"], name="norm"),
        helper.make_node("TopK", ["n", "k"], ["v", "i"], name="top"),
        helper.make_node("Unheard", ["v"], ["y"], name="u", domain="somebody"),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.ones(8, np.float32), "scale"),
        onnx.numpy_helper.from_array(np.array([4000]), "k"),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], constants)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("somebody", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets), str(tmp_path / "model.onnx"))
    old = onnx_graph.check(tmp_path / "model.onnx", rules.load("tensorrt-8.5"))
    assert old.refused[0].reason == "TensorRT 8.5 does not have LayerNormalization"
    new = onnx_graph.check(tmp_path / "model.onnx", rules.load("tensorrt-10.3"))
    assert [(finding.node, finding.reason) for finding in new.refused] == [
        ("top", "K must be below 3840; here it is [4000]")
    ]
    assert new.unknown == ["Unheard"]


# No answer


def test_a_crash_of_the_parser_is_an_unknown_answer(
    float_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for NVIDIA's package: it dies as the real one does on some graphs."""
    (tmp_path / "tensorrt_rtx.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    answer = preflight.ask(float_network)
    assert answer.status == "unknown"
    assert answer.reason == "not known: the parser's process ended by signal 11"
    assert parser.check(answer.as_dict()).passed


def test_a_parser_that_takes_too_long_is_an_unknown_answer(float_network: Path) -> None:
    answer = preflight.ask(float_network, timeout_seconds=0.01)
    assert (answer.status, answer.reason) == ("unknown", "not known: the parser did not end within 0.01 s")


def test_without_the_extra_the_parser_is_not_asked(
    float_network: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'edge-deployment-toolkit\[tensorrt\]'"):
        preflight.ask(float_network)
    parameters = preflight_stage.Parameters(rules="tensorrt-10.3", rules_sha256="0")
    report = preflight_stage.run(float_network.parent, tmp_path, parameters, stages.Context(task="any"))
    assert report["parser"] is None
    assert operators.check(report["rules"]).passed
    assert "extra 'tensorrt'" in parser.check(None).reason


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.onnx is not a file"):
        preflight.ask(tmp_path / "no.onnx")


# Rungs


@pytest.mark.parametrize(
    ("passed", "rung"),
    [
        ({}, None),
        ({"L0": True}, "L0"),
        ({"L0": True, "L2": True}, "L2"),  # the parser is not installed
        ({"L0": True, "L1": None, "L2": True}, "L2"),  # it crashed
        ({"L0": True, "L1": False, "L2": True}, "L0"),  # what is refused below does not count
        ({"L0": False, "L1": True, "L2": True}, None),
        ({"L0": False, "L2": True, "L3": True}, "L3"),  # the device took it
    ],
)
def test_the_rung_is_the_highest_that_was_passed(passed: dict[str, bool | None], rung: str | None) -> None:
    steps = {name: {"passed": value, "detail": ""} for name, value in passed.items()}
    assert rungs.reached(steps) == rung
    said = rungs.sentence({"rung": rung, "steps": steps})
    assert "verified" not in said
    assert ("nothing ran on the device" in said) == (rung in ("L0", "L1", "L2"))
