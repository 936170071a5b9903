"""Files and folders that are whole or absent, the hashes they are known by, and the disk's refusals in words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import storage
from toolkit.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    destination = tmp_path / "deep" / "out"
    with storage.publish_folder(destination) as aside:
        (aside / "a").write_text("1")
        assert not destination.exists()
        assert aside.parent == destination.parent  # one rename, no copy
    assert (destination / "a").read_text() == "1"
    assert destination.stat().st_mode & 0o777 == 0o755
    assert names(destination.parent) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), storage.publish_folder(tmp_path / "out") as aside:
        (aside / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_a_replaced_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    destination.mkdir()
    (destination / "old").write_text("old")
    with pytest.raises(ValueError), storage.publish_folder(destination, replace=True) as aside:
        (aside / "new").write_text("new")
        raise ValueError
    assert names(tmp_path) == ["out"]
    assert names(destination) == ["old"]
    with storage.publish_folder(destination, replace=True) as aside:
        (aside / "new").write_text("new")
        assert names(destination) == ["old"]
    assert names(tmp_path) == ["out"]
    assert names(destination) == ["new"]


def test_a_folder_that_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    destination = tmp_path / "out"
    with pytest.raises(OSError), storage.publish_folder(destination) as aside:
        (aside / "mine").write_text("1")
        destination.mkdir()
        (destination / "theirs").write_text("2")
    assert names(tmp_path) == ["out"]
    assert names(destination) == ["theirs"]


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    storage.write_atomic(path, "old")
    before = path.stat().st_ino
    storage.write_atomic(path, b"new")
    assert path.read_text() == "new"
    assert path.stat().st_ino != before  # another file moved over it, never a half-written one
    assert path.stat().st_mode & 0o777 == 0o644
    assert names(tmp_path) == ["a.json"]


def test_a_file_that_cannot_be_written_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    storage.write_atomic(path, "old")
    with pytest.raises(TypeError):
        storage.write_atomic(path, 5)  # type: ignore[arg-type]
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_json_is_ordered_and_keeps_its_letters(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", {"b": "é", "a": 1})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "a": 1,\n  "b": "é"\n}\n'


def test_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert storage.sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert storage.sha256_json({"a": 1, "b": [2]}) == storage.sha256_json({"b": [2], "a": 1})
    assert storage.sha256_json([1, 2]) != storage.sha256_json([2, 1])
    before = storage.sha256_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert storage.sha256_folder(tmp_path) != before  # the name belongs to the content
    (tmp_path / "b").rename(tmp_path / "a")
    assert storage.sha256_folder(tmp_path) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "full"), "No space left on the disk of /out while writing"),
        (OSError(errno.EDQUOT, "quota"), "No space left on the disk of /out while writing"),
        (
            RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "No space left on the disk of /out",
        ),
        (OSError(errno.EROFS, "ro"), "Cannot write to /out while writing: Read-only file system"),
        (OSError(errno.EACCES, "no"), "Cannot write to /out while writing: Permission denied"),
    ],
)
def test_the_disks_refusals_become_one_message(error: Exception, words: str) -> None:
    with pytest.raises(InputError, match=words), storage.explained("writing", Path("/out")):
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOENT, "gone"), ValueError("no"), InputError("mine"), KeyError("k")])
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, storage.explained("writing", Path("/out")):
        raise error
    assert caught.value is error


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """/dev/full answers every write as a full disk does."""
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full on this system")
    with pytest.raises(InputError, match="No space left"), storage.explained("writing", tmp_path):
        Path("/dev/full").write_text("a")


def test_a_disk_that_fills_up_under_a_copy_is_named(tmp_path: Path) -> None:
    """A file of the copy is /dev/full."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    (source / "inner").mkdir(parents=True)
    (source / "inner" / "file").write_text("content")
    copy.mkdir()
    storage.copy_folder(source, copy)
    assert (copy / "inner" / "file").read_text() == "content"
    if not os.access("/dev/full", os.W_OK):
        pytest.skip("no /dev/full on this system")
    (copy / "inner" / "file").unlink()
    (copy / "inner" / "file").symlink_to("/dev/full")
    with pytest.raises(InputError, match="No space left"), storage.explained("writing", copy):
        storage.copy_folder(source, copy)


def test_leftovers_of_killed_writers_are_swept_and_those_of_living_ones_kept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, living = tmp_path / f".out.partial-{gone.pid}-x", tmp_path / f".out.partial-{os.getpid()}-x"
    dead.mkdir()
    living.mkdir()
    with storage.publish_folder(tmp_path / "out") as aside:
        (aside / "file").write_text("whole")
    assert not dead.exists()
    assert living.exists()
