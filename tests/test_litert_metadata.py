"""What a LiteRT file says of itself: read here by the numbers of the fields in TensorFlow Lite Support's schema."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests import artifacts
from tests.conftest import PICTURE_SIDE
from toolkit import engines, steps, tasks
from toolkit.export import flatbuffer, litert_metadata
from toolkit.tasks.description import ModelDescription, TensorDescription


@pytest.fixture(scope="module")
def network_file(small_network: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network") / "float"
    steps.export(str(small_network), str(folder), engine="litert", lengths=[1], allow_code=True)
    return folder


@pytest.fixture(scope="module")
def encoder_file(tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.export(tuned, tmp_path_factory.mktemp("encoder"), "litert")


class Table:
    """A table of a flatbuffer; its fields by number."""

    def __init__(self, content: bytes, place: int) -> None:
        from flatbuffers.table import Table as Raw

        self.raw = Raw(content, place)

    def _at(self, number: int) -> int:
        return int(self.raw.Offset(4 + 2 * number))

    def text(self, number: int) -> str:
        return self.raw.String(self._at(number) + self.raw.Pos).decode() if self._at(number) else ""

    def byte(self, number: int) -> int:
        return int(self.raw.Bytes[self._at(number) + self.raw.Pos]) if self._at(number) else 0

    def table(self, number: int) -> Table:
        return Table(self.raw.Bytes, self.raw.Indirect(self._at(number) + self.raw.Pos))

    def tables(self, number: int) -> list[Table]:
        if not self._at(number):
            return []
        begin = self.raw.Vector(self._at(number))
        return [
            Table(self.raw.Bytes, self.raw.Indirect(begin + 4 * index))
            for index in range(self.raw.VectorLen(self._at(number)))
        ]

    def floats(self, number: int) -> list[float]:
        begin, count = self.raw.Vector(self._at(number)), self.raw.VectorLen(self._at(number))
        return np.frombuffer(self.raw.Bytes, np.float32, count, begin).tolist()


def metadata(path: Path) -> Table:
    """The description in a file, as tools look for it."""
    model = flatbuffer.read(path)
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[entry.buffer].data)
    assert content[4:8] == b"M001"
    return Table(content, int.from_bytes(content[:4], "little"))


def tensors(path: Path) -> tuple[list[Table], list[Table]]:
    """(the descriptions of the inputs, of the outputs) of the one graph that tools look at."""
    (graph,) = metadata(path).tables(3)
    return graph.tables(2), graph.tables(3)


def files(path: Path) -> dict[str, list[str]]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode().splitlines() for name in archive.namelist()}


def check_labels(output: Table, path: Path) -> list[str]:
    """The labels that an output names."""
    (file,) = output.tables(6)
    assert (file.text(0), file.byte(2)) == ("labels.txt", 2)
    return files(path)["labels.txt"]


def test_an_image_network_says_how_pixels_are_normalized(network_file: Path) -> None:
    path = network_file / "model.tflite"
    (image,), (logits,) = tensors(path)
    assert image.text(0) == "image"
    content = image.table(3)
    assert (content.byte(0), content.table(1).byte(0)) == (2, 2)  # an image, in grey
    (unit,) = image.tables(4)
    assert unit.byte(0) == 1
    mean, std = unit.table(1).floats(0), unit.table(1).floats(1)
    spec = {"channels": 1, "resize": {"height": PICTURE_SIDE, "width": PICTURE_SIDE}}
    pixels = np.random.default_rng(0).integers(0, 256, (PICTURE_SIDE, PICTURE_SIDE)).astype(np.uint8)
    wanted = tasks.get("image-classification").encoder(network_file, spec)(pixels)["pixel_values"]
    assert ((pixels - mean[0]) / std[0])[None, None] == pytest.approx(wanted, abs=1e-5)
    stats = image.table(5)
    assert (stats.floats(1), stats.floats(0)) == (
        pytest.approx([-mean[0] / std[0]]),
        pytest.approx([(255 - mean[0]) / std[0]]),
    )
    assert check_labels(logits, path) == ["dots", "stripes", "waves"]
    assert metadata(path).text(1) == "A model for image classification."
    assert metadata(path).text(7) == "1.1.0"


def test_colours_have_a_mean_each(tmp_path: Path) -> None:
    spec = {"size": {"height": 8, "width": 8}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(spec))
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Net"], "id2label": {"1": "b", "0": "a"}}))
    described = tasks.get("image-classification").describe(tmp_path, {})
    assert described.name == "Net"
    assert described.output.labels == ("a", "b")
    image = described.inputs["pixel_values"]
    assert image.channels == 3
    assert image.mean == pytest.approx((127.5, 102, 76.5))
    assert image.std == pytest.approx((51, 76.5, 102))


def test_an_encoder_brings_its_vocabulary(encoder_file: Path, tuned: Path) -> None:
    path = encoder_file / "model.tflite"
    inputs, (logits,) = tensors(path)
    graph = flatbuffer.read(path).subgraphs[0]
    names = {"input_ids": "ids", "attention_mask": "mask", "token_type_ids": "segment_ids"}
    places = [next(n for n in names if graph.tensors[i].name.decode().endswith(n)) for i in graph.inputs]
    assert [table.text(0) for table in inputs] == [names[place] for place in places]
    assert check_labels(logits, path) == ["negative", "positive"]
    tokens = files(path)["vocab.txt"]
    known = json.loads((tuned / "tokenizer.json").read_text())["model"]["vocab"]
    assert {token: number for number, token in enumerate(tokens)} == known
    (whole,) = metadata(path).tables(3)
    (unit,) = whole.tables(5)
    assert unit.byte(0) == 4  # BertTokenizerOptions
    assert unit.table(1).tables(0)[0].text(0) == "vocab.txt"
    assert whole.tables(4)[0].byte(2) == 5


def test_a_table_says_what_its_numbers_are(tmp_path: Path) -> None:
    numeric = {"age": {"median": 1.0, "mean": 1.0, "std": 1.0, "indicator": True}}
    spec = {"numeric": numeric, "categorical": {"job": ["clerk", "cook"]}}
    (tmp_path / "preprocessor.json").write_text(json.dumps(spec))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "module", "id2label": {"0": "no", "1": "yes"}}))
    described = tasks.get("tabular").describe(tmp_path, {})
    assert described.name == "tabular"
    features = described.inputs["features"]
    assert features.labels == ("age", "age is missing", "job = clerk", "job = cook")
    assert features.labels_file == "features.txt"


@pytest.mark.parametrize("method", ["dynamic-int8", "integer-int8"])
def test_quantizing_keeps_it(
    method: str, network_file: Path, encoder_file: Path, pictures: Path, tmp_path: Path
) -> None:
    source = network_file if method == "integer-int8" else encoder_file
    options = {"data": str(pictures)} if method == "integer-int8" else None
    steps.quantize(str(source), str(tmp_path / "out"), method=method, options=options)
    before, after = source / "model.tflite", tmp_path / "out" / "model.tflite"
    assert bytes(metadata(after).raw.Bytes) == bytes(metadata(before).raw.Bytes)
    assert files(after) == files(before)
    assert len([e for e in flatbuffer.read(after).metadata if e.name == b"TFLITE_METADATA"]) == 1
    artifact = artifacts.description(tmp_path / "out")
    assert artifact["size_bytes"] == after.stat().st_size
    assert engines.get("litert").load(after).describe()["signatures"]


def test_the_archive_is_the_same_bytes_at_any_time(network_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.tflite"
    path.write_bytes(b"model")
    litert_metadata.append_files(path, {"b.txt": b"2", "a.txt": b"1"})
    with zipfile.ZipFile(path) as archive:
        assert [(entry.filename, entry.date_time, entry.compress_type) for entry in archive.infolist()] == [
            ("a.txt", (1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED), ("b.txt", (1980, 1, 1, 0, 0, 0), zipfile.ZIP_STORED)
        ]  # fmt: skip
    assert path.read_bytes().startswith(b"model")
    assert litert_metadata.appended_files(path) == {"a.txt": b"1", "b.txt": b"2"}
    bare = tmp_path / "bare.tflite"
    bare.write_bytes(b"model")
    litert_metadata.append_files(bare, {})
    assert bare.read_bytes() == b"model"
    assert litert_metadata.appended_files(bare) == {}


def test_what_is_not_known_is_left_out(network_file: Path, tmp_path: Path) -> None:
    """An output of vectors has no labels, an input that the task says nothing of has its name."""
    model = flatbuffer.read(network_file / "model.tflite")
    model.metadata = [entry for entry in model.metadata if entry.name != b"TFLITE_METADATA"]
    bare = ModelDescription("name", "", TensorDescription("output", "A vector."))
    assert litert_metadata.add(model, bare) == {}
    flatbuffer.write(tmp_path / "model.tflite", model)
    (image,), (output,) = tensors(tmp_path / "model.tflite")
    assert (image.text(0), image.text(1), image.tables(4)) == ("pixel_values", "", [])
    assert (output.text(0), output.tables(6)) == ("output", [])
