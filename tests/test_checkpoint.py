"""Checkpoints: what is read from a folder without loading it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_inputs import tiny_checkpoint
from toolkit import checkpoint
from toolkit.errors import InputError
from toolkit.tasks.text_classification import TASK


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny") / "model.safetensors"


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


# What is read


def test_untrained_checkpoint(tiny: Path) -> None:
    found = checkpoint.inspect(tiny, TASK)
    assert found.tensors == {"embeddings.word_embeddings.weight": ("F32", (8, 4))}
    assert found.parameters == 32
    assert found.size_bytes == (tiny / "model.safetensors").stat().st_size
    assert found.architecture == "BertModel"
    assert found.labels is None
    assert found.model_limit == 512


def test_labels_of_a_trained_classifier_are_in_index_order(tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(11)]
    assert checkpoint.inspect(tiny_checkpoint(tmp_path / "a", labels=names), TASK).labels == names


def test_a_classifier_without_its_head_is_untrained(tiny: Path) -> None:
    change_config(tiny, architectures=["BertForSequenceClassification"], id2label={"0": "a", "1": "b"})
    assert checkpoint.inspect(tiny, TASK).labels is None


def test_roberta_counts_two_positions_less(tiny: Path) -> None:
    change_config(tiny, model_type="roberta", max_position_embeddings=514)
    assert checkpoint.inspect(tiny, TASK).model_limit == 512


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_hash_follows_what_the_model_is(tiny: Path, name: str) -> None:
    before = checkpoint.inspect(tiny, TASK).sha256
    (tiny / "README.md").write_text("words about it")
    assert checkpoint.inspect(tiny, TASK).sha256 == before
    if name == "model.safetensors":
        data = bytearray((tiny / name).read_bytes())
        data[-1] ^= 1
        (tiny / name).write_bytes(data)
    else:
        (tiny / name).write_text((tiny / name).read_text() + " ")
    assert checkpoint.inspect(tiny, TASK).sha256 != before


def test_sharded_weights_are_read_by_their_index(tiny: Path) -> None:
    from safetensors.numpy import save_file

    (tiny / "model.safetensors").unlink()
    for number in (1, 2):
        save_file({f"layer.{number}": np.zeros(number, np.float16)}, tiny / f"model-{number}.safetensors")
    index = {"weight_map": {f"layer.{number}": f"model-{number}.safetensors" for number in (1, 2)}}
    (tiny / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint.inspect(tiny, TASK).tensors == {"layer.1": ("F16", (1,)), "layer.2": ("F16", (2,))}
    (tiny / "model-2.safetensors").unlink()
    with pytest.raises(InputError, match=r"the index names model-2\.safetensors, which is not there"):
        checkpoint.inspect(tiny, TASK)


# What is refused


@settings(deadline=None)
@given(st.data())
def test_every_cut_of_a_safetensors_file_is_noticed(
    weights: Path, tmp_path_factory: pytest.TempPathFactory, data: Any
) -> None:
    whole = weights.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(whole[:cut])
    with pytest.raises(InputError, match=r"cut\.safetensors"):
        checkpoint.read_header(path)


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_garbage_is_no_safetensors_file(tmp_path_factory: pytest.TempPathFactory, junk: bytes, sized: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "junk.safetensors"
    path.write_bytes(len(junk).to_bytes(8, "little") + junk if sized else junk)
    if not (sized and junk.strip() == b"{}"):
        with pytest.raises(InputError, match=r"junk\.safetensors"):
            checkpoint.read_header(path)


@pytest.mark.parametrize("header", ["[]", "5", '"a"', "null", '{"a": 1}', '{"a": {"data_offsets": ["x"]}}'])
def test_header_of_the_wrong_shape(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(InputError, match="not a safetensors file"):
        checkpoint.read_header(path)


@pytest.mark.parametrize(
    "index", ["[]", "{", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": "../tiny/model.safetensors"}}',
              '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "/etc/passwd"}}'],
)  # fmt: skip
def test_damaged_index_or_one_that_leads_out(tiny: Path, index: str) -> None:
    (tiny / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json"):
        checkpoint.inspect(tiny, TASK)


@pytest.mark.parametrize(
    "values",
    [{"id2label": {"a": "x"}}, {"id2label": ["x"]}, {"max_position_embeddings": "many"}, {"architectures": 5}],
)
def test_config_with_values_of_the_wrong_type(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny", labels=["a", "b"], **values)
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        checkpoint.inspect(folder, TASK)


# Pickles


@pytest.fixture
def pickled(tiny: Path) -> Path:
    import torch

    (tiny / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": torch.arange(32.0).reshape(8, 4)}, tiny / "pytorch_model.bin")
    return tiny


def test_pickle_is_copied_to_safetensors_once(pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.numpy import load_file

    folder = checkpoint.from_pickle(pickled, tmp_path / "cache")
    expected = np.arange(32, dtype=np.float32).reshape(8, 4)
    assert np.array_equal(load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"], expected)
    assert checkpoint.inspect(folder, TASK).parameters == 32
    assert not list(folder.glob("*.bin"))
    monkeypatch.delattr(torch, "load")
    assert checkpoint.from_pickle(pickled, tmp_path / "cache") == folder


def test_other_pickles_of_a_training_folder_are_not_read(pickled: Path, tmp_path: Path) -> None:
    (pickled / "optimizer.pt").write_bytes(b"not even a pickle")
    assert checkpoint.inspect(checkpoint.from_pickle(pickled, tmp_path / "cache"), TASK).parameters == 32


def test_a_folder_with_safetensors_or_without_weights_is_left_as_it_is(tiny: Path, tmp_path: Path) -> None:
    shutil.copy(tiny / "model.safetensors", tiny / "pytorch_model.bin")
    assert checkpoint.from_pickle(tiny, tmp_path / "cache") == tiny
    for name in ("model.safetensors", "pytorch_model.bin"):
        (tiny / name).unlink()
    assert checkpoint.from_pickle(tiny, tmp_path / "cache") == tiny
    with pytest.raises(InputError, match="has no weights"):
        checkpoint.inspect(tiny, TASK)


@pytest.mark.parametrize("content", ["junk", "list"])
def test_a_pickle_that_is_no_state_dict_is_refused_and_leaves_nothing(
    pickled: Path, tmp_path: Path, content: str
) -> None:
    import torch

    if content == "junk":
        (pickled / "pytorch_model.bin").write_bytes(b"junk")
    else:
        torch.save([torch.zeros(2)], pickled / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        checkpoint.from_pickle(pickled, tmp_path / "cache")
    assert not (tmp_path / "cache" / "imported").exists()
