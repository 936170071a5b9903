"""Outputs that cannot or must not be written, full disks and Ctrl-C: a clear message, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import toolkit
from tests.conftest import TRAINING, TRAINING_OPTIONS, run_toolkit
from tests.refusals import Done, assert_nothing_half_written, assert_refused
from tests.small_inputs import ROWS, csv_text
from toolkit.runtime import manifest as manifests


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
    assert json.loads(benched.stdout)["bundle"]["name"] == output.name


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
