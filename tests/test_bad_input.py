"""Bad models, data and arguments: one message that says what, where and what to do, and the right exit code."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import run_toolkit
from tests.refusals import Done, assert_nothing_half_written, assert_refused, in_process
from tests.small_inputs import ROWS, csv_text, json_lines, prepare, tiny_checkpoint
from toolkit import checkpoint as checkpoints
from toolkit.engines.torch import load_model
from toolkit.errors import InputError
from toolkit.tasks.text_classification import TASK


@pytest.fixture
def convert(tmp_path: Path, data: Path) -> Iterator[Callable[..., Done]]:
    """`toolkit convert MODEL …` with a cache and an output of its own, which must both be clean afterwards."""
    output, cache = tmp_path / "out", tmp_path / "cache"

    def run(model: Path | str, *arguments: str | Path) -> Done:
        given = [] if "--data" in arguments else ["--data", data]
        return run_toolkit("convert", model, *given, *arguments, "-o", output, "--cache-dir", cache)

    yield run
    assert_nothing_half_written(output, cache)


# Models


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-20])


def garbage_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": 5}')


def cut_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"')


def config_of_wrong_types(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert", "max_position_embeddings": "many"}')


def own_code(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "own.Model"}}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_config, ["model is not a model: it has no config.json"]),
        (cut_weights, ["model.safetensors is damaged: it has 212 bytes, its header describes 232", "get it again"]),
        (garbage_weights, ["model.safetensors is not a safetensors file"]),
        (no_weights, ["model has no weights: no .safetensors file beside its config.json"]),
        (no_tokenizer, ["model has no tokenizer.json. Save it beside the weights"]),
        (broken_tokenizer, ["tokenizer.json is not a tokenizer file"]),
        (cut_config, ["config.json cannot be read as JSON", "line 1"]),
        (config_of_wrong_types, ["config.json is damaged", "max_position_embeddings"]),
        (own_code, ["needs code of its own", "auto_map in config.json"]),
    ],
)
def test_damaged_model(
    model: Path, convert: Callable[..., Done], damage: Callable[[Path], None], words: list[str]
) -> None:
    damage(model)
    assert_refused(convert(model), *words)


def test_model_that_is_not_there(convert: Callable[..., Done], tmp_path: Path) -> None:
    assert_refused(convert(tmp_path / "nowhere"), "nowhere does not exist. Give a folder with config.json")


def test_single_file_instead_of_a_model(convert: Callable[..., Done], tmp_path: Path, data: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    assert_refused(convert(tmp_path / "model.pt"), "model.pt is a pickle", "a model is a folder with config.json")
    assert_refused(convert(data), "data.csv is a single file", "a model is a folder with config.json")


def test_weights_that_do_not_fit_the_config(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "misfit", labels=["0", "1"])
    with pytest.raises(
        InputError, match=r"misfit .*its weights do not have the shapes that its config\.json describes"
    ):
        load_model(folder, TASK)


# Pickles


def pickled(folder: Path, state: object) -> Path:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as stream:
        pickle.dump(state, stream, protocol=2)
    return folder


class Payload:
    """What a malicious checkpoint carries: reading it with plain pickle runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def test_pickle_is_refused_then_read_as_tensors_only(model: Path, convert: Callable[..., Done], tmp_path: Path) -> None:
    import torch

    (model / "model.safetensors").unlink()
    torch.save({"embeddings.word_embeddings.weight": torch.ones(8, 4)}, model / "pytorch_model.bin")
    assert_refused(convert(model), "pytorch_model.bin", "run code", "--allow-pickle")
    allowed = convert(model, "--allow-pickle", "--dry-run")
    assert allowed.returncode == 0, allowed.stderr
    assert f"model: {model}" in allowed.stdout
    copies = list((tmp_path / "cache" / "imported").iterdir())
    assert len(copies) == 1
    assert checkpoints.inspect(copies[0], TASK).tensors == {"embeddings.word_embeddings.weight": ("F32", (8, 4))}
    assert not list(copies[0].glob("*.bin"))


def test_malicious_pickle_is_not_run(model: Path, convert: Callable[..., Done], tmp_path: Path) -> None:
    control, marker = tmp_path / "control", tmp_path / "marker"
    pickle.loads(pickle.dumps(Payload(control)))
    assert control.exists()  # the payload works where it is let
    pickled(model, {"embeddings.word_embeddings.weight": Payload(marker)})
    assert_refused(convert(model), "pytorch_model.bin")
    assert_refused(convert(model, "--allow-pickle"), "weights_only=True", "not loaded any other way")
    assert not marker.exists()
    assert not (tmp_path / "cache" / "imported").exists()


# Data


@pytest.mark.parametrize(
    ("name", "content", "arguments", "words"),
    [
        ("a.csv", "", [], ["a.csv is empty"]),
        ("a.csv", "text,label\n", [], ["a.csv has no rows"]),
        ("a.csv", "text,label\na,1\nb,1\n", [], ["a.csv: all rows have the same label (1)", "at least two"]),
        ("a.csv", "text,label\na,1\nb,\nc,NaN\nd,0\n", [], ["2 of 4 rows have no", "(rows 2, 3)", "--drop-missing"]),
        ("a.csv", "foo,bar\na,1\n", [], ["holds the text", "its columns are: foo, bar", "--text-column"]),
        ("a.csv", csv_text(ROWS), ["--text-column", "body"], ["no column 'body'", "its columns are: text, label"]),
        ("a.csv", csv_text(ROWS), ["--labels", "a,b,c"], ["--labels names 3 labels", "a.csv has 2: 0, 1"]),
        ("a.csv", csv_text(ROWS) + "a,b,c,d\n", [], ["a.csv cannot be read as csv", "line 14"]),
        ("a.csv", csv_text(ROWS[:4]), [], ["too few examples of '0' (2), '1' (2)", "at least 3"]),
        ("a.csv", csv_text(ROWS), ["--max-length", "1000"], ["--max-length 1000", "at most 512"]),
        ("a.csv", "text,label\na,1\ncafé,0\n".encode("latin-1"), [], ["a.csv:3: not UTF-8", "0xe9", "iconv"]),
        ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b",\n', [], ["a.jsonl", "line 2 is not JSON"]),
        ("a.parquet", b"PAR1", [], ["a.parquet cannot be read as parquet"]),
        ("a.xlsx", "a", [], ["a.xlsx", "suffix '.xlsx'", ".csv, .tsv, .jsonl"]),
    ],
)  # fmt: skip
def test_bad_data(
    model: Path, convert: Callable[..., Done], tmp_path: Path, name: str, content: str | bytes,
    arguments: list[str], words: list[str],
) -> None:  # fmt: skip
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert_refused(convert(model, "--data", path, *arguments), *words)


def test_data_that_is_a_folder_missing_or_not_given(model: Path, convert: Callable[..., Done], tmp_path: Path) -> None:
    assert_refused(convert(model, "--data", tmp_path), f"{tmp_path} is a folder; --data takes one .csv")
    assert_refused(convert(model, "--data", tmp_path / "none.csv"), "none.csv does not exist")
    assert_refused(run_toolkit("convert", model, "-o", tmp_path / "out"), "--data")


def test_labels_that_a_trained_model_does_not_know(convert: Callable[..., Done], tmp_path: Path) -> None:
    trained = tiny_checkpoint(tmp_path / "trained", labels=["bad", "good"])
    path = tmp_path / "a.csv"
    path.write_text(csv_text([("a", "Good"), ("b", "0"), ("c", "fine")]), encoding="utf-8")
    refused = convert(trained, "--data", path)
    assert_refused(refused, "a.csv: label 'fine' is none of the model's labels (bad, good)", "--finetune")


def test_rows_without_a_label_are_dropped_when_asked(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(csv_text([*ROWS, ("none", ""), ("nan", "NaN")]), encoding="utf-8")
    with pytest.raises(InputError, match=r"2 of 14 rows have no label"):
        prepare(model, path, tmp_path / "refused")
    report = prepare(model, path, tmp_path / "out", drop_missing=True)
    assert (report["used"], report["dropped"]) == (12, {"no label": 2})


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_a_line_of_a_megabyte_just_works(model: Path, tmp_path: Path, suffix: str) -> None:
    rows = [*ROWS, ("long " * 200_000, "1")]
    text = csv_text(rows) if suffix == ".csv" else json_lines([{"text": t, "label": v} for t, v in rows])
    path = tmp_path / f"a{suffix}"
    path.write_text(text, encoding="utf-8")
    report = prepare(model, path, tmp_path / "out")
    assert report["used"] == 13
    assert report["tokens"]["max"] >= 200_000
    assert report["encoding"]["max_length"] <= 512


# Arguments


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["convert", "m", "--data", "d", "--target", "jetsn"], ["Unknown target 'jetsn'. Did you mean 'jetson'?"]),
        (["convert", "m", "--max-latency", "fast"], ["--max-latency", "'fast'", "unit of ms, us, s"]),
        (["convert", "m", "--max-latency", "-5ms"], ["--max-latency", "'-5ms'", "positive"]),
        (["convert", "m", "--max-size", "0"], ["--max-size", "'0'", "positive"]),
        (["convert", "m", "--max-size", "5ms"], ["--max-size", "unit of mb, kb, gb"]),
        (["convert", "m", "--data", "d", "--min-score", "high"], ["--min-score 'high'", "like 0.83", "like 99%"]),
        (["convert", "m", "--data", "d", "--min-score", "120%"], ["--min-score '120%'", "0% to 100%"]),
        (["convert", "m", "--data", "d", "--task", "poetry"], ["Unknown task 'poetry'; known: text-classification"]),
        (["convert", "m", "--epochs", "0"], ["--epochs"]),
        (["convert", "m", "--where", "source"], ["--where", "COLUMN=VALUE"]),
        (["convert", "m", "--labels", "a,a"], ["--labels", "different names"]),
        (["convert"], ["Name a model", "`demo`"]),
        (["conver", "m"], ["No such command 'conver'. Did you mean 'convert'?"]),
        (["xyz"], ["No such command 'xyz'."]),
        (["bench", "nowhere"], ["nowhere is not a folder"]),
        (["verify", "nowhere"], ["nowhere is not a folder"]),
        (["inspect", "nowhere"], ["nowhere does not exist"]),
    ],
)
def test_bad_arguments(
    arguments: list[str], words: list[str], model: Path, data: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOOLKIT_CACHE", str(tmp_path / "cache"))
    given = [{"m": str(model), "d": str(data)}.get(argument, argument) for argument in arguments]
    before = set(tmp_path.iterdir())
    assert_refused(in_process(given, capsys), *words)
    assert set(tmp_path.iterdir()) - {tmp_path / "cache"} == before
