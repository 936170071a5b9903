"""Targets that take files of integers alone: an Edge TPU, whose compiler is in no registry, and microcontrollers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import toolkit
from tests.conftest import PICTURE_SIDE, run_toolkit
from tests.networks import CLASSES, pattern
from toolkit import planning, recipe, rules, steps, target, tasks
from toolkit.engines.litert import channels_last, to_integers
from toolkit.errors import InputError, RefusedError
from toolkit.export import flatbuffer, litert_memory
from toolkit.gates import memory
from toolkit.rules import litert_graph
from toolkit.workshop import Candidate, Workshop

BASE = {"allow_code": True, "min_score": "90%", "compress": False}


@pytest.fixture(scope="module")
def artifact(small_network: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network in integers."""
    folder = tmp_path_factory.mktemp("integer") / "artifact"
    options = {"data": str(pictures), "allow_code": True}
    steps.quantize(str(small_network), str(folder), method="integer-int8", engine="litert", options=options)
    return folder


def candidates_of(bundle: Path) -> list[dict[str, Any]]:
    read: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return list(read["metrics"]["candidates"])


def verdict(bundle: Path, gate: str) -> dict[str, Any]:
    """The one candidate's verdict by a gate."""
    (candidate,) = candidates_of(bundle)
    return next(each for each in candidate["verdicts"] if each["gate"] == gate)


@pytest.mark.parametrize("name", ["coral-edgetpu", "cortex-m4", "stm32h743", "stm32n6"])
def test_the_plan_is_one_file_of_integers(name: str) -> None:
    chosen, skipped = recipe.candidates(target.resolve(name), convolutional=True)
    assert [(plan.engine, plan.precision, plan.method) for plan in chosen] == [("litert", "int8", "integer-int8")]
    assert not skipped
    with pytest.raises(InputError, match=rf"Nothing can be made for target '{name}': it takes files of integers alone"):
        recipe.candidates(target.resolve(name), texts=True)


def test_a_float_precision_is_skipped_where_files_hold_integers() -> None:
    coral = target.resolve("coral")
    engine = coral.engines[0].model_copy(update={"precisions": ["fp32", "int8"]})
    chosen, skipped = recipe.candidates(coral.model_copy(update={"engines": [engine]}))
    assert [plan.name for plan in chosen] == ["litert int8"]
    assert skipped[0].reason.endswith("and fp32 is none")


def test_a_network_for_the_edge_tpu(small_network: Path, pictures: Path, tmp_path: Path) -> None:
    done = run_toolkit(
        "convert", small_network, "--allow-code", "--data", pictures, "--target", "coral", "--min-score", "90%",
        "-o", tmp_path / "bundle",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"For the device, in {tmp_path / 'bundle'}: edgetpu_compiler model.tflite" in done.stdout.replace("\n", " ")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert manifest["engine"]["command"] == "edgetpu_compiler model.tflite"
    assert "edgetpu_compiler model.tflite" in (tmp_path / "bundle" / "report.html").read_text()
    assert manifest["artifact"]["inputs"][0]["dtype"] == manifest["artifact"]["outputs"][0]["dtype"] == "int8"
    said = verdict(tmp_path / "bundle", "operators")
    assert said["passed"]
    assert said["reason"].startswith("Edge TPU takes all")
    classify = toolkit.load(tmp_path / "bundle")
    picture = pattern("waves", np.random.default_rng(0))
    assert classify(picture)["label"] == "waves"


def test_the_rule_that_an_operator_breaks_is_named(artifact: Path, small_network: Path, tmp_path: Path) -> None:
    table = rules.load("edgetpu")
    found = litert_graph.check(artifact / "model.tflite", table)
    assert found.nodes > 8
    assert (found.refused, found.unknown) == ([], [])
    steps.export(str(small_network), str(tmp_path / "float"), engine="litert", lengths=[1], allow_code=True)
    floats = litert_graph.check(tmp_path / "float" / "model.tflite", table)
    assert {finding.rule for finding in floats.refused} == {"edgetpu-full-integer"}
    assert "quantize statically to int8" in floats.refused[0].instead
    # Two pictures at once: more than three dimensions larger than 1.
    model = flatbuffer.read(artifact / "model.tflite")
    for tensor in model.subgraphs[0].tensors:
        if len(tensor.shape) == 4 and model.buffers[tensor.buffer].data is None:
            tensor.shape = [2, *list(tensor.shape)[1:]]
    flatbuffer.write(tmp_path / "two.tflite", model)
    refused = litert_graph.check(tmp_path / "two.tflite", table).refused
    assert "only the last 3 dimensions may be larger than 1" in refused[0].reason
    assert refused[0].operator in ("CONV_2D", "PAD")


def test_a_version_that_a_runtime_lacks_is_named(tmp_path: Path, artifact: Path) -> None:
    model = flatbuffer.read(artifact / "model.tflite")
    model.operatorCodes[0].version = 9
    flatbuffer.write(tmp_path / "newer.tflite", model)
    table = rules.load("tflite-runtime-2.14")
    assert not litert_graph.check(artifact / "model.tflite", table).refused
    refused = litert_graph.check(tmp_path / "newer.tflite", table).refused
    assert "this is version 9" in refused[0].reason


def test_a_small_network_fits_a_microcontroller(small_network: Path, pictures: Path, tmp_path: Path) -> None:
    toolkit.convert(
        small_network, target="cortex-m4", data=str(pictures), output=str(tmp_path / "bundle"), **BASE
    )  # fmt: skip
    said = verdict(tmp_path / "bundle", "memory")
    assert said["passed"]
    assert "in the interpreter's arena" in said["reason"]
    assert "max_memory_mb of cortex-m4 0.32 MB" in said["reason"]


@pytest.mark.parametrize("limit", ["max_size_mb", "max_memory_mb"])
def test_what_does_not_fit_is_refused_by_the_memory_that_it_lacks(
    limit: str, small_network: Path, pictures: Path, tmp_path: Path
) -> None:
    """Flash against the file, RAM against what the interpreter needs: not the process that ran it here."""
    gate, most = ("size", 0.005) if limit == "max_size_mb" else ("memory", 0.004)
    with pytest.raises(RefusedError, match=f"refused by {gate}"):
        toolkit.convert(
            small_network, target="cortex-m4", data=str(pictures), output=str(tmp_path / "bundle"), **BASE,
            **{limit: most},
        )  # fmt: skip
    assert not verdict(tmp_path / "bundle", gate)["passed"]


def test_without_flash_the_file_counts_too() -> None:
    artifact = {"size_bytes": 300_000, "activation_bytes": 100_000}
    assert memory.check_arena(artifact, True, 0.32, "x").passed
    said = memory.check_arena(artifact, False, 0.32, "x")
    assert not said.passed
    assert said.reason.startswith("400 kB of activations in the interpreter's arena")
    assert said.reason.endswith(", with the file (x 0.32 MB)")
    micro = {**artifact, "micro": {"version": "1", "error": "Didn't find op for builtin opcode 'GELU'"}}
    assert "does not run it: Didn't find op" in memory.check_arena(micro, True, None).reason
    assert memory.check_arena({**artifact, "micro": {"version": "1", "arena_bytes": 5}}, True, 0.32).reason.startswith(
        "0 kB"
    )


def test_a_search_for_a_smaller_network_counts_the_same_memory() -> None:
    """On a microcontroller the arena; elsewhere the process that ran it here, which nobody measured."""
    plan = recipe.candidates(target.resolve("cortex-m4"))[0][0]
    candidate = Candidate(plan, artifact={"size_bytes": 300_000, "activation_bytes": 100_000})
    counted = {
        name: Workshop.memory_bytes(SimpleNamespace(target=target.resolve(name)), candidate)  # type: ignore[arg-type]
        for name in ("cortex-m4", "stm32n6", "coral")
    }
    assert counted == {"cortex-m4": 100_000, "stm32n6": 400_000, "coral": None}


# TensorFlow Lite Micro itself


def test_the_activations_are_what_its_planner_needs(artifact: Path) -> None:
    said = litert_memory.on_a_microcontroller(artifact / "model.tflite")
    assert said is not None and "error" not in said, said
    model = flatbuffer.read(artifact / "model.tflite")
    activations = litert_memory.activation_bytes(model, model.subgraphs[0])
    assert activations == json.loads((artifact / "artifact.json").read_text())["activation_bytes"]
    assert activations < said["arena_bytes"] < 3 * activations
    assert said["version"]


def test_it_answers_as_the_interpreter_here(artifact: Path) -> None:
    """Weights that lie where it does not look are zeros to it, and it says nothing of that."""
    from tflite_micro.python.tflite_micro import runtime

    described = json.loads((artifact / "artifact.json").read_text())["inputs"][0]
    there = runtime.Interpreter.from_file(str(artifact / "model.tflite"), arena_size=1_000_000)
    here = toolkit.engines.get("litert").load(artifact / "model.tflite")
    spec = {"channels": 1, "resize": {"height": PICTURE_SIDE, "width": PICTURE_SIDE}}
    encoder = tasks.get("image-classification").encoder(artifact, spec)
    outputs = json.loads((artifact / "artifact.json").read_text())["outputs"][0]
    generator = np.random.default_rng(2)
    seen = set()
    for kind in CLASSES:
        arrays = encoder(pattern(kind, generator))
        image = channels_last(arrays["pixel_values"])
        there.set_input(to_integers(image, np.int8, described["scale"], described["zero_point"]), 0)
        there.invoke()
        said = (there.get_output(0).astype(np.int32) - outputs["zero_point"]) * outputs["scale"]
        assert said == pytest.approx(here.run(arrays)["output_0"], abs=2.01 * outputs["scale"])
        seen.add(int(said.argmax()))
    assert seen == {0, 1, 2}


def test_what_it_does_not_have_is_said(tuned: Path, tmp_path: Path) -> None:
    steps.export(str(tuned), str(tmp_path / "float"), engine="litert", lengths=[16])
    said = litert_memory.on_a_microcontroller(tmp_path / "float" / "model.tflite")
    assert said is not None
    assert "Didn't find op for builtin opcode" in said["error"]


def test_without_the_package_nothing_is_said(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(litert_memory, "PACKAGE", "there-is-no-such-package")
    assert litert_memory.on_a_microcontroller(artifact / "model.tflite") is None


def test_a_text_encoder_is_refused_before_it_is_looked_at(tmp_path: Path, reviews: Path) -> None:
    with pytest.raises(InputError, match="a text encoder masks padding by adding the lowest float"):
        planning.plan(
            planning.options(model="/no/model", target="coral", data=str(reviews), output=str(tmp_path / "o"))
        )
