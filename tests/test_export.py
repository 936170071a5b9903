"""Exported files: what they ask of a runtime, their shapes, what is in them, and that they come out the same twice."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from toolkit import engines, steps
from toolkit.engines import litert as litert_engine
from toolkit.engines import onnxruntime as onnxruntime_engine
from toolkit.errors import InputError
from toolkit.export import flatbuffer, litert, litert_versions
from toolkit.export import onnx as onnx_format
from toolkit.export.traceable import add_padding_mask_once

LENGTHS = [16, 24, 32, 64]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float artifact folder for every engine."""
    folder = tmp_path_factory.mktemp("exported")
    for engine in ("litert", "onnxruntime", "tensorrt"):
        steps.export(str(tuned), str(folder / engine), engine=engine, lengths=LENGTHS)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def quantized(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The int8 artifact folder for every engine that has one."""
    folder = tmp_path_factory.mktemp("quantized")
    for engine in ("litert", "onnxruntime"):
        steps.quantize(str(exported[engine]), str(folder / engine), method="dynamic-int8")
    return {path.name: path for path in folder.iterdir()}


def artifact_of(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "artifact.json").read_text())
    return read


def weights_bytes(checkpoint: Path) -> int:
    return sum(path.stat().st_size for path in checkpoint.glob("*.safetensors"))


def ones(rows: int, length: int) -> dict[str, Any]:
    return {name: np.ones((rows, length), dtype=np.int64) for name in INPUTS}


# --- LiteRT


def test_repetition_goes_and_answers_stay(exported: dict[str, Path], tmp_path: Path) -> None:
    from ai_edge_quantizer import quantizer, recipe

    as_made, compact = tmp_path / "as-made.tflite", tmp_path / "compact.tflite"
    worker = quantizer.Quantizer(str(exported["litert"] / "model.tflite"))
    worker.load_quantization_recipe(recipe.dynamic_wi8_afp32())
    worker.quantize().export_model(str(as_made))
    shutil.copy(as_made, compact)
    flatbuffer.compact(compact)
    # Scales and zero points of the embeddings alone, 12 bytes a token, for all signatures but one.
    assert as_made.stat().st_size - compact.stat().st_size > 30522 * 12 * (len(LENGTHS) - 1)
    before, after = read_flatbuffer(as_made), read_flatbuffer(compact)
    assert before == after
    generator = np.random.default_rng(0)
    engines_of = [engines.get("litert").load(path) for path in (as_made, compact)]
    for length in LENGTHS:
        inputs = {**ones(1, length), "input_ids": generator.integers(0, 30522, (1, length))}
        first, second = (engine.run(inputs)["output_0"] for engine in engines_of)
        assert np.array_equal(first, second)
    once = compact.read_bytes()
    flatbuffer.compact(compact)
    assert compact.read_bytes() == once
    weights = [
        json.loads(json.dumps(litert.describe(path, "int8")))["weight_bytes_read"] for path in (as_made, compact)
    ]
    assert weights[0] == weights[1] > 2 * 1_700_000  # two layers


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (
            "a.export.<locals>.Logits/m.BertModel_bert/m.BertEncoder_encoder/m.ModuleList_layer/0/add;",
            "bert/encoder/layer/0/add",
        ),
        ("length_24_input_ids", "length_24_input_ids"),
        ("arith.constant3", "constant3"),
    ],
)
def test_a_tensor_is_named_by_its_modules(name: str, short: str) -> None:
    assert flatbuffer.short_name(name) == short


def read_flatbuffer(path: Path) -> tuple[list[tuple[str, int]], dict[str, bytes]]:
    """((operator, version) as the file lists them, metadata)."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = [(names[max(c.builtinCode, c.deprecatedBuiltinCode)], c.version) for c in model.operatorCodes]
    metadata = {entry.name.decode(): bytes(model.buffers[entry.buffer].data) for entry in model.metadata}
    return codes, metadata


def test_minimum_runtime_is_the_one_that_the_converter_wrote(exported: dict[str, Path]) -> None:
    codes, metadata = read_flatbuffer(exported["litert"] / litert.MODEL_FILE)
    written = metadata["min_runtime_version"].rstrip(b"\0").decode()
    assert litert_versions.minimum_level(codes) == written
    minimum = artifact_of(exported["litert"])["minimum_versions"]
    assert minimum == litert_versions.minimum_versions(written)
    assert minimum["tflite-runtime"] == written


def test_minimum_runtime_grows_with_the_operators(exported: dict[str, Path], quantized: dict[str, Path]) -> None:
    """The quantizer leaves the float file's operator versions; runtimes up to 2.14 load that and answer wrongly. With
    those that the weights ask for they refuse it."""
    codes, metadata = read_flatbuffer(quantized["litert"] / litert.MODEL_FILE)
    assert litert_versions.minimum_level(codes) == "2.18.0"
    assert metadata["min_runtime_version"] == b"2.18.0".ljust(16, b"\0")
    artifact = artifact_of(quantized["litert"])
    assert artifact["minimum_versions"] == {"tflite-runtime": "2.18.0", "ai-edge-litert": "1.2.0"}
    assert artifact["operator_versions"]["FULLY_CONNECTED"] == 12  # scales per output channel
    assert litert_versions.minimum_level([]) == "1.5.0"
    assert litert_versions.minimum_level([("ADD", 1)]) != litert_versions.minimum_level([("ADD", 1), ("GATHER_ND", 5)])
    assert litert_versions.minimum_level([("GATHER_ND", 5), ("ADD", 1)]) == litert_versions.minimum_level(
        [("GATHER_ND", 5)]
    )


@pytest.mark.parametrize("operator", [("ADD", 99), ("NO_SUCH_OPERATOR", 1)])
def test_unknown_operator_version_is_refused(operator: tuple[str, int]) -> None:
    with pytest.raises(InputError, match=rf"has the operator {operator[0]} in version {operator[1]}"):
        litert_versions.minimum_level([("ADD", 1), operator])


def test_every_level_of_the_table_has_a_package() -> None:
    table = json.loads(Path(litert.__file__).with_name("litert_op_versions.json").read_text())["minimum_runtime"]
    for name, versions in table.items():
        for version, level in versions.items():
            assert set(litert_versions.minimum_versions(level)) == {"tflite-runtime", "ai-edge-litert"}, (name, version)
    with pytest.raises(InputError, match=r"covers level 99\.0\.0"):
        litert_versions.minimum_versions("99.0.0")


def test_litert_signatures_share_their_weights(exported: dict[str, Path], tuned: Path) -> None:
    artifact = artifact_of(exported["litert"])
    assert artifact["lengths"] == LENGTHS
    assert artifact["size_bytes"] == (exported["litert"] / litert.MODEL_FILE).stat().st_size
    assert 0.9 * weights_bytes(tuned) < artifact["size_bytes"] < 1.2 * weights_bytes(tuned)


def test_litert_runs_every_length_with_int32_inputs(exported: dict[str, Path]) -> None:
    artifact = artifact_of(exported["litert"])
    assert {tensor["name"] for tensor in artifact["inputs"]} == set(INPUTS)
    assert {tensor["dtype"] for tensor in artifact["inputs"]} == {"int32"}
    assert artifact["inputs"][0]["shape"] == [1, "length"]
    assert [(tensor["dtype"], tensor["shape"]) for tensor in artifact["outputs"]] == [("float32", [1, 2])]
    engine = litert_engine.load(exported["litert"] / artifact["path"])
    assert sorted(engine.describe()["signatures"]) == [f"length_{length}" for length in LENGTHS]
    for length in LENGTHS:
        assert engine.run(ones(1, length))[artifact["outputs"][0]["name"]].shape == (1, 2)


def test_litert_masks_padding_without_index_grids(exported: dict[str, Path]) -> None:
    """The mask is an addend: no operator that compares positions, and an old runtime is enough."""
    artifact = artifact_of(exported["litert"])
    assert not set(artifact["operators"]) & {"GATHER_ND", "GREATER_EQUAL", "LOGICAL_AND", "RANGE", "SELECT_V2"}
    assert artifact["minimum_versions"]["tflite-runtime"] == "2.9.0"


def test_litert_answers_do_not_depend_on_the_padding(exported: dict[str, Path]) -> None:
    engine = litert_engine.load(exported["litert"] / litert.MODEL_FILE)
    answers = []
    for length in LENGTHS:
        inputs = {name: np.zeros((1, length), dtype=np.int64) for name in INPUTS}
        inputs["input_ids"][0, :10] = range(1000, 1010)
        inputs["attention_mask"][0, :10] = 1
        answers += list(engine.run(inputs).values())
    assert np.ptp(np.concatenate(answers), axis=0) == pytest.approx([0, 0], abs=1e-5)
    assert not np.allclose(answers[0], next(iter(engine.run(ones(1, LENGTHS[0])).values())))


@pytest.mark.parametrize("architecture", ["bert", "distilbert", "roberta", "modernbert", "gpt2", "deberta-v2"])
def test_litert_mask_gives_the_same_attention(architecture: str) -> None:
    """Whatever else a model masks (causality, windows) stays as it was; DeBERTa's own attention is left alone."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model(architecture, vocab_size=300, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    ids = torch.randint(5, 300, (1, 24))
    ids[:, 10:] = 0
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    with torch.inference_mode():
        before = model(**inputs).logits
        add_padding_mask_once(model)
        after = model(**inputs).logits
        unmasked = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert after == pytest.approx(before.numpy(), abs=1e-6)
    if architecture != "gpt2":  # it looks backwards only, so what follows the last word does not reach it
        assert not np.allclose(after, unmasked, atol=1e-6)


# --- ONNX


def read_onnx(folder: Path) -> Any:
    import onnx

    return onnx.load(str(folder / onnx_format.MODEL_FILE))


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
def test_onnx_takes_any_batch_and_length(engine: str, exported: dict[str, Path]) -> None:
    artifact = artifact_of(exported[engine])
    assert [tensor["shape"] for tensor in artifact["inputs"]] == [["batch", "length"]] * 3
    assert [tensor["shape"] for tensor in artifact["outputs"]] == [["batch", 2]]
    assert artifact["lengths"] is None
    session = onnxruntime_engine.load(exported[engine] / artifact["path"])
    for rows, length in ((1, 7), (3, 19), (1, 1), (2, 512)):
        assert session.run(ones(rows, length))["logits"].shape == (rows, 2)
    alone = session.run({name: array[:1] for name, array in ones(3, 19).items()})["logits"]
    assert alone[0] == pytest.approx(session.run(ones(3, 19))["logits"][2], abs=1e-5)


def test_onnx_is_fused_for_onnxruntime_only(exported: dict[str, Path], quantized: dict[str, Path]) -> None:
    import onnx

    fused, standard = read_onnx(exported["onnxruntime"]), read_onnx(exported["tensorrt"])
    assert "com.microsoft" in {node.domain for node in fused.graph.node}
    assert {node.domain for node in standard.graph.node} <= {"", "ai.onnx"}
    assert not standard.functions
    assert {entry.domain for entry in standard.opset_import} <= {"", "ai.onnx"}
    assert len(fused.graph.node) < len(standard.graph.node)
    onnx.checker.check_model(standard, full_check=True)
    assert "MatMulIntegerToFloat" in {n.op_type for n in read_onnx(quantized["onnxruntime"]).graph.node} or (
        "MatMulInteger" in {n.op_type for n in read_onnx(quantized["onnxruntime"]).graph.node}
    )


def test_opset_is_the_one_asked_for(tuned: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    steps.export(str(tuned), str(tmp_path / "old"), engine="tensorrt", lengths=LENGTHS, opset=18)
    (entry,) = read_onnx(tmp_path / "old").opset_import
    assert entry.version == artifact_of(tmp_path / "old")["opset"] == 18
    assert artifact_of(tmp_path / "old")["minimum_versions"] == {"onnxruntime": "1.14.0"}


def test_open_axes_can_be_fixed(tuned: Path, exported: dict[str, Path], tmp_path: Path) -> None:
    import onnxruntime

    steps.export(
        str(tuned), str(tmp_path / "fixed"), engine="tensorrt", lengths=LENGTHS, fix={"batch": 1, "length": 24}
    )
    artifact = artifact_of(tmp_path / "fixed")
    assert [tensor["shape"] for tensor in artifact["inputs"]] == [[1, 24]] * 3
    assert artifact["outputs"][0]["shape"] == [1, 2]
    assert artifact["lengths"] == [24]  # which the encoder fills texts up to
    fixed = read_onnx(tmp_path / "fixed")
    assert not {node.op_type for node in fixed.graph.node} & {"Shape", "Range", "Expand"}
    session = onnxruntime.InferenceSession(str(tmp_path / "fixed" / "model.onnx"))
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument):
        session.run(None, ones(1, 25))
    inputs = ones(1, 24)
    inputs["attention_mask"][:, 10:] = 0
    (said,) = session.run(None, inputs)
    (wanted,) = onnxruntime_engine.load(exported["tensorrt"] / "model.onnx").run(inputs).values()
    assert said == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("engine", "fix", "said"),
    [
        ("tensorrt", {"width": 24}, "the open axes are batch, length"),
        ("tensorrt", {"length": 100_000}, "takes at most 512 tokens"),
        ("litert", {"length": 24}, "those of --lengths"),
    ],
)
def test_what_cannot_be_fixed_is_refused(
    engine: str, fix: dict[str, int], said: str, tuned: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        steps.export(str(tuned), str(tmp_path / "fixed"), engine=engine, lengths=LENGTHS, fix=fix)
    assert not (tmp_path / "fixed").exists()


# --- all of them


@pytest.mark.parametrize("engine", ["litert", "onnxruntime", "tensorrt"])
def test_artifact_answers_as_the_checkpoint_does(
    engine: str, exported: dict[str, Path], tuned: Path, sentences: list[tuple[str, str]]
) -> None:
    from toolkit import engines, tasks

    task = tasks.get("text-classification")
    artifact = artifact_of(exported[engine])
    module = onnxruntime_engine if engine == "tensorrt" else engines.get(engine)
    session = module.load(exported[engine] / artifact["path"])
    reference = engines.get("torch").load(tuned)
    encoder = task.encoder(tuned, {"max_length": 64}, inputs=INPUTS, lengths=artifact["lengths"])
    for text, _ in sentences[:20]:
        arrays = encoder(text)
        (logits,) = session.run(arrays).values()
        assert logits == pytest.approx(reference.run(arrays)["output"], abs=1e-4)


@pytest.mark.parametrize("engine", ["litert", "onnxruntime", "tensorrt"])
def test_no_path_of_this_machine_is_in_a_file(
    engine: str, exported: dict[str, Path], quantized: dict[str, Path], tuned: Path
) -> None:
    import torch

    places = [Path.home(), Path(toolkit.__file__).parent, Path(torch.__file__).parent, tuned, exported[engine].parent]
    for folder in (exported, quantized):
        for path in folder.get(engine, exported[engine]).iterdir():
            content = path.read_bytes()
            for place in (*map(str, places), "site-packages", 'File "'):
                assert place.encode() not in content, f"{path.name} holds {place}"


@pytest.mark.parametrize("engine", ["litert", "onnxruntime", "tensorrt"])
def test_exporting_again_gives_the_same_bytes(
    engine: str, exported: dict[str, Path], tuned: Path, tmp_path: Path
) -> None:
    """In another process, with a clean cache and another output folder."""
    steps.export(str(tuned), str(tmp_path / engine), engine=engine, lengths=LENGTHS, cache_dir=str(tmp_path / "cache"))
    for path in sorted(exported[engine].iterdir()):
        if path.name != "receipt.json":
            assert path.read_bytes() == (tmp_path / engine / path.name).read_bytes(), f"{path.name} differs"


@pytest.mark.parametrize("engine", ["litert", "onnxruntime"])
def test_quantizing_again_gives_the_same_bytes(
    engine: str, exported: dict[str, Path], quantized: dict[str, Path], tmp_path: Path
) -> None:
    steps.quantize(
        str(exported[engine]), str(tmp_path / engine), method="dynamic-int8", cache_dir=str(tmp_path / "cache")
    )
    for path in sorted(quantized[engine].iterdir()):
        if path.name != "receipt.json":
            assert path.read_bytes() == (tmp_path / engine / path.name).read_bytes(), f"{path.name} differs"


def test_quantizing_makes_it_smaller_and_keeps_the_rest(exported: dict[str, Path], quantized: dict[str, Path]) -> None:
    for engine, folder in quantized.items():
        before, after = artifact_of(exported[engine]), artifact_of(folder)
        assert after["precision"] == "int8"
        assert after["size_bytes"] < 0.3 * before["size_bytes"]
        for key in ("format", "path", "inputs", "lengths"):
            assert after[key] == before[key]
        names = {path.name for path in exported[engine].iterdir()}
        assert {path.name for path in folder.iterdir()} == names


def test_half_precision_keeps_float32_at_the_edges(exported: dict[str, Path], tmp_path: Path) -> None:
    steps.quantize(str(exported["tensorrt"]), str(tmp_path / "fp16"), method="fp16")
    before, after = artifact_of(exported["tensorrt"]), artifact_of(tmp_path / "fp16")
    assert after["precision"] == "fp16"
    assert after["outputs"] == before["outputs"]
    assert after["size_bytes"] < 0.6 * before["size_bytes"]
    wanted = onnxruntime_engine.load(exported["tensorrt"] / before["path"]).run(ones(1, 9))["logits"]
    given = onnxruntime_engine.load(tmp_path / "fp16" / after["path"]).run(ones(1, 9))["logits"]
    assert given == pytest.approx(wanted, abs=2e-2)


# --- what is refused


def test_untrained_model_is_not_exported(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not trained for text-classification; fine-tune it first"):
        steps.export(str(encoder), str(tmp_path / "out"), engine="onnxruntime", lengths=LENGTHS)


def test_length_beyond_the_model_is_refused(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--lengths 513: the model takes at most 512 tokens"):
        steps.export(str(tuned), str(tmp_path / "out"), engine="litert", lengths=[32, 513])


def test_quantized_artifact_is_not_quantized_again(quantized: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is int8 already; quantize the float export"):
        steps.quantize(str(quantized["litert"]), str(tmp_path / "out"), method="dynamic-int8")


def test_unknown_method_is_named_with_the_known_ones(exported: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="litert cannot be quantized by 'bf16'; known: dynamic-int8, "):
        steps.quantize(str(exported["litert"]), str(tmp_path / "out"), method="bf16")


def test_existing_output_is_kept(exported: dict[str, Path], tuned: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep me")
    for overwrite, reason in ((False, "exists already"), (True, "is not a folder that this command wrote")):
        with pytest.raises(InputError, match=reason):
            steps.export(str(tuned), str(mine), engine="onnxruntime", lengths=LENGTHS, overwrite=overwrite)
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
