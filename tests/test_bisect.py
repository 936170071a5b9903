"""`toolkit bisect`: the layer that differs is named, in every format, and healthy builds raise no alarm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import run_toolkit
from tests.networks import CLASSES, checkpoint, pattern
from tests.refusals import assert_refused, in_process
from toolkit import bisect as bisection
from toolkit import builds, steps
from toolkit.bisect import Bisection, Difference
from toolkit.errors import InputError
from toolkit.probes import litert as litert_probe
from toolkit.probes import onnx as onnx_probe

ENGINES = ("onnxruntime", "tensorrt", "litert", "openvino")
SIDE = 24  # of the images; behind the first layer half of it, and as many channels
Change = Callable[[Any], Any]


class Reference:
    """A float checkpoint with examples, and its artifacts."""

    def __init__(self, path: Path, examples: list[Any], exported: dict[str, Path]) -> None:
        self.path, self.examples, self.exported = path, examples, exported
        self.build = builds.open_build(path, allow_code=True)
        self.probe = self.build.probe()

    def bisect(self, folder: Path, probe: Any = None, precision: str | None = None) -> Bisection:
        """An artifact beside the checkpoint; `probe` is its model, changed."""
        found = builds.open_build(folder)
        inputs = builds.inputs_for(self.build, found, self.examples)
        return bisection.bisect(self.probe, probe or found.probe(), inputs, precision or found.precision)


@pytest.fixture(scope="module")
def encoder_model(tuned: Path, sentences: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Reference:
    folder = tmp_path_factory.mktemp("exported")
    exported = {engine: artifacts.export(tuned, folder, engine) for engine in ENGINES}
    return Reference(tuned, [text for text, _ in sentences[:3]], exported)


@pytest.fixture(scope="module")
def network_model(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """A small network of convolutions. An image in it has as many channels as rows and columns, so that its shape does
    not tell how it lies in memory."""
    folder = tmp_path_factory.mktemp("network")
    spec = {"resize": {"height": SIDE, "width": SIDE}, "channels": 1}
    model = checkpoint(folder, spec, width=SIDE // 2)
    exported = {engine: folder / engine for engine in ENGINES}
    for engine, output in exported.items():
        steps.export(str(model), str(output), engine=engine, lengths=[1], allow_code=True)
    generator = np.random.default_rng(0)
    return Reference(model, [pattern(kind, generator, 40) for kind in CLASSES], exported)


def changed_onnx(folder: Path, changes: dict[str, Change]) -> onnx_probe.OnnxProbe:
    """The model of an artifact with other initializers."""
    import onnx

    model = onnx.load(str(folder / "model.onnx"))
    for tensor in model.graph.initializer:
        if tensor.name in changes:
            values = changes.pop(tensor.name)(onnx.numpy_helper.to_array(tensor).copy())
            tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float32), tensor.name))
    assert not changes, f"no such initializers: {list(changes)}"
    return onnx_probe.OnnxProbe(model)


def noisy(values: Any) -> Any:
    """A tenth of noise: nothing that shape or range would tell."""
    return values + 0.1 * values.std() * np.random.default_rng(0).standard_normal(values.shape)


def names(row: bisection.Row | None, module: str) -> bool:
    """Whether a row says that the fault is in a module."""
    return row is not None and (row.module == module or row.module.startswith(f"{module}.") or module in row.holds)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("which", ["encoder_model", "network_model"])
def test_a_float_artifact_has_no_layer_that_differs(which: str, engine: str, request: pytest.FixtureRequest) -> None:
    reference: Reference = request.getfixturevalue(which)
    found = reference.bisect(reference.exported[engine])
    assert found.first is None
    assert len(found.rows) >= (25 if which == "encoder_model" else 6)
    assert min(row.own.sqnr_db for row in found.rows) > 90  # all matched modules are the ones they are called
    assert found.output.sqnr_db > 90
    assert found.runs == {"first": 1, "second": 2, "examples": 3}


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        ("onnxruntime", "dynamic-int8"), ("onnxruntime", "weight-int4"), ("onnxruntime", "fp16"),
        ("tensorrt", "static-int8"), ("tensorrt", "fp16"), ("litert", "dynamic-int8"), ("litert", "fp16"),
        ("openvino", "static-int8"), ("openvino", "bf16"),
    ],
)  # fmt: skip
def test_a_sound_quantized_artifact_raises_no_alarm(
    engine: str, method: str, encoder_model: Reference, sentences: list[tuple[str, str]], tmp_path: Path
) -> None:
    calibration = [text for text, _ in sentences[100:132]] if method == "static-int8" else []
    made = artifacts.quantized(encoder_model.exported[engine], tmp_path / "made", calibration, method=method)
    found = encoder_model.bisect(made)
    assert found.first is None, found.first
    assert len(found.rows) >= 15
    assert found.output.sqnr_db < 90  # it does differ


def test_a_fault_in_every_weight_of_an_encoder_is_named(encoder_model: Reference) -> None:
    import onnx

    folder = encoder_model.exported["tensorrt"]
    model = onnx.load(str(folder / "model.onnx"))
    modules_of = dict(zip((n.name for n in model.graph.node), onnx_probe.scopes(model), strict=True))
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2 and tensor.data_type == 1}
    weights = {
        weight: modules_of[node.name]
        for node in model.graph.node
        for weight in node.input
        if node.op_type in ("MatMul", "Gemm", "Gather") and weight in matrices
    }
    assert len(weights) >= 2 * 6 + 3
    for weight, module in weights.items():
        found = encoder_model.bisect(folder, changed_onnx(folder, {weight: noisy}))
        assert names(found.first, module), (weight, module, found.first)
        assert [row for row in found.faulty if row.own.sqnr_db > 60] == []


def test_a_fault_in_every_convolution_is_named(network_model: Reference) -> None:
    import onnx

    folder = network_model.exported["tensorrt"]
    model = onnx.load(str(folder / "model.onnx"))
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 5
    for node, scope in zip(model.graph.node, onnx_probe.scopes(model), strict=True):
        if node.op_type == "Conv":
            found = network_model.bisect(folder, changed_onnx(folder, {node.input[1]: noisy}))
            assert names(found.first, scope.removeprefix("model.")), (scope, found.first)


def test_faults_in_a_litert_file_are_named(encoder_model: Reference) -> None:
    folder = encoder_model.exported["litert"]
    for layer in ("0/intermediate/dense", "1/output/dense"):
        probe = litert_probe.open_probe(folder / "model.tflite")
        graph = probe.model.subgraphs[0]
        operator = next(
            operator for operator in graph.operators if layer in graph.tensors[operator.outputs[0]].name.decode()
            .replace("transformers.models.bert.modeling_bert.", "").replace("torch.nn.modules.linear.Linear_", "")
            .replace("BertLayer_", "").replace("BertIntermediate_", "").replace("BertOutput_", "")
            and len(operator.inputs) == 3
        )  # fmt: skip
        buffer = probe.model.buffers[graph.tensors[operator.inputs[1]].buffer]
        buffer.data = noisy(buffer.data.view(np.float32)).astype(np.float32).view(np.uint8)
        found = encoder_model.bisect(folder, probe)
        assert names(found.first, f"bert.encoder.layer.{layer.replace('/', '.')}"), (layer, found.first)


def test_every_one_of_several_faults_is_named(encoder_model: Reference) -> None:
    folder = encoder_model.exported["tensorrt"]
    first, second = (f"bert.encoder.layer.{i}.attention.output.LayerNorm" for i in (0, 1))
    found = encoder_model.bisect(
        folder, changed_onnx(folder, {f"{name}.bias": lambda bias: bias + 1 for name in (first, second)})
    )
    own = [row.module for row in found.faulty]
    assert own[0] == first
    assert second in own
    assert not any(module.startswith("bert.encoder.layer.0.output") for module in own)  # only what came down to it


def test_values_that_are_no_numbers_are_a_difference(encoder_model: Reference) -> None:
    folder = encoder_model.exported["tensorrt"]
    bias = "bert.encoder.layer.1.intermediate.dense.bias"
    found = encoder_model.bisect(folder, changed_onnx(folder, {bias: lambda values: values * np.nan}))
    assert found.first is not None
    assert found.first.module == "bert.encoder.layer.1.intermediate.dense"
    assert not found.first.own.is_finite
    json.dumps(found.as_dict())


def test_a_checkpoint_is_compared_with_a_checkpoint(encoder_model: Reference, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(encoder_model.path, other)
    weights = load_file(other / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.value"
    weights[f"{name}.weight"] = weights[f"{name}.weight"].T.contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    found = encoder_model.bisect(other)
    assert [row.module for row in found.faulty] == [name]


def test_the_operator_between_layers_is_blamed_on_the_module_around(encoder_model: Reference, tmp_path: Path) -> None:
    """A softmax over the wrong axis belongs to no layer with weights."""
    import onnx

    folder = encoder_model.exported["tensorrt"]
    model = onnx.load(str(folder / "model.onnx"))
    softmax = [node for node in model.graph.node if node.op_type == "Softmax"][1]
    next(attribute for attribute in softmax.attribute if attribute.name == "axis").i = 1
    found = encoder_model.bisect(folder, onnx_probe.OnnxProbe(model))
    assert found.first is not None
    assert found.first.module == "bert.encoder.layer.1.attention.self"


def test_graphs_without_names_of_modules_are_compared_by_their_tensors(encoder_model: Reference) -> None:
    import onnx

    folder = encoder_model.exported["tensorrt"]
    nameless = []
    for _ in range(2):
        model = onnx.load(str(folder / "model.onnx"))
        for node in model.graph.node:
            del node.metadata_props[:]
            node.name = ""
        nameless.append(model)
    tensor = next(t for t in nameless[1].graph.initializer if t.name == "bert.encoder.layer.1.output.dense.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    reader = next(node for node in nameless[1].graph.node if tensor.name in node.input)
    encoded = [encoder_model.build.encoder(text) for text in encoder_model.examples]
    found = bisection.bisect(*(onnx_probe.OnnxProbe(model) for model in nameless), encoded)
    assert [row.module for row in found.faulty] == [reader.output[0]]


def test_models_with_nothing_in_common_are_refused(
    encoder_model: Reference, network_model: Reference, reviews: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import onnx

    model = onnx.load(str(encoder_model.exported["tensorrt"] / "model.onnx"))
    for node in model.graph.node:
        del node.metadata_props[:]
    inputs = [encoder_model.build.encoder("a film")]
    with pytest.raises(InputError, match="no module in common"):
        bisection.bisect(encoder_model.probe, onnx_probe.OnnxProbe(model), inputs)
    for verb in ("bisect", "check"):
        arguments = [verb, encoder_model.path, network_model.path, "--data", reviews, "--allow-code"]
        assert_refused(in_process(list(map(str, arguments)), capsys), "text-classification", "image-classification")
    with pytest.raises(InputError, match="no examples"):
        bisection.bisect(encoder_model.probe, encoder_model.probe, [])


def test_what_a_difference_is() -> None:
    same = bisection.difference([{"": np.ones(4)}], [{"": np.ones(4)}], "", "")
    assert same == Difference(0.0, 200.0, 1.0)
    halved = bisection.difference([{"": np.full(4, 2.0)}], [{"": np.ones(4)}], "", "")
    assert halved.max_abs == 1
    assert halved.sqnr_db == pytest.approx(10 * np.log10(4))
    assert halved.cosine == pytest.approx(1)
    turned = bisection.difference([{"": np.array([1.0, 0.0])}], [{"": np.array([0.0, 1.0])}], "", "")
    assert (turned.cosine, turned.sqnr_db) == (0.0, pytest.approx(10 * np.log10(0.5)))
    assert not bisection.difference([{"": np.ones(2)}], [{"": np.array([1.0, np.inf])}], "", "").is_finite


def test_names_of_an_exporter_are_found_again() -> None:
    called = ["bert.encoder.layer.0.output", "bert.encoder.layer.0", "bert.encoder.layer.1", "bert.encoder", "bert"]
    exported = ["Named.model.bert.encoder.0.output", "Named.model.bert.encoder.0", "Named.model.bert.encoder"]
    assert bisection.aliases(called, exported) == {
        "bert.encoder.layer.0.output": exported[0], "bert.encoder.layer.0": exported[1], "bert.encoder": exported[2]
    }  # fmt: skip
    twins = ["a.left.0", "a.right.0", "a"]  # both would be a.0 without the lists that nobody calls
    assert bisection.aliases(twins, ["a.0", "a"]) == {"a": "a"}


def test_the_verb(encoder_model: Reference, reviews: Path, tmp_path: Path) -> None:
    import onnx

    folder = encoder_model.exported["onnxruntime"]
    same = run_toolkit("bisect", encoder_model.path, folder, "--data", reviews, "--examples", 2, "--json")
    assert same.returncode == 0, same.stderr
    assert json.loads(same.stdout)["first"] is None
    model = onnx.load(str(folder / "model.onnx"))
    name = "bert.encoder.layer.1.output.LayerNorm"
    tensor = next(t for t in model.graph.initializer if t.name == f"{name}.weight")
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1.1, tensor.name))
    onnx.save(model, str(tmp_path / "ein Modell ü.onnx"))
    faulty = run_toolkit(
        "bisect", encoder_model.path, tmp_path / "ein Modell ü.onnx", "--data", reviews, "--plot", tmp_path / "p.svg"
    )
    assert faulty.returncode == 1
    assert f"The first layer that differs is {name}" in faulty.stderr
    assert name in faulty.stdout
    assert (tmp_path / "p.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ("nothing", ["nothing", "does not exist"]),
        ("empty.onnx", ["empty.onnx"]),
        ("damaged.tflite", ["damaged.tflite"]),
        ("text.txt", ["neither a folder nor an .onnx, .tflite, .xml or .pte file"]),
    ],
)
def test_what_is_no_model_is_refused(
    second: str, words: list[str], tuned: Path, reviews: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("empty.onnx", "text.txt"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "damaged.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 64)
    for verb in ("bisect", "check"):
        arguments = [verb, tuned, tmp_path / second, "--data", reviews]
        assert_refused(in_process(list(map(str, arguments)), capsys), *words)


def test_code_is_not_run_unasked(network_model: Reference, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("bisect", "check"):
        arguments = [verb, network_model.path, network_model.exported["litert"], "--data", tmp_path]
        assert_refused(in_process(list(map(str, arguments)), capsys), "--allow-code")
