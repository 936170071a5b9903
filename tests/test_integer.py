"""LiteRT files of integers alone, and with activations of 16 bits: what is in them, and that they answer as before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import PICTURE_SIDE as SIDE
from tests.networks import CLASSES, pattern
from toolkit import engines, modules, network, steps, tasks
from toolkit.engines.litert import to_floats, to_integers
from toolkit.errors import InputError
from toolkit.export import flatbuffer, litert_simplify, litert_versions

TASK = tasks.get("image-classification")
Make = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(small_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "float"
    steps.export(str(small_network), str(folder), engine="litert", lengths=[1], allow_code=True)
    return folder


@pytest.fixture(scope="module")
def made(exported: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """The network in fewer bits, made once per request."""
    folders: dict[str, Path] = {}

    def make(method: str, **parameters: Any) -> Path:
        key = repr((method, parameters))
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("quantized") / "artifact"
            steps.quantize(
                str(exported), str(folders[key]), method=method, options={"data": str(pictures)}, parameters=parameters
            )
        return folders[key]

    return make


def inputs(count: int = 30) -> list[dict[str, Any]]:
    """Pictures of every kind as the encoder gives them: float32[1, 1, side, side]."""
    generator = np.random.default_rng(3)
    encoder = TASK.encoder(Path(), {"channels": 1, "resize": {"height": SIDE, "width": SIDE}})
    return [encoder(pattern(CLASSES[number % 3], generator)) for number in range(count)]


def answers(folder: Path) -> Any:
    """Logits float32[n, 3] through the engine, which takes the same floats for every file."""
    artifact = artifacts.description(folder)
    engine = engines.get("litert").load(folder / artifact["path"])
    return np.asarray([engine.run(arrays)["output_0"][0] for arrays in inputs()])


def kinds(folder: Path) -> set[str]:
    """The element types of all tensors that a file's operators read and write."""
    from ai_edge_litert import schema_py_generated as schema

    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    graph = flatbuffer.read(folder / "model.tflite").subgraphs[0]
    used = {int(i) for operator in graph.operators for i in (*operator.inputs, *operator.outputs) if i >= 0}
    return {types[graph.tensors[index].type] for index in used}


@pytest.mark.parametrize("io", ["int8", "uint8"])
def test_a_file_of_integers_has_no_float_and_answers_nearly_as_before(io: str, made: Make, exported: Path) -> None:
    folder = made("integer-int8", **({} if io == "int8" else {"io": io}))
    assert kinds(folder) == {"INT8", "INT32"} | ({"UINT8"} if io == "uint8" else set())
    artifact = artifacts.description(folder)
    assert artifact["precision"] == "int8"
    (taken,), (given,) = artifact["inputs"], artifact["outputs"]
    assert taken["dtype"] == given["dtype"] == io
    assert taken["shape"] == [1, SIDE, SIDE, 1]  # the channels last
    limits = np.iinfo(io)
    for tensor in (taken, given):
        assert tensor["scale"] > 0
        assert limits.min <= tensor["zero_point"] <= limits.max
    wanted, said = answers(exported), answers(folder)
    assert said.dtype == np.float32
    assert (wanted.argmax(1) == said.argmax(1)).all()
    assert 0 < np.abs(wanted - said).max() < 0.1 * np.ptp(wanted)
    assert np.allclose(said / given["scale"], np.rint(said / given["scale"]), atol=1e-3)  # steps of the scale


def test_unsigned_answers_are_the_signed_ones(made: Make) -> None:
    assert np.array_equal(answers(made("integer-int8")), answers(made("integer-int8", io="uint8")))


def test_the_file_alone_says_how_integers_and_floats_relate(made: Make) -> None:
    """An app without this toolkit gets the same by the scale and zero point that stand in artifact.json."""
    from ai_edge_litert.interpreter import Interpreter

    folder = made("integer-int8")
    artifact = artifacts.description(folder)
    (taken,), (given,) = artifact["inputs"], artifact["outputs"]
    runner = Interpreter(model_path=str(folder / artifact["path"])).get_signature_runner("serve")
    for arrays, wanted in zip(inputs(6), answers(folder), strict=False):
        image = np.moveaxis(arrays["pixel_values"], 1, -1) / taken["scale"] + taken["zero_point"]
        said = runner(pixel_values=np.clip(np.rint(image), -128, 127).astype(np.int8))["output_0"]
        assert (said[0].astype(np.float64) - given["zero_point"]) * given["scale"] == pytest.approx(wanted, abs=1e-5)


def test_the_engine_rounds_as_the_kernels_do(made: Make) -> None:
    """The file with float inputs begins with QUANTIZE; its reference kernel says what the integers are."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    model = flatbuffer.read(made("static-int8") / "model.tflite")
    graph = model.subgraphs[0]
    first = next(o for o in graph.operators if litert_versions.operators(model)[o.opcodeIndex][0] == "QUANTIZE")
    quantization = graph.tensors[first.outputs[0]].quantization
    interpreter = Interpreter(
        model_path=str(made("static-int8") / "model.tflite"),
        experimental_op_resolver_type=OpResolverType.BUILTIN_REF, experimental_preserve_all_tensors=True,
    )  # fmt: skip
    interpreter.allocate_tensors()
    shape = tuple(interpreter.get_input_details()[0]["shape"])
    scale, zero_point = float(quantization.scale[0]), int(quantization.zeroPoint[0])
    # Halves, which may be rounded either way, and what lies beyond the range.
    steps_ = (np.arange(np.prod(shape)) - np.prod(shape) / 2) / 2 - zero_point
    values = (steps_ * np.float64(scale)).astype(np.float32).reshape(shape)
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    wanted = interpreter.get_tensor(int(first.outputs[0]))
    assert np.array_equal(to_integers(values, np.int8, scale, zero_point), wanted)
    assert (wanted.min(), wanted.max()) == (-128, 127)


def test_integers_and_back() -> None:
    values = np.asarray([-9.0, -0.75, -0.25, 0.0, 0.25, 0.75, 9.0], np.float32)
    integers = to_integers(values, np.int8, 0.5, 3)
    assert integers.tolist() == [-15, 1, 2, 3, 4, 5, 21]
    assert to_integers(np.asarray([1e9, -1e9], np.float32), np.uint8, 0.5, 3).tolist() == [255, 0]
    assert to_floats(integers, 0.5, 3).tolist() == [-9.0, -1.0, -0.5, 0.0, 0.5, 1.0, 9.0]


def test_sixteen_bits_lose_less_than_eight(made: Make, exported: Path) -> None:
    folder = made("int16-activations")
    assert "INT16" in kinds(folder) and "INT8" in kinds(folder)
    artifact = artifacts.description(folder)
    assert artifact["precision"] == "int16x8"
    assert {tensor["dtype"] for tensor in (*artifact["inputs"], *artifact["outputs"])} == {"float32"}
    wanted = answers(exported)
    error = {name: np.abs(answers(made(name)) - wanted).mean() for name in ("static-int8", "int16-activations")}
    assert error["int16-activations"] < 0.8 * error["static-int8"]


def test_wide_activations_need_sixteen_bits(small_network: Path, pictures: Path, tmp_path: Path) -> None:
    """Two channels of which one is a thousand times the other: eight bits have no step left for the small one."""
    import torch

    from toolkit.engines.torch import load_model

    model = load_model(small_network, TASK)
    with torch.no_grad():
        block = model.net.blocks[1]
        block.mix.weight[0] *= 300
        block.mix.bias[0] += 300
        model.net.head.weight[:, 0] /= 300
    (tmp_path / "wide").mkdir()
    model.save_pretrained(tmp_path / "wide")
    for path in small_network.iterdir():
        if not (tmp_path / "wide" / path.name).exists():
            (tmp_path / "wide" / path.name).write_bytes(path.read_bytes())
    steps.export(str(tmp_path / "wide"), str(tmp_path / "float"), engine="litert", lengths=[1], allow_code=True)
    wanted = answers(tmp_path / "float")
    error = {}
    for method in ("static-int8", "int16-activations"):
        options = {"data": str(pictures)}
        steps.quantize(str(tmp_path / "float"), str(tmp_path / method), method=method, options=options)
        error[method] = np.abs(answers(tmp_path / method) - wanted).mean()
    assert error["int16-activations"] < 0.3 * error["static-int8"]


def test_operators_say_the_versions_that_their_tensors_ask_for(made: Make) -> None:
    """By TensorFlow Lite's op_version.cc; an older runtime then refuses the file."""
    versions = {method: artifacts.description(made(method))["operator_versions"] for method in
                ("integer-int8", "int16-activations", "dynamic-int8")}  # fmt: skip
    assert {versions["integer-int8"][kind] for kind in ("CONV_2D", "DEPTHWISE_CONV_2D")} == {3}
    assert versions["integer-int8"]["ADD"] == 2
    assert versions["int16-activations"]["CONV_2D"] == 4
    assert versions["int16-activations"]["DEPTHWISE_CONV_2D"] == 5
    assert versions["int16-activations"]["ADD"] == 3
    assert versions["dynamic-int8"]["CONV_2D"] == 5
    assert versions["dynamic-int8"]["DEPTHWISE_CONV_2D"] == 6


def test_weights_stand_in_the_tables(made: Make) -> None:
    """Interpreters on microcontrollers read no weights that lie behind them, and say nothing."""
    from ai_edge_litert import schema_py_generated as schema

    content = (made("integer-int8") / "model.tflite").read_bytes()
    packed = schema.Model.GetRootAs(content, 0)
    buffers = [packed.Buffers(number) for number in range(packed.BuffersLength())]
    assert not any(buffer.Offset() for buffer in buffers)
    weights = [buffer for buffer in buffers if not buffer.DataIsNone()]
    places = [buffer._tab.Vector(buffer._tab.Offset(4)) for buffer in weights]
    assert len(weights) > 10
    assert not [place for place in places if place % 16]


def test_fully_connected_layers_of_a_file_of_integers_have_one_scale(made: Make) -> None:
    one = {"scales": "tensor"}
    for method, given, more in (("integer-int8", {}, False), ("static-int8", {}, True), ("static-int8", one, False)):
        model = flatbuffer.read(made(method, **given) / "model.tflite")
        graph, codes = model.subgraphs[0], litert_versions.operators(model)
        (linear,) = [each for each in graph.operators if codes[each.opcodeIndex][0] == "FULLY_CONNECTED"]
        assert (len(graph.tensors[linear.inputs[1]].quantization.scale) > 1) == more
        convolution = next(each for each in graph.operators if codes[each.opcodeIndex][0] == "CONV_2D")
        assert len(graph.tensors[convolution.inputs[1]].quantization.scale) > 1


def test_the_mean_over_a_picture_is_taken_where_the_channels_are(exported: Path) -> None:
    """Nothing is transposed, for accelerators without that operator leave the rest to the host."""
    operators = artifacts.description(exported)["operators"]
    assert operators["MEAN"] == 1
    assert "TRANSPOSE" not in operators


@pytest.mark.parametrize(
    ("order", "axes", "keep_dims", "before"),
    [
        ([0, 3, 1, 2], [2, 3], False, [1, 2]),
        ([0, 3, 1, 2], [2, 3], True, None),  # what is left would stand elsewhere
        ([0, 2, 1, 3], [3], False, None),  # and here in another order
        ([0, 3, 1, 2], [-1, -2], False, [1, 2]),
    ],
)
def test_a_transpose_goes_only_where_nothing_changes(
    order: list[int], axes: list[int], keep_dims: bool, before: list[int] | None
) -> None:
    from ai_edge_litert import schema_py_generated as schema

    def tensor(shape: list[int], content: list[int] | None = None) -> int:
        each, buffer = schema.TensorT(), schema.BufferT()
        if content is not None:
            buffer.data = np.frombuffer(np.asarray(content, np.int32).tobytes(), np.uint8)
        model.buffers.append(buffer)
        each.shape, each.type, each.buffer, each.name = shape, 0, len(model.buffers) - 1, b"x"
        graph.tensors.append(each)
        return len(graph.tensors) - 1

    def operator(number: int, inputs: list[int], output: int, options: Any = None) -> Any:
        each = schema.OperatorT()
        each.opcodeIndex, each.inputs, each.outputs, each.builtinOptions = number, inputs, [output], options
        return each

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.buffers, model.operatorCodes, model.signatureDefs = [], [], []
    for kind in (schema.BuiltinOperator.TRANSPOSE, schema.BuiltinOperator.MEAN):
        code = schema.OperatorCodeT()
        code.builtinCode = kind
        model.operatorCodes.append(code)
    graph.tensors, model.subgraphs = [], [graph]
    given, moved, result = tensor([1, 4, 5, 6]), tensor([1, 6, 4, 5]), tensor([1, 6])
    options = schema.ReducerOptionsT()
    options.keepDims = keep_dims
    graph.operators = [
        operator(0, [given, tensor([4], order)], moved), operator(1, [moved, tensor([2], axes)], result, options)
    ]  # fmt: skip
    graph.inputs, graph.outputs = [given], [result]
    assert litert_simplify.mean_where_channels_are(model) == (before is not None)
    mean = graph.operators[-1]
    assert len(graph.operators) == (1 if before else 2)
    if before:
        assert len(graph.tensors) == 3  # what nobody reads is gone
        assert np.frombuffer(model.buffers[graph.tensors[mean.inputs[1]].buffer].data, np.int32).tolist() == before


def test_tables_become_integers_too(tmp_path: Path) -> None:
    """A row of numbers and a network of linear layers."""
    import json

    import torch

    from tests.test_tabular import customers

    torch.manual_seed(0)
    rows = customers(tmp_path / "rows.csv", 700)
    options = {
        "model": "mlp", "task": "tabular", "data": str(rows), "epochs": 4, "learning_rate": 1e-2,
        "option": {"label_column": "default", "drop": ["id"]},
    }  # fmt: skip
    steps.finetune(str(tmp_path / "tuned"), options)
    steps.export(str(tmp_path / "tuned"), str(tmp_path / "float"), engine="litert", lengths=[1], allow_code=True)
    given = {"data": str(rows), "option": options["option"]}
    steps.quantize(str(tmp_path / "float"), str(tmp_path / "integer"), method="integer-int8", options=given)
    assert kinds(tmp_path / "integer") == {"INT8", "INT32"}
    task = tasks.get("tabular")
    encoder = task.encoder(tmp_path / "integer", {})
    row = {"age": 33, "income": 2100, "job": "cook"}
    said = [
        engines.get("litert").load(tmp_path / name / "model.tflite").run(encoder(row))["output_0"][0]
        for name in ("float", "integer")
    ]
    assert said[1] == pytest.approx(said[0], abs=0.15 * max(1.0, float(np.abs(said[0]).max())))
    assert json.loads((tmp_path / "integer" / "artifact.json").read_text())["inputs"][0]["dtype"] == "int8"


# What is refused


def test_texts_and_floats_in_a_file_of_integers_are_refused(
    tuned: Path, exported: Path, reviews: Path, pictures: Path, tmp_path: Path
) -> None:
    def refuse(message: str, model: Path, **given: Any) -> None:
        with pytest.raises(InputError, match=message):
            steps.quantize(str(model), str(tmp_path / "out"), **{"method": "integer-int8", **given})
        assert not (tmp_path / "out").exists()

    shown, texts = {"data": str(pictures)}, {"data": str(reviews)}
    refuse("integer-int8 is for images and tables: a text encoder masks", tuned, engine="litert", options=texts)
    refuse("--data: calibration takes them", exported)
    refuse("--keep leaves layers in float", exported, options=shown, parameters={"keep": ["stem.0"]})
    refuse("--mixed leaves layers in float", exported, options=shown, min_score="99%")
    refuse("--sensitivity leaves layers in float", exported, options=shown, sensitivity=True)
    refuse("--io is for integer-int8", exported, options=shown, method="static-int8", parameters={"io": "uint8"})
    refuse("mse weighs what 256 steps lose", exported, options=shown, method="int16-activations",
           parameters={"calibration": "mse"})  # fmt: skip
    refuse("tensorrt cannot be quantized by 'integer-int8'", tuned, engine="tensorrt", options=texts)


NO_INTEGER_FORM = """
import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, images):
        return self.head(torch.sin(self.first(images)).mean((2, 3)))


def build():
    return Network()
"""


def test_an_operator_without_integers_is_named(pictures: Path, tmp_path: Path) -> None:
    import json

    (tmp_path / "network.py").write_text(NO_INTEGER_FORM)
    spec = {"resize": {"height": SIDE, "width": SIDE}, "channels": 1}
    code = modules.imported(f"{tmp_path / 'network.py'}:build", None, tmp_path / "cache", False)
    (tmp_path / "model").mkdir()
    network.load(code, TASK, list(CLASSES), spec).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "preprocessor.json").write_text(json.dumps(spec))
    with pytest.raises(InputError, match=r"integer-int8: SIN \(.*\) stays in float"):
        steps.quantize(
            str(tmp_path / "model"), str(tmp_path / "out"), method="integer-int8", engine="litert",
            options={"data": str(pictures), "allow_code": True},
        )  # fmt: skip
