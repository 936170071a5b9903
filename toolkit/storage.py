"""Files that are either whole or absent: written aside, fsynced, renamed. And the hashes they are known by."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

_CHUNK = 1 << 20


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of one file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex SHA-256 over the relative names and contents of all files below `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return sha256_json({path.relative_to(folder).as_posix(): sha256_file(path) for path in files})


def sha256_path(path: Path) -> str:
    """Hash of a file, or of a folder's files."""
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def fsync_tree(folder: Path) -> None:
    """Flush every file below `folder`, and the folders themselves, to the disk."""
    for root, _, names in os.walk(folder):
        for name in [*names, "."]:
            descriptor = os.open(Path(root) / name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content` in one step; on any failure the old file, or its absence, stays."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        Path(aside).chmod(0o644)
        Path(aside).replace(path)
        _fsync_folder(path.parent)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError for what is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return found


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of indented, key-ordered JSON."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _no_space(action: str, path: Path) -> InputError:
    return InputError(
        f"No space left on the disk of {path} while {action}; nothing was left half-written. "
        "Free some space or choose another folder."
    )


@contextlib.contextmanager
def explained(action: str, path: Path) -> Iterator[None]:
    """Turn the operating system's refusals (read-only, no space, no permission) into one message."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(action, path) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG):
            raise InputError(
                f"Cannot write to {path} while {action}: {os.strerror(error.errno)}. "
                "Choose a folder that you can write to."
            ) from error
        raise
    except Exception as error:  # safetensors and other native writers keep the number in their text only
        if f"os error {errno.ENOSPC}" in str(error) or os.strerror(errno.ENOSPC) in str(error):
            raise _no_space(action, path) from error
        raise


def copy_folder(source: Path, destination: Path) -> None:
    """Copy what a folder holds into another, which exists. The first refusal of the operating system ends it and keeps
    its number, which `shutil.copytree` turns into text."""
    for path in sorted(source.rglob("*")):
        copied = destination / path.relative_to(source)
        if path.is_dir():
            copied.mkdir(exist_ok=True)
        else:
            shutil.copy2(path, copied)


def _sweep(destination: Path) -> None:
    """Remove what writers of `destination` that were killed left beside it."""
    for left in destination.parent.glob(f".{glob.escape(destination.name)}.partial-*"):
        owner = left.name.rpartition(".partial-")[2].partition("-")[0]
        if owner.isdigit() and not _alive(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, so it is there
        return True
    return True


@contextlib.contextmanager
def publish_folder(destination: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `destination`; rename it into place when the block succeeds.

    A block that raises leaves nothing. With `replace`, an existing destination is moved away only once the
    new folder is whole and on disk.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    _sweep(destination)
    aside = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}.partial-{os.getpid()}-"))
    try:
        yield aside
        aside.chmod(0o755)
        fsync_tree(aside)
        if replace and destination.exists():
            old = Path(tempfile.mkdtemp(dir=destination.parent, prefix=f".{destination.name}.old-"))
            destination.rename(old / "folder")
            try:
                aside.rename(destination)
            except BaseException:
                (old / "folder").rename(destination)
                old.rmdir()
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            aside.rename(destination)
        _fsync_folder(destination.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def check_output(path: Path, overwrite: bool, marker: str) -> None:
    """Refuse an output folder that cannot be written, before anything is computed.

    An existing one is replaced only with `overwrite`, and only if it holds the file `marker`, by which this toolkit
    knows its own outputs. Raises InputError.
    """
    try:
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists already; remove it, choose another -o, or add --overwrite.")
        if path.exists() and not (path / marker).exists():
            kind = "bundle" if marker == "manifest.json" else "folder that this command wrote"
            raise InputError(f"{path} exists and is not a {kind}; --overwrite replaces nothing else.")
        folder = path.absolute().parent
        while not folder.exists():
            folder = folder.parent
        # Permission bits do not tell of every file system: make what writing the output makes first.
        Path(tempfile.mkdtemp(dir=folder, prefix=f".{path.name}.partial-")).rmdir()
    except OSError as error:
        raise InputError(
            f"Cannot write to {path}: {error.strerror}. Choose an output that you can write to."
        ) from error
