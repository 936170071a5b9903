"""ONNX files are read without trust: what is damaged, incomplete or not to be run is refused in one message."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import run_toolkit
from toolkit import graphs, tasks
from toolkit.errors import InputError
from toolkit.export import onnx_file


def small(*nodes: Any, opset: int = 17, domains: tuple[str, ...] = (), width: int = 4) -> Any:
    """A model from `x` [batch, 4] to `y`, with a weight `w`."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(np.arange(4 * width, dtype=np.float32).reshape(4, width), "w")],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def written(model: Any, path: Path, external: str | None = None) -> Path:
    if external is None:
        path.write_bytes(model.SerializeToString())
    else:
        onnx.save_model(model, str(path), save_as_external_data=True, location=external, size_threshold=0)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        onnx_file.check(path, onnx_file.read(path))
    return str(caught.value)


def test_a_sound_file_is_read(tmp_path: Path) -> None:
    path = written(small(), tmp_path / "ein Modell ü.onnx", external="weights.bin")
    model = onnx_file.read(path)
    onnx_file.check(path, model)
    assert numpy_helper.to_array(model.graph.initializer[0]).sum() == 120
    bare = onnx_file.read(path, weights=False)
    assert onnx_file.data_files(path, bare) == ["weights.bin"]
    assert onnx_file.stored_bytes(bare.graph.initializer[0]) == 64


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\x00\x01\x02 no protobuf", "not an ONNX file, or it is damaged"),
        (b"{}", "not an ONNX file, or it is damaged"),
        (small().SerializeToString()[:-40], "not an ONNX file, or it is damaged"),
        (onnx.ModelProto().SerializeToString() + b"\x08\x08", "holds no graph"),
    ],
)
def test_damaged_files(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    assert said in refusal(tmp_path / "model.onnx")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.onnx")
    assert "does not exist" in refusal(tmp_path)


def test_external_weights_that_are_missing_or_cut_off(tmp_path: Path) -> None:
    path = written(small(), tmp_path / "model.onnx", external="weights.bin")
    (tmp_path / "weights.bin").write_bytes(b"1234")
    assert "ends at byte 64 of 'weights.bin', which has 4" in refusal(path)
    (tmp_path / "weights.bin").unlink()
    assert "has its weights in 'weights.bin', which is not beside it" in refusal(path)


@pytest.mark.parametrize("place", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "link.bin", ""])
def test_external_weights_outside_the_folder(place: str, tmp_path: Path) -> None:
    inside = tmp_path / "model"
    inside.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (inside / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = written(small(), inside / "model.onnx", external="weights.bin")
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = place
    written(model, path)
    assert "outside the model's folder; refused" in refusal(path)


def test_external_weights_inside_an_attribute_are_looked_at_too(tmp_path: Path) -> None:
    tensor = TensorProto(name="hidden", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret.bin")
    constant = helper.make_node("Constant", [], ["c"])
    constant.attribute.append(onnx.AttributeProto(name="value", type=onnx.AttributeProto.TENSOR, t=tensor))
    model = small(constant, helper.make_node("Add", ["x", "c"], ["y"]))
    assert "'hidden'" in refusal(written(model, tmp_path / "model.onnx"))


NODES = {
    "circle": [helper.make_node("Add", ["x", "b"], ["a"], "first"), helper.make_node("Relu", ["a"], ["b"], "second"),
               helper.make_node("Relu", ["b"], ["y"], "third")],
    "reads nothing": [helper.make_node("Add", ["x", "nowhere"], ["y"], "sum")],
    "of no library": [helper.make_node("Wonder", ["x"], ["y"], "wonder", domain="my.company")],
    "unknown operator": [helper.make_node("Wonder", ["x"], ["y"], "wonder")],
    "of the past": [helper.make_node("Upsample", ["x", "w"], ["y"], "up")],
}  # fmt: skip
SAID = {
    "circle": "runs in a circle, among others through 'first'",
    "reads nothing": "'sum' reads 'nowhere', which nothing makes",
    "of no library": "my.company:Wonder (wonder) is neither of ONNX nor of ONNX Runtime",
    "unknown operator": "ONNX has no operator Wonder in opset 17 (wonder)",
    "of the past": "Upsample was taken out of ONNX",
}


@pytest.mark.parametrize("name", NODES)
def test_graphs_that_cannot_run(name: str, tmp_path: Path) -> None:
    path = written(small(*NODES[name], domains=("my.company",)), tmp_path / "model.onnx")
    assert SAID[name] in refusal(path)


def test_an_opset_that_nobody_knows(tmp_path: Path) -> None:
    assert "is in opset 99; the newest one that is known" in refusal(written(small(opset=99), tmp_path / "model.onnx"))


def test_a_graph_out_of_order_is_put_in_order(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"], "second"), helper.make_node("MatMul", ["x", "w"], ["a"], "first")]
    path = written(small(*nodes), tmp_path / "model.onnx")
    model = onnx_file.read(path)
    onnx_file.check(path, model)
    assert [node.name for node in model.graph.node] == ["first", "second"]
    onnx.checker.check_model(model)


def test_large_models_have_their_weights_beside_them(tmp_path: Path) -> None:
    """The limit is lowered, so that two thousand bytes are many."""
    model = small(width=600)
    onnx_file.save(model, tmp_path / "model.onnx", largest=2000)
    assert onnx_file.data_files(tmp_path / "model.onnx", model) == ["model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < 2000
    again = onnx_file.read(tmp_path / "model.onnx")
    assert numpy_helper.to_array(again.graph.initializer[0])[3, 599] == 2399


def test_what_nothing_reads_is_dropped_but_what_an_inner_graph_reads_is_not() -> None:
    def branch(weight: str, name: str) -> Any:
        value = helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("MatMul", ["x", weight], [name])], name, [], [value])

    model = small(helper.make_node("If", ["yes"], ["y"], then_branch=branch("w", "a"), else_branch=branch("w", "b")))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(9), "unread"))
    onnx_file.drop_unread(model)
    assert {tensor.name for tensor in model.graph.initializer} == {"w", "yes"}


@pytest.mark.parametrize("verb", ["convert", "quantize", "export"])
def test_every_verb_refuses_alike(verb: str, tmp_path: Path) -> None:
    path = tmp_path / "kaputt ü.onnx"
    path.write_bytes(b"\x00 no protobuf")
    np.savez(tmp_path / "data.npz", x=np.zeros((1, 4), np.float32))
    arguments = [verb, str(path), "-o", str(tmp_path / "out")]
    if verb != "export":
        arguments += ["--data", str(tmp_path / "data.npz")]
    if verb != "convert":
        arguments += ["--engine", "onnxruntime"]
    done = run_toolkit(*arguments)
    assert done.returncode == 2
    assert "is not an ONNX file, or it is damaged" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_imported_file_does_not_follow_its_source(tmp_path: Path) -> None:
    """The cache has a copy of the weights that lie elsewhere: the original may change or go."""
    path = written(small(), tmp_path / "model.onnx", external="weights.bin")
    folder = graphs.imported(path, tasks.get("tensors"), None, None, tmp_path / "cache")
    (tmp_path / "weights.bin").unlink()
    assert numpy_helper.to_array(onnx_file.read(folder / "model.onnx").graph.initializer[0]).sum() == 120
