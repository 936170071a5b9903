"""Coverage: what rule tables say falls back, held against what the installed runtimes do, and what becomes of it in
shares, parts and a verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import toolkit
from tests import artifacts
from tests.conftest import TRAINING
from toolkit import coverage, rules, stages
from toolkit.coverage import costing, litert, partitions
from toolkit.devices import local
from toolkit.errors import InputError
from toolkit.export import onnx_file
from toolkit.gates import coverage as gate
from toolkit.rules import litert_samples, onnx_graph, onnx_precision
from toolkit.stages import coverage as stage
from toolkit.tensorrt import preflight

XNNPACK, ONNXRUNTIME, PARSER = "xnnpack-2.3", "onnxruntime-1.31", preflight.RULES


def agreement(path: Path, name: str) -> tuple[set[int], set[int], coverage.Observed]:
    """The places that a table says fall back, those that do, and what the runtime said."""
    table = rules.load(name)
    observed = coverage.runtime(table.engine).observe(path, 120)
    assert observed.fallen is not None, observed.reason
    predicted = {place for place, each in enumerate(coverage.predict(path, table)) if each.taken is False}
    return predicted, set(observed.fallen), observed


# Against the installed runtimes


@pytest.fixture(scope="module")
def litert_file(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tuned, tmp_path_factory.mktemp("litert"), "litert") / "model.tflite"


def test_xnnpack_leaves_what_its_table_says(litert_file: Path) -> None:
    predicted, fallen, observed = agreement(litert_file, XNNPACK)
    assert predicted == fallen
    placements = coverage.predict(litert_file, rules.load(XNNPACK))
    assert {placements[place].operator for place in fallen} == {"CAST", "EMBEDDING_LOOKUP", "RESHAPE"}
    table_look_up = next(each for each in placements if each.operator == "EMBEDDING_LOOKUP")
    assert table_look_up.module.startswith("bert.embeddings")
    assert litert.parts(placements) == observed.partitions == 1


def test_onnxruntime_runs_in_float_what_its_table_says(typed: dict[str, Path]) -> None:
    """A graph that is typed for TensorRT: between its Q/DQ pairs ONNX Runtime fuses some nodes only."""
    predicted, fallen, _ = agreement(typed["int8 network"] / "model.onnx", ONNXRUNTIME)
    assert predicted == fallen
    nodes = coverage.predict(typed["int8 network"] / "model.onnx", rules.load(ONNXRUNTIME))
    convolutions = {place for place, each in enumerate(nodes) if each.operator == "Conv"}
    assert predicted & convolutions
    assert convolutions - predicted


def test_onnxruntime_casts_what_its_table_says(typed: dict[str, Path]) -> None:
    predicted, fallen, _ = agreement(typed["fp16 encoder"] / "model.onnx", ONNXRUNTIME)
    nodes = coverage.predict(typed["fp16 encoder"] / "model.onnx", rules.load(ONNXRUNTIME))
    assert len(predicted) > 20
    assert predicted <= fallen
    # A Gather of constants that only cast nodes read is cast sometimes.
    assert {nodes[place].operator for place in fallen - predicted} <= {"Gather"}
    assert {nodes[place].rule for place in predicted} == {"cast"}


def test_the_parser_leaves_out_what_its_table_says(tmp_path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(network(tmp_path / "float.onnx")), str(tmp_path / "model.onnx"))
    predicted, fallen, observed = agreement(tmp_path / "model.onnx", PARSER)
    assert predicted == fallen
    nodes = coverage.predict(tmp_path / "model.onnx", rules.load(PARSER))
    assert {nodes[place].operator for place in fallen} == {"DynamicQuantizeLinear", "MatMulInteger"}
    assert coverage.runtime("tensorrt-rtx").parts(nodes) == observed.partitions
    assert observed.until is None


def test_where_the_parser_stops_is_said(tmp_path: Path) -> None:
    model = one_conv(tmp_path / "model.onnx", quantized_bias=True)
    predicted, fallen, observed = agreement(model, PARSER)
    assert len(fallen) == 1
    assert observed.until == min(predicted) == min(fallen)


def test_a_runtime_that_refuses_a_file_gives_no_answer(tmp_path: Path) -> None:
    broken = tmp_path / "model.tflite"
    broken.write_bytes(b"no model")
    seen = litert.observe(broken, 60)
    assert seen.fallen is None
    assert seen.reason.startswith("LiteRT's process ended with code 1: ")
    (tmp_path / "model.onnx").write_bytes(b"no model")
    assert coverage.runtime("onnxruntime").observe(tmp_path / "model.onnx", 60).fallen is None
    slow = coverage.runtime("onnxruntime").observe(tmp_path / "model.onnx", 0.01)
    assert slow.reason == "ONNX Runtime did not end within 0.01 s"


# Q/DQ pairs


def one_conv(
    path: Path, dtype: Any = np.int8, readers: int = 1, between: str | None = None, quantized_bias: bool = False
) -> Path:
    """x → Q → DQ → Conv (→ Relu or Clip) → Q → DQ → y; `readers` nodes read what is dequantized in front of it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    zero = dtype(0 if dtype is np.int8 else 128)
    constants = {
        "s": np.float32(0.05), "z": zero, "w": np.ones((4, 4, 3, 3), np.int8), "ws": np.float32(0.02),
        "wz": np.int8(0), "b": np.ones(4, np.int32), "bs": np.float32(0.001), "bz": np.int32(0),
        "low": np.float32(0), "high": np.float32(6),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        *([node("DequantizeLinear", ["b", "bs", "bz"], ["bias"])] if quantized_bias else []),
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]),
        node("Conv", ["d", "wd", *(["bias"] if quantized_bias else [])], ["c"], name="conv"),
    ]
    source = "c"
    if between:
        nodes.append(node(between, ["c", *(["low", "high"] if between == "Clip" else [])], ["cut"]))
        source = "cut"
    nodes += [node("QuantizeLinear", [source, "s", "z"], ["oq"]), node("DequantizeLinear", ["oq", "s", "z"], ["y"])]
    nodes += [node("Exp", ["d"], [f"e{number}"]) for number in range(readers - 1)]
    outputs = ["y", *(f"e{number}" for number in range(readers - 1))]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 8, 8))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), str(path))
    return path


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, None),
        ({"dtype": np.uint8}, None),
        ({"between": "Relu"}, "its output goes to Relu"),
        ({"between": "Clip"}, "its output goes to Clip"),
        ({"readers": 2}, "q stays int8, for several nodes read it"),
        ({"readers": 2, "dtype": np.uint8}, None),
    ],
)
def test_when_a_convolution_between_pairs_runs_in_float(
    given: dict[str, Any], words: str | None, tmp_path: Path
) -> None:
    model = one_conv(tmp_path / "model.onnx", **given)
    nodes = coverage.predict(model, rules.load(ONNXRUNTIME))
    conv = next(place for place, each in enumerate(nodes) if each.operator == "Conv")
    assert (nodes[conv].taken is False) == (words is not None)
    assert (words or "") in nodes[conv].reason
    predicted, fallen, _ = agreement(model, ONNXRUNTIME)
    assert predicted == fallen


def test_a_relu_that_quantization_implies_is_dropped(tmp_path: Path) -> None:
    """Nothing below zero can be stored in uint8 with the zero point 0."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(one_conv(tmp_path / "model.onnx", dtype=np.uint8, between="Relu")))
    for tensor in model.graph.initializer:
        if tensor.name == "z":
            tensor.CopyFrom(numpy_helper.from_array(np.uint8(0), "z"))
    onnx.save(model, str(tmp_path / "model.onnx"))
    predicted, fallen, _ = agreement(tmp_path / "model.onnx", ONNXRUNTIME)
    assert predicted == fallen == set()


def test_a_runtime_without_exchanged_formats_runs_shared_tensors_in_integers(tmp_path: Path) -> None:
    """Where a table does not say that formats are exchanged, nothing is told of it."""
    import onnx

    graph = onnx_graph.read(onnx.load(str(one_conv(tmp_path / "model.onnx", readers=2))))
    here = rules.load(ONNXRUNTIME)
    names = [each and each.operator for each in onnx_precision.changed(graph, here)]
    elsewhere = here.model_copy(update={"exchanged": {}})
    assert "Conv" in names
    assert "Conv" not in [each and each.operator for each in onnx_precision.changed(graph, elsewhere)]


# What a table says of a graph


def network(path: Path, opset: int = 17) -> Path:
    """Matrix products by 8x8, 8x16 and 16x8, with a TopK behind the first."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {"a": np.ones((8, 8)), "b": np.ones((8, 16)), "c": np.ones((16, 8))}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="/encoder/first/MatMul"),
        helper.make_node("TopK", ["h", "k"], ["v", "i"], name="/encoder/top/TopK"),
        helper.make_node("MatMul", ["v", "b"], ["w"], name="/encoder/second/MatMul"),
        helper.make_node("MatMul", ["w", "c"], ["y"], name="/head/MatMul"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [*(numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()),
         numpy_helper.from_array(np.array([8]), "k")],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), str(path))
    return path


def without(name: str, operator: str) -> rules.Table:
    """A table that does not have an operator."""
    table = rules.load(name)
    refused = rules.OperatorRule(supported=False)
    return table.model_copy(update={"operators": {**table.operators, operator: refused}})


def test_shares_count_multiply_adds_and_not_nodes(tmp_path: Path) -> None:
    model = network(tmp_path / "model.onnx")
    whole = coverage.of(model, rules.load("tensorrt-8.6"), {"batch": 4})
    assert whole.fallback == coverage.Share(0, 0.0, 0.0)
    assert whole.counted
    assert (whole.partitions, whole.crossings, whole.note) == (1, 0, "counted at batch=4")

    found = coverage.of(model, without("tensorrt-8.6", "TopK"), {"batch": 4})
    assert found.fallback.operators == 1
    assert found.fallback.multiply_adds == 0
    assert found.fallback.bytes is not None
    assert 0 < found.fallback.bytes < 0.5
    assert (found.partitions, found.crossings) == (2, 2)

    found = coverage.of(model, without("tensorrt-8.6", "MatMul"), {"batch": 4})
    assert found.fallback.operators == 3
    assert found.fallback.multiply_adds == 1
    shares = {each.module: each.multiply_adds for each in found.offenders}
    products = {"encoder.first": 4 * 8 * 8, "encoder.second": 4 * 8 * 16, "head": 4 * 16 * 8}
    assert shares == {name: pytest.approx(count / sum(products.values())) for name, count in products.items()}
    assert found.offenders[0].multiply_adds == max(shares.values())


def test_an_opset_that_is_too_new_makes_everything_fall_back(tmp_path: Path) -> None:
    found = coverage.of(network(tmp_path / "model.onnx", opset=20), rules.load("tensorrt-8.2"), {})
    assert found.fallback == coverage.Share(4, 1.0, 1.0)
    assert {each.rule for each in found.offenders} == {"opset"}
    assert found.partitions == 0


def test_an_operator_that_a_table_does_not_know_is_no_fallback(tmp_path: Path) -> None:
    found = coverage.of(network(tmp_path / "model.onnx"), rules.load("dla"), {"batch": 4})
    assert found.fallback.operators == 0
    assert found.unknown == coverage.Share(4, 1.0, 1.0)
    assert not any(each.known for each in found.offenders)


def test_what_is_refused_inside_a_branch_refuses_the_branch(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    def branch(operator: str) -> Any:
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [2, 2])
        return helper.make_graph([helper.make_node(operator, ["x"], ["r"])], operator, [], [result])

    given = [
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2]),
    ]
    nodes = [helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Celu"))]
    graph = helper.make_graph(nodes, "g", given, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), str(tmp_path / "model.onnx"))
    assert coverage.predict(tmp_path / "model.onnx", rules.load("tensorrt-8.6"))[0].taken
    refused = coverage.predict(tmp_path / "model.onnx", without("tensorrt-8.6", "Celu"))[0]
    assert refused.taken is False
    assert refused.reason == "inside it: TensorRT 8.6 does not have Celu"
    assert set(refused.inputs) == {"c", "x"}


def test_the_edge_tpu_cuts_a_model_once(tmp_path: Path) -> None:
    for form, taken in (("int8", True), ("fp32", False)):
        path = tmp_path / f"{form}.tflite"
        path.write_bytes(litert_samples.usual("CONV_2D", form))
        assert [each.taken for each in coverage.predict(path, rules.load("edgetpu"))] == [taken]
    table = rules.load("edgetpu")
    made = [coverage.Placement(str(n), "X", "", (), (), taken) for n, taken in enumerate((True, False, True, None))]
    after = coverage.one_part(made, table)
    assert [each.taken for each in after] == [True, False, False, None]
    assert after[2].rule == "edgetpu-one-part"
    assert coverage.one_part(made, rules.load(XNNPACK)) == made


def test_weights_that_are_widened_go_with_the_operator_that_reads_them(tmp_path: Path) -> None:
    """DEQUANTIZE of fp16 is nothing that XNNPACK takes, but weights that are stored so are."""
    table = rules.load(XNNPACK)
    assert table.verdict("DEQUANTIZE", dtypes=["fp16 to fp32"]).status == "unsupported"
    path = tmp_path / "model.tflite"
    path.write_bytes(litert_samples.usual("DEQUANTIZE", "fp16 to fp32"))
    assert [each.taken for each in coverage.predict(path, table)] == [False]
    predicted, fallen, _ = agreement(path, XNNPACK)
    assert predicted == fallen == {0}


# Parts


@dataclass(frozen=True)
class Step:
    taken: bool | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def steps_of(text: str) -> list[Step]:
    """`a>b` is taken, `a-b` is not: from tensors a to tensors b, each a letter."""
    made = []
    for part in text.split():
        sign = ">" if ">" in part else "-"
        before, _, after = part.partition(sign)
        made.append(Step(sign == ">", tuple(before), tuple(after)))
    return made


@pytest.mark.parametrize(
    ("graph", "runs", "epochs", "crossings"),
    [
        ("x>a a>b b>y", 1, 1, 0),
        ("x>a a-b b>y", 2, 2, 2),
        ("x-a a>b b-y", 1, 1, 2),
        ("x-a a-y", 0, 0, 0),
        ("x>a x-b a>c bc>y", 2, 2, 1),  # one behind the other, only b waits
        ("x-a x>b a-c b>d cd>y", 2, 1, 1),  # what does not wait for each other runs together
    ],
)
def test_parts_and_crossings(graph: str, runs: int, epochs: int, crossings: int) -> None:
    made = steps_of(graph)
    assert partitions.runs(made) == runs
    assert partitions.epochs(made) == epochs
    assert partitions.crossings(made) == crossings


def test_which_operators_a_delegate_replaced() -> None:
    operators = [
        {"operator": "A", "inputs": [0], "outputs": [1]},
        {"operator": "B", "inputs": [1], "outputs": [2]},
        {"operator": "C", "inputs": [2], "outputs": [3]},
        {"operator": "D", "inputs": [1], "outputs": [4]},
        {"operator": "ASSIGN_VARIABLE", "inputs": [9, 4], "outputs": []},
        {"operator": "E", "inputs": [2], "outputs": [5]},
    ]
    delegates = [{"inputs": [0], "outputs": [2]}]
    # C and E read what it gives, D reads what stays inside and leads to no tensor.
    assert litert.delegated(operators, delegates) == {0, 1, 3, 4}
    assert litert.ending_in_variables(operators) == {3, 4}
    assert litert.delegated(operators, []) == set()


# Sizes


def test_sizes_that_nobody_gives(tmp_path: Path, litert_file: Path) -> None:
    model = network(tmp_path / "model.onnx")
    assert costing.complete(model, {}) == {"batch": 1}
    assert costing.complete(model, {"batch": 3, "other": 2}) == {"batch": 3}
    assert costing.complete(litert_file, {"length": 5}) == {"length": artifacts.LENGTHS[0]}


def test_a_model_whose_weights_are_not_read_is_looked_at_all_the_same(
    typed: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx

    source = typed["int8 network"] / "model.onnx"
    onnx.save_model(
        onnx.load(source), tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    for name in ("onnxruntime-1.31", "tensorrt-10.3"):
        table = rules.load(name)
        wanted = coverage.of(source, table, {}).as_dict()
        monkeypatch.setattr(onnx_file, "LARGE", 1000)
        monkeypatch.setattr(onnx_file, "_SMALL", 100)  # scales of channels are larger, scales of tensors are not
        found = coverage.of(tmp_path / "model.onnx", table, {}).as_dict()
        monkeypatch.undo()
        assert found == wanted


def test_files_that_are_none_are_one_message(tmp_path: Path) -> None:
    for name, suffix in ((XNNPACK, "tflite"), (ONNXRUNTIME, "onnx"), ("tensorrt-10.3", "onnx")):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(b"x\n")
        with pytest.raises(InputError, match=r"model\.\w+ is (no LiteRT file that can be read|not an ONNX file)"):
            coverage.of(path, rules.load(name), {})


# The stage and the gate


def test_the_stage_writes_what_the_gate_reads(typed: dict[str, Path], tmp_path: Path) -> None:
    parameters = stage.Parameters(rules=ONNXRUNTIME, rules_sha256="0", sizes={"batch": 1})
    found = stage.run(typed["int8 network"], tmp_path, parameters, stages.Context(task="any"))
    assert json.loads((tmp_path / "coverage.json").read_text()) == found
    share = found["fallback"]["multiply_adds"]
    assert 0 < share < 1
    assert gate.check(found, None).passed
    assert gate.check(found, share).passed
    refused = gate.check(found, share - 0.001)
    assert not refused.passed
    worst = found["offenders"][0]
    assert f"{gate.percent(share)} of the multiply-adds" in refused.reason
    assert f"{worst['operator']} in {worst['module']}" in refused.reason
    assert "rule qdq: ONNX Runtime 1.31 (CPU) runs Conv in integers only between Q/DQ pairs" in refused.reason
    assert "instead: quantize what stands around it" in refused.reason


def test_the_gate_refuses_nothing_that_it_does_not_know(tmp_path: Path) -> None:
    assert gate.check(None, 0.0).passed
    unknown = coverage.of(network(tmp_path / "model.onnx"), rules.load("dla"), {"batch": 4}).as_dict()
    verdict = gate.check(unknown, 0.0)
    assert verdict.passed
    assert "4 are not in the table (100 %)" in verdict.reason
    assert verdict.reason.endswith("; none may")
    uncounted = {
        **unknown, "fallback": {"operators": 2, "multiply_adds": None, "bytes": None}, "counted": False, "note": "why",
    }  # fmt: skip
    verdict = gate.check(uncounted, 0.1)
    assert verdict.passed
    assert verdict.reason.endswith("; at most 10 % may; why")


def test_where_nothing_may_fall_back_an_operator_without_products_is_refused_too(tmp_path: Path) -> None:
    found = coverage.of(network(tmp_path / "model.onnx"), without("tensorrt-8.6", "TopK"), {"batch": 4}).as_dict()
    assert found["fallback"]["multiply_adds"] == 0
    assert not gate.check(found, 0.0).passed
    assert gate.check(found, 0.01).passed


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (0.0002, "under 0.1 %"), (0.12345, "12.3 %"), (1, "100 %")])
def test_a_share_in_words(share: float, text: str) -> None:
    assert gate.percent(share) == text


def test_a_conversion_judges_every_candidate_by_it(converted: Any) -> None:
    candidates = {each["name"]: each for each in converted.summary["candidates"]}
    for name, each in candidates.items():
        verdict = next(v for v in each["verdicts"] if v["gate"] == "coverage")
        assert verdict["passed"]
        assert each["coverage"]["table"] == (XNNPACK if name.startswith("litert") else ONNXRUNTIME)
    litert_int8 = candidates["litert int8"]
    assert litert_int8["coverage"]["fallback"]["operators"] > 0
    assert "at most 10 % may" in next(v["reason"] for v in litert_int8["verdicts"] if v["gate"] == "coverage")
    report = (Path(converted.path) / "report.html").read_text(encoding="utf-8")
    assert "<h2>Coverage</h2>" in report
    assert XNNPACK in report


def test_a_candidate_above_the_limit_is_refused(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    """A profile of this machine on which nothing of LiteRT may fall back: the tables of embeddings do."""
    profile = local.as_target().model_dump(mode="json", exclude_none=True)
    profile |= {"name": "nothing-falls", "title": "strict"}
    for engine in profile["engines"]:
        engine |= {"precisions": ["fp32"]} | ({"max_fallback": 0.0} if engine["name"] == "litert" else {})
    (tmp_path / "nothing-falls.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    bundle = toolkit.convert(
        encoder, target=str(tmp_path / "nothing-falls.yaml"), data=str(reviews), output=str(tmp_path / "bundle"),
        min_score="97%", **TRAINING,
    )  # fmt: skip
    outcomes = {each["name"]: each["outcome"] for each in bundle.summary["candidates"]}
    assert bundle.summary["chosen"] == "onnxruntime fp32"
    assert outcomes["litert fp32"].startswith("refused by coverage: 7 of ")
    assert "EMBEDDING_LOOKUP" in outcomes["litert fp32"] or "CAST" in outcomes["litert fp32"]
