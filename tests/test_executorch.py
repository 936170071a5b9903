"""ExecuTorch: its files, what XNNPACK takes of them, their quantized forms, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import toolkit
from tests import artifacts
from tests.conftest import PICTURE_SIDE, run_toolkit
from tests.made_up import a_candidate, a_workshop
from tests.networks import CLASSES, pattern
from toolkit import builds, candidates, engines, model_file, recipe, stages, steps, target
from toolkit import export as formats
from toolkit.engines.torch import TorchEngine
from toolkit.errors import InputError
from toolkit.export import executorch_file, executorch_program
from toolkit.stages import export as export_stage
from toolkit.stages import quantize
from toolkit.tasks.text_classification import TASK

XNNPACK = "XnnpackBackend"


@pytest.fixture(scope="module")
def exported(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' two-layer encoder in float."""
    return artifacts.export(tuned, tmp_path_factory.mktemp("exported"), "executorch")


@pytest.fixture(scope="module")
def dynamic(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.quantized(exported, tmp_path_factory.mktemp("dynamic") / "artifact", method="dynamic-int8")


@pytest.fixture(scope="module")
def exporting(
    small_network: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The small network of convolutions in float, and the command that made it."""
    folder = tmp_path_factory.mktemp("network")
    return folder / "artifact", run_toolkit(
        "export", small_network, "--engine", "executorch", "-o", folder / "artifact", "--allow-code", "--cache-dir",
        folder / "cache",
    )  # fmt: skip


@pytest.fixture(scope="module")
def network(exporting: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    assert exporting[1].returncode == 0, exporting[1].stderr
    return exporting[0]


@pytest.fixture(scope="module")
def pictures_of(network: Path) -> Any:
    """So many pictures as inputs of the small network, as arrays [1, 1, 24, 24]."""

    def made(count: int, seed: int) -> list[dict[str, Any]]:
        generator = np.random.default_rng(seed)
        values = [pattern(CLASSES[number % 3], generator, PICTURE_SIDE) / 127.5 - 1 for number in range(count)]
        name = artifacts.description(network)["inputs"][0]["name"]
        return [{name: value.astype(np.float32)[None, None]} for value in values]

    return made


def rows(folder: Path, inputs: list[dict[str, Any]]) -> Any:
    engine = engines.get("executorch").load(folder / "model.pte")
    return np.concatenate([engine.run(each)["output"] for each in inputs])


def static(source: Path, output: Path, inputs: list[dict[str, Any]], **parameters: Any) -> tuple[Path, Any]:
    output.mkdir()
    given = quantize.Parameters(method="static-int8", **parameters)
    made, report = formats.get("executorch").quantize(source, output, artifacts.description(source), given, inputs)
    (output / "artifact.json").write_text(json.dumps(made))
    return output, report


# --- the float file


def test_it_answers_as_the_checkpoint_does_at_every_length(exported: Path, tuned: Path) -> None:
    engine, reference = engines.get("executorch").load(exported / "model.pte"), TorchEngine(tuned, TASK, 1)
    longest = artifacts.description(exported)["longest"]
    generator = np.random.default_rng(0)
    for length in (1, 2, 7, 31, longest):
        inputs = {"attention_mask": np.ones((1, length), np.int64)}
        inputs["token_type_ids"] = np.zeros((1, length), np.int64)
        inputs["input_ids"] = generator.integers(1000, 20000, (1, length))
        assert np.abs(engine.run(inputs)["output"] - reference.run(inputs)["output"]).max() < 1e-4
    with pytest.raises(InputError, match="does not run on inputs of input_ids"):
        engine.run({name: np.ones((1, longest + 1), np.int64) for name in inputs})


def test_padding_does_not_change_the_answer(exported: Path, sentences: list[tuple[str, str]]) -> None:
    engine = engines.get("executorch").load(exported / "model.pte")
    for arrays in artifacts.encode(exported, [text for text, _ in sentences[:5]]):
        longer = {name: np.pad(array, ((0, 0), (0, 9)), constant_values=0) for name, array in arrays.items()}
        assert np.allclose(engine.run(longer)["output"], engine.run(arrays)["output"], atol=1e-5)
        unmasked = {**longer, "attention_mask": np.ones_like(longer["attention_mask"])}
        assert not np.allclose(engine.run(unmasked)["output"], engine.run(arrays)["output"], atol=1e-5)


def test_the_description_is_the_files_own(exported: Path) -> None:
    described = artifacts.description(exported)
    assert [tensor["name"] for tensor in described["inputs"]] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [tensor["shape"] for tensor in described["inputs"]] == [[1, "length"]] * 3
    assert described["outputs"] == [{"name": "output", "dtype": "float32", "shape": [1, 2]}]
    assert described["lengths"] is None  # one method for all
    assert described["minimum_versions"] == {"executorch": engines.get("executorch").version()}
    taken = described["delegates"][XNNPACK]
    layers = formats.get("executorch").layers(exported, described)
    linear = [name for name in layers if "embeddings" not in name]
    assert taken["operators"]["FullyConnected"] == len(linear)
    assert taken["operators"]["BatchMatrixMultiply"] == taken["operators"]["Softmax"] * 2 == 4
    # It is left for the norms alone: one part before, between and behind them.
    assert taken["partitions"] == described["operators"]["aten::native_layer_norm"] + 1
    assert not {"aten::expand_copy", "aten::where", "executorch_prim::et_view"} & set(described["operators"])


def test_layers_are_called_after_their_modules(exported: Path, tuned: Path) -> None:
    modules = dict(TorchEngine(tuned, TASK, 1).model.named_modules())
    layers = formats.get("executorch").layers(exported, artifacts.description(exported))
    assert "bert.encoder.layer.1.attention.self.query" in layers
    for name, size in layers.items():
        assert modules[name].weight.numel() * 4 == size


def test_exporting_and_quantizing_again_gives_the_same_bytes(
    small_network: Path, network: Path, pictures_of: Any, tmp_path: Path
) -> None:
    form, context = formats.get("executorch"), stages.Context(task="image-classification")
    again = tmp_path / "again"
    again.mkdir()
    described = form.export(small_network, again, export_stage.Parameters(format="executorch"), context)
    (again / "artifact.json").write_text(json.dumps(described))
    first, second = (
        static(source, tmp_path / f"int8-{source.name}", pictures_of(6, 0))[0] for source in (network, again)
    )
    pairs = [(folder / "model.pte", other / "model.pte") for folder, other in ((network, again), (first, second))]
    for one, other in [*pairs, (network / "program.safetensors", again / "program.safetensors")]:
        content = one.read_bytes()
        assert content == other.read_bytes()
        for folder in (tmp_path.parent, Path(toolkit.__file__).parent, Path(np.__file__).parents[1]):
            assert str(folder).encode() not in content


def test_the_program_beside_it_holds_no_pickle(exported: Path) -> None:
    content = (exported / "program.safetensors").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header.pop("__metadata__")["program"])["graph_module"]
    assert sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values()) == len(content) - (
        8 + int.from_bytes(content[:8], "little")
    )


# --- fewer bits


def test_linear_layers_and_tables_are_in_integers(
    exported: Path, dynamic: Path, sentences: list[tuple[str, str]]
) -> None:
    before, after = artifacts.description(exported), artifacts.description(dynamic)
    assert after["precision"] == "int8"
    assert after["size_bytes"] < 0.3 * before["size_bytes"]
    assert not (dynamic / "program.safetensors").exists()  # what is made of it is the float file's
    assert (
        after["delegates"][XNNPACK]["operators"]["FullyConnected"]
        == before["delegates"][XNNPACK]["operators"]["FullyConnected"]
    )
    found = executorch_file.read(dynamic / "model.pte")
    layers = formats.get("executorch").layers(exported, before)
    assert found.weights["int8"] * 4 == sum(layers.values())
    assert (found.quantized, found.precision) == ("dynamic", "int8")
    texts = [text for text, _ in sentences[:40]]
    wanted, given = artifacts.answers(exported, texts), artifacts.answers(dynamic, texts)
    assert (wanted.argmax(axis=1) == given.argmax(axis=1)).mean() >= 0.95
    assert 1e-6 < np.abs(wanted - given).max() < 0.2 * np.ptp(wanted)


def test_layers_that_are_kept_stay_in_float(exported: Path) -> None:
    from toolkit.export import executorch_quantize

    layers = formats.get("executorch").layers(exported, artifacts.description(exported))
    name = "bert.encoder.layer.0.intermediate.dense"

    def in_integers(keep: list[str]) -> int:
        program = executorch_program.read(exported / "program.safetensors")
        module = program.module()
        found = executorch_quantize.find(module)
        given = quantize.Parameters(method="dynamic-int8", keep=keep)
        chosen = formats.chosen_layers({layer.name: layer.is_table for layer in found}, given)
        kept = [layer for layer in found if layer.name in chosen]
        made, _ = executorch_quantize.quantized(program, module, kept, given, [])
        values = [*made.state_dict.values(), *made.constants.values()]
        return sum(value.numel() * 4 for value in values if value.dtype.itemsize == 1 and value.numel() > 1)

    assert in_integers([name]) == sum(layers.values()) - layers[name]
    assert in_integers([other for other in layers if other != name]) == layers[name]
    with pytest.raises(InputError, match=r"There is no layer 'nothing' to keep in float; the layers are: "):
        in_integers(["nothing"])


def test_a_whole_network_of_convolutions_is_in_integers(network: Path, pictures_of: Any, tmp_path: Path) -> None:
    made, report = static(network, tmp_path / "int8", pictures_of(48, 0))
    taken = artifacts.description(made)["delegates"][XNNPACK]["operators"]
    assert taken["Conv2d"] + taken["DepthwiseConv2d"] == 5
    assert taken["Convert"] <= 4  # at the edges, and around the mean that no backend takes: not around each layer
    found = executorch_file.read(made / "model.pte")
    assert found.quantized == "static"
    assert set(found.weights) <= {"int8", "int32", "int64"}
    layers = formats.get("executorch").layers(network, artifacts.description(network))
    assert report["activations"]["calibrated"] == len(layers) == len(report["activations"]["unstable"])
    examples = pictures_of(60, 1)
    wanted, given = rows(network, examples), rows(made, examples)
    assert (wanted.argmax(axis=1) == given.argmax(axis=1)).mean() >= 0.95
    assert 1e-6 < np.abs(wanted - given).max() < 0.2 * np.ptp(wanted)


def test_a_kept_convolution_is_kept_with_what_surrounds_it(network: Path, pictures_of: Any, tmp_path: Path) -> None:
    layers = list(formats.get("executorch").layers(network, artifacts.description(network)))
    made, _ = static(network, tmp_path / "all", pictures_of(6, 0), keep=layers)
    examples = pictures_of(12, 1)
    assert np.allclose(rows(made, examples), rows(network, examples), atol=1e-5)
    assert executorch_file.read(made / "model.pte").quantized == "no"
    one, _ = static(network, tmp_path / "one", pictures_of(6, 0), keep=[layers[0]])
    weights = executorch_file.read(one / "model.pte").weights
    assert weights["float32"] >= 48 * 9
    assert weights["int8"] > weights["float32"]


def test_ranges_are_those_of_the_calibration(network: Path, pictures_of: Any, tmp_path: Path) -> None:
    files = [
        static(network, tmp_path / method, pictures_of(24, 0), calibration=method)[0] / "model.pte"
        for method in ("min-max", "mse")
    ]
    assert files[0].read_bytes() != files[1].read_bytes()
    with pytest.raises(InputError, match="static-int8 takes calibration examples"):
        static(network, tmp_path / "none", [])


def test_a_clamp_is_part_of_its_convolution(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from toolkit.export import executorch_quantize

    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()

    class Named(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, values: Any) -> Any:
            return self.model(values)

    values = 8 * torch.randn(6, 1, 3, 9, 9)
    program = executorch_program.exported(Named().eval(), {"values": values[0]}, {}, 0)
    graph = program.module()
    made, _ = executorch_quantize.quantized(
        program, graph, executorch_quantize.find(graph), quantize.Parameters(method="static-int8"),
        [{"values": each.numpy()} for each in values],
    )  # fmt: skip
    (tmp_path / "model.pte").write_bytes(executorch_program.lowered(made))
    found = executorch_file.read(tmp_path / "model.pte")
    assert not found.operators  # nothing is left for portable kernels
    assert found.delegates[XNNPACK].operators["Conv2d"] == 3
    assert not found.delegates[XNNPACK].operators["Clamp"]
    wanted = np.concatenate([Named().eval()(each).detach().numpy() for each in values])
    given = rows(tmp_path, [{"values": each.numpy()} for each in values])
    assert np.abs(wanted - given).max() < 0.05 * np.ptp(wanted)


def test_what_it_has_no_method_for_is_refused(exported: Path, reviews: Path, tmp_path: Path) -> None:
    known = "executorch files for executorch cannot be quantized by 'fp16'; known: dynamic-int8, static-int8"
    with pytest.raises(InputError, match=known):
        artifacts.quantized(exported, tmp_path / "fp16", method="fp16")
    data = {"data": str(reviews)}
    with pytest.raises(InputError, match="Only an ONNX file can be balanced"):
        steps.quantize(str(exported), str(tmp_path / "o"), method="static-int8", balance=0.5, options=data)
    with pytest.raises(InputError, match="made from a PyTorch model; there is no converter from ONNX"):
        formats.get("executorch").adopt(exported, tmp_path, None, None)


# --- what is done with a file


def test_inspect_tells_what_was_taken_and_what_was_left(dynamic: Path) -> None:
    done = run_toolkit("inspect", dynamic / "model.pte", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    described = artifacts.description(dynamic)
    taken = described["delegates"][XNNPACK]
    assert facts["operators"] == described["operators"]
    assert facts[XNNPACK] == {"partitions": taken["partitions"], **taken["operators"]}
    assert (facts["format"], facts["quantized"], facts["methods"]) == ("executorch", "dynamic", ["forward"])
    refused = run_toolkit("inspect", dynamic / "model.pte", "--target", "pi5")
    assert refused.returncode == 2
    assert "has a rule table reads .pte files" in refused.stderr


def test_check_compares_its_answers_and_bisect_says_that_it_cannot(dynamic: Path, tuned: Path, reviews: Path) -> None:
    done = run_toolkit("check", tuned, dynamic / "model.pte", "--data", reviews, "--examples", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["first"] is None
    first = builds.open_build(tuned)
    second = builds.open_build(dynamic / "model.pte", like=first)
    with pytest.raises(InputError, match=r"cannot be looked into: .* `toolkit check` compares its answers"):
        second.probe()


def test_a_file_of_which_nothing_is_counted_has_no_estimate(tmp_path: Path) -> None:
    workshop = a_workshop(["litert", "executorch"])
    known = a_candidate("litert fp32", estimate=(1, 2), workshop=workshop)
    other = a_candidate("executorch fp32", workshop=workshop)
    other.artifact["path"] = "model.pte"
    other.latency = candidates.estimated(workshop, other)
    assert other.latency is None
    winner, accepted = candidates.choose(workshop, [known, other])
    assert (winner.name, accepted) == ("litert fp32", True)
    assert other.outcome == "passed; its speed is not known, litert fp32's is"


@pytest.mark.parametrize("name", ["android", "pixel-9", "apple-m4", "pi5"])
def test_targets_have_it_last(name: str) -> None:
    found = target.resolve(name)
    assert found.engines[-1].name == "executorch"
    chosen, _ = recipe.candidates(found, convolutional=True)
    assert chosen[-1].method == "static-int8"
    chosen, _ = recipe.candidates(found, texts=True)
    assert chosen[-1].method == "dynamic-int8"


# --- what is wrong


def test_damaged_files_are_one_message_and_end_no_process(network: Path, tmp_path: Path) -> None:
    """Cut off, and with bytes of the program changed: the runtime must come back with an error, or load it."""
    path = tmp_path / "model.pte"
    content = (network / "model.pte").read_bytes()
    for size in (1, 7, 20, 64, 2000, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=r"cannot load .*model\.pte: it "):
            engines.get("executorch").load(path)
        with pytest.raises(InputError, match=r"cannot load .*model\.pte: it "):
            model_file.inspect(path)
    path.write_bytes(content)
    code = (
        "import random, sys\n"
        "from pathlib import Path\n"
        "from toolkit import engines\n"
        "from toolkit.errors import InputError\n"
        "path = Path(sys.argv[1])\n"
        "content, refused = path.read_bytes(), 0\n"
        "program = int.from_bytes(content[16:24], 'little')\n"
        "for seed in range(80):\n"
        "    draw, changed = random.Random(seed), bytearray(content)\n"
        "    for _ in range(3):\n"
        "        changed[draw.randrange(40, program)] = draw.randrange(256)\n"
        "    path.write_bytes(changed)\n"
        "    try:\n"
        "        engines.get('executorch').load(path).close()\n"
        "    except InputError as error:\n"
        "        assert 'cannot load' in str(error) and len(str(error).splitlines()) == 1, error\n"
        "        refused += 1\n"
        "print(refused)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40
    assert done.stderr == ""  # what the runtime prints is in the message


def test_a_lost_or_damaged_program_is_one_message(network: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(network, copy)
    described = artifacts.description(copy)
    (copy / "program.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"program\.safetensors cannot be read by torch"):
        formats.get("executorch").layers(copy, described)
    (copy / "program.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no program\.safetensors, .*; export the checkpoint again"):
        formats.get("executorch").layers(copy, described)


def test_files_that_are_loaded_share_their_threads(network: Path) -> None:
    module = engines.get("executorch")
    first = module.load(network / "model.pte", threads=1)
    with pytest.raises(InputError, match="a file with 1 is loaded, so none can be loaded with 2"):
        module.load(network / "model.pte", threads=2)
    first.close()
    second = module.load(network / "model.pte", threads=2)
    assert second.describe()["threads"] == 2
    second.close()


def test_nothing_but_progress_reaches_the_terminal(
    exporting: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    assert [line.split()[0] for line in exporting[1].stderr.splitlines() if line.strip()] == ["done"]
