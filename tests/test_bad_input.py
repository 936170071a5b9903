"""Bad input: one message that says what, where and what to do, the right exit code, and nothing half-written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests.conftest import TRAINING, TRAINING_OPTIONS, run_toolkit
from tests.small_inputs import ROWS, csv_text, json_lines, prepare, tiny_checkpoint
from toolkit import checkpoint as checkpoints
from toolkit import cli
from toolkit.engines.torch import load_model
from toolkit.errors import InputError
from toolkit.runtime import manifest as manifests

Done = subprocess.CompletedProcess[str]


def assert_refused(done: Done, *words: str, code: int = 2) -> None:
    """The command ended with `code` and one message that holds all the words."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Internal error" not in done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(messages) == 1, done.stderr
    for word in words:
        assert word in messages[0]
    assert done.stderr.count(messages[0].removeprefix("Error: ")) == 1  # said once
    assert done.stdout == ""


def assert_nothing_half_written(output: Path, cache: Path | None = None) -> None:
    assert not output.exists()
    if output.parent.is_dir():
        assert [path.name for path in output.parent.iterdir() if ".partial-" in path.name] == []
    if cache is not None and cache.exists():
        assert list((cache / "work").iterdir()) == []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text(csv_text(ROWS), encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "model")


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
        load_model(folder, "AutoModelForSequenceClassification")


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
    assert checkpoints.inspect(copies[0]).tensors == {"embeddings.word_embeddings.weight": ("F32", (8, 4))}
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
    assert report["max_length"] <= 512


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


def in_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Done:
    """The command line without a process of its own, for what ends before anything is run."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), said.out, said.err)


# Output


def test_an_output_that_exists_is_kept(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "notes"
    output.mkdir()
    (output / "precious.txt").write_text("mine")
    given = ("convert", model, "--data", data, "-o", output)
    assert_refused(run_toolkit(*given), "notes exists already", "--overwrite")
    assert_refused(run_toolkit(*given, "--overwrite"), "notes exists and is not a bundle")
    assert [path.name for path in output.iterdir()] == ["precious.txt"]
    assert_refused(run_toolkit("convert", model, "--data", data, "-o", data, "--overwrite"), "is not a bundle")
    assert data.read_text() == csv_text(ROWS)


def test_output_below_a_file_or_with_an_impossible_name(model: Path, data: Path, tmp_path: Path) -> None:
    for output in (data / "out", data / "deep" / "out", Path("/proc/out"), tmp_path / ("n" * 250)):
        refused = run_toolkit("convert", model, "--data", data, "-o", output, "--cache-dir", tmp_path / "cache")
        assert_refused(refused, f"Cannot write to {output}", "Choose")
    assert_nothing_half_written(tmp_path / "out", tmp_path / "cache")


def test_cache_that_cannot_be_made(model: Path, data: Path, tmp_path: Path) -> None:
    for cache in (data, data / "cache", Path("/proc/cache")):
        refused = run_toolkit("convert", model, "--data", data, "-o", tmp_path / "out", "--cache-dir", cache)
        assert_refused(refused, f"Cannot make the cache {cache}", "--cache-dir")


def on_mount(folder: Path, options: str, *arguments: str | Path) -> Done:
    """The command line while `folder` is a small or read-only disk; stdout is what stands in the folder then."""
    prefix = ["unshare", "-m" if os.geteuid() == 0 else "-mr"]
    mount = f"mount -t tmpfs -o {options} tmpfs '{folder}'"
    folder.mkdir()
    tried = subprocess.run([*prefix, "sh", "-c", mount], capture_output=True, check=False)
    if tried.returncode != 0:
        pytest.skip("this system lets nobody mount a tmpfs: " + tried.stderr.decode().strip())
    script = f"{mount} && \"$@\" >/dev/null; code=$?; find '{folder}' -mindepth 1; exit $code"
    return subprocess.run(
        [*prefix, "sh", "-c", script, "sh", sys.executable, "-m", "toolkit", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)},
        timeout=300,
        check=False,
    )


def listed(done: Done) -> tuple[Done, list[str]]:
    """The command without and with what the folder held."""
    return subprocess.CompletedProcess(done.args, done.returncode, "", done.stderr), done.stdout.splitlines()


def test_read_only_disk(model: Path, data: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    given = ("convert", model, "--data", data, "-o", disk / "out", "--cache-dir", tmp_path / "cache")
    done, left = listed(on_mount(disk, "ro", *given))
    assert_refused(done, f"Cannot write to {disk / 'out'}: Read-only file system", "Choose")
    assert left == []


def test_no_space_for_the_cache(model: Path, sentences: list[tuple[str, str]], tmp_path: Path) -> None:
    disk, data = tmp_path / "disk", tmp_path / "many.csv"
    data.write_text(json.dumps([{"text": text, "label": label} for text, label in sentences[:1000]]))
    data = data.rename(data.with_suffix(".json"))
    given = ("convert", model, "--data", data, "-o", tmp_path / "out", "--cache-dir", disk / "cache")
    done, left = listed(on_mount(disk, "size=64k", *given))
    assert_refused(done, "No space left on the disk", "'prepare'", "Free some space")
    assert [path for path in left if "/work/" in path or "/stages/" in path] == []
    assert_nothing_half_written(tmp_path / "out")


CACHED = ("--target", "host", *TRAINING_OPTIONS, "--min-score", "97%")  # the options of the fixture `converted`


@pytest.mark.usefixtures("converted")
def test_no_space_for_the_bundle(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    given = ("convert", encoder, "--data", reviews, *CACHED, "-o", disk / "out")
    done, left = listed(on_mount(disk, "size=2m", *given))
    assert_refused(done, f"No space left on the disk of {disk / 'out'} while writing the bundle", "Free some space")
    assert left == []


@pytest.mark.usefixtures("converted")
def test_output_with_spaces_and_letters_of_any_script(encoder: Path, reviews: Path, tmp_path: Path) -> None:
    output = tmp_path / "mein Bündel 模型 'ü'"
    done = run_toolkit("convert", encoder, "--data", reviews, *CACHED, "-o", output)
    assert done.returncode == 0, done.stderr
    assert toolkit.load(output)("a quiet, brilliant film")["label"] in ("negative", "positive")
    verified = run_toolkit("verify", output)
    assert verified.returncode == 0, verified.stderr
    benched = run_toolkit("bench", output, "--seconds", "0.1", "--json")
    assert benched.returncode == 0, benched.stderr
    assert json.loads(benched.stdout)["bundle"] == output.name


@pytest.mark.usefixtures("converted")
def test_overwrite_replaces_a_bundle(encoder: Path, reviews: Path, bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    shutil.copytree(bundle, output)
    (output / "left from before").write_text("")
    (output / "tokenizer.json").write_text("damaged")
    toolkit.convert(
        encoder, data=str(reviews), output=str(output), min_score="97%", **TRAINING, overwrite=True,
    )  # fmt: skip
    manifests.verify_files(manifests.read(output))
    assert not (output / "left from before").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# Ctrl-C


@pytest.mark.usefixtures("converted")
def test_interrupt_leaves_nothing_and_the_next_run_goes_on(
    encoder: Path, reviews: Path, cache_folder: Path, tmp_path: Path
) -> None:
    """Everything is cached but the answers of the float checkpoint, which take seconds: Ctrl-C falls into them."""
    cache, output = tmp_path / "cache", tmp_path / "out"
    (cache / "stages").mkdir(parents=True)
    for entry in (cache_folder / "stages").iterdir():
        receipt = json.loads((entry / "receipt.json").read_text())
        if receipt["title"] != "evaluate the float checkpoint":
            (cache / "stages" / entry.name).symlink_to(entry)
    arguments = ["convert", str(encoder), "--data", str(reviews), *CACHED, "-o", str(output), "--cache-dir", str(cache)]
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(toolkit.__file__).parent.parent)},
        start_new_session=True,
    )
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if "done finetune" in line:
            os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to the whole group
            break
    stdout, rest = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    assert "Interrupted. Finished stages are kept" in rest
    assert "Traceback" not in rest
    assert stdout == ""
    assert_nothing_half_written(output, cache)
    again = run_toolkit(*arguments)
    assert again.returncode == 0, again.stderr
    assert "finetune (from the cache)" in again.stderr
    assert "evaluate the float checkpoint (from the cache)" not in again.stderr
    manifests.verify_files(manifests.read(output))


# Bundles


def flip_a_byte(folder: Path) -> None:
    path = next(path for path in folder.iterdir() if path.suffix in (".onnx", ".tflite"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def cut_manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:300])


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    shutil.move(folder / "tokenizer.json", outside)
    (folder / "tokenizer.json").symlink_to(outside)


def changed(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Damage done to the manifest by somebody who also makes its content hash fit again."""

    def damage(folder: Path) -> None:
        path = folder / "manifest.json"
        data = json.loads(path.read_text(encoding="utf-8"))
        change(data)
        if all(isinstance(entry, dict) for entry in data["files"].values()):
            data["content_hash"] = manifests.content_hash(data)
        path.write_text(json.dumps(data), encoding="utf-8")

    return damage


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_byte, ["model.", "was changed: its SHA-256 is not the manifest's"]),
        (remove_tokenizer, ["file 'tokenizer.json' is missing"]),
        (cut_manifest, ["manifest.json cannot be read as JSON"]),
        (link_out, ["'tokenizer.json' leads out of the bundle by a link"]),
        (changed(lambda m: m.update(schema_version=2)), ["schema version 2", "reads up to 1", "Update the toolkit"]),
        (changed(lambda m: m["artifact"].update(path="../x")), ["'../x' does not stay inside the bundle"]),
        (changed(lambda m: m["preprocessing"].update(path="a/../../x")), ["does not stay inside the bundle"]),
        (changed(lambda m: m["artifact"].update(path="/etc/passwd")), ["'/etc/passwd' does not stay inside"]),
        (changed(lambda m: m["files"].update({"../x": {"sha256": "0", "bytes": 1}})), ["'../x' does not stay inside"]),
        (changed(lambda m: m.update(labels="negative")), ["key 'labels' is missing or is not a list"]),
        (changed(lambda m: m.pop("task")), ["key 'task' is missing or is not a str"]),
        (changed(lambda m: m["artifact"].update(path=5)), ["path 5 does not stay inside"]),
        (changed(lambda m: m["files"].update({"tokenizer.json": "abc"})), ["'tokenizer.json' in 'files' has no"]),
    ],
)  # fmt: skip
def test_damaged_bundle_is_refused_by_all_that_read_it(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None], words: list[str],
) -> None:  # fmt: skip
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    damage(folder)
    with pytest.raises(InputError) as caught:
        toolkit.load(folder)
    assert all(word in str(caught.value) for word in words)
    for verb in ("verify", "bench", "inspect"):
        assert_refused(in_process([verb, str(folder)], capsys), *words)


def test_a_changed_manifest_is_noticed_by_its_own_hash(bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    path = folder / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["labels"].reverse()
    path.write_text(json.dumps(data), encoding="utf-8")
    assert_refused(run_toolkit("verify", folder), "manifest.json was changed: its content hash does not fit")


def test_damaged_metrics_stop_only_inspect(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    changed(lambda m: m.update(metrics=None))(folder)
    assert_refused(in_process(["inspect", str(folder)], capsys), "key 'metrics' is missing or damaged")
    assert toolkit.load(folder)("a film")["label"] in ("negative", "positive")


def test_a_folder_without_a_manifest_is_no_bundle(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    no_manifest(folder)
    for verb in ("verify", "bench"):
        assert_refused(in_process([verb, str(folder)], capsys), "is not a bundle: it has no manifest.json")
    assert_refused(in_process(["inspect", str(folder)], capsys), "it has no config.json")
