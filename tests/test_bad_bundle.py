"""Damaged bundles: refused by everything that reads them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests.conftest import run_toolkit
from tests.refusals import assert_refused, in_process
from toolkit import bundle as bundles
from toolkit.errors import InputError
from toolkit.runtime import manifest as manifests


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
        (changed(lambda m: m.update(schema_version=3)), ["schema version 3", "reads up to 2", "Update the toolkit"]),
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


def test_a_bundle_of_the_first_schema_still_answers(bundle: Path, tmp_path: Path) -> None:
    """Its golden examples had another form: it loads and predicts, and cannot be replayed."""
    folder = tmp_path / "bundle"
    shutil.copytree(bundle, folder)
    data = json.loads((folder / manifests.FILE_NAME).read_text())
    data["schema_version"] = 1
    data["content_hash"] = manifests.content_hash(data)
    (folder / manifests.FILE_NAME).write_text(json.dumps(data))
    assert toolkit.load(folder)("a quiet, brilliant film")["label"] in ("negative", "positive")
    with pytest.raises(InputError, match="written by an older version"):
        bundles.verify(folder)
