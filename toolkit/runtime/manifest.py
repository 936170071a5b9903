"""`manifest.json`: read, check, verify. Standard library only, because it runs on the device.

A bundle is checked from the outside in, before any of its files is given to a runtime: schema version, keys,
paths that stay inside the folder, every file's size and SHA-256, and the engine's version.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from toolkit.errors import InputError, MissingDependencyError
from toolkit.storage import sha256_file, sha256_json

SCHEMA_VERSION = 2
FILE_NAME = "manifest.json"

_REQUIRED = {
    "schema_version": int,
    "task": str,
    "target": dict,
    "engine": dict,
    "artifact": dict,
    "labels": list,
    "preprocessing": dict,
    "files": dict,
    "content_hash": str,
    "accepted": bool,
}

# What was measured, and when, differs from run to run; what the bundle *is* does not.
_NOT_CONTENT = ("metrics", "content_hash", "accepted", "refusals")
# An engine is made of what is content, by another program.
_NOT_CONTENT_FILES = ("report.html", "receipts/", "engines/")


@dataclass(frozen=True)
class Manifest:
    """A checked manifest and the folder it describes."""

    folder: Path
    data: dict[str, Any]

    @property
    def task(self) -> str:
        return str(self.data["task"])

    @property
    def engine(self) -> str:
        return str(self.data["engine"]["name"])

    @property
    def threads(self) -> int:
        return int(self.data["engine"].get("threads", 1))

    @property
    def labels(self) -> list[str]:
        return [str(label) for label in self.data["labels"]]

    @property
    def artifact(self) -> Path:
        return inside(self.folder, self.data["artifact"]["path"])

    @property
    def preprocessing_file(self) -> Path:
        """What the encoder is made from."""
        return inside(self.folder, self.data["preprocessing"]["path"])

    @property
    def input_name(self) -> str:
        """The artifact's first input."""
        return str(self.data["artifact"]["inputs"][0]["name"])

    def path(self, relative: str) -> Path:
        """A file of the bundle. Raises InputError if the path leaves the folder."""
        return inside(self.folder, relative)


def inside(folder: Path, relative: object) -> Path:
    """`folder / relative`, refusing absolute paths, `..`, back-slashes and links that lead outside."""
    text = relative if isinstance(relative, str) else ""
    pure = PurePosixPath(text)
    if not text or pure.is_absolute() or ".." in pure.parts or "\\" in text or ":" in text or "\0" in text:
        raise InputError(f"{folder / FILE_NAME}: path {relative!r} does not stay inside the bundle; refused.")
    path = folder / pure
    if not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder / FILE_NAME}: path {relative!r} leads out of the bundle by a link; refused.")
    return path


def content_hash(data: dict[str, Any]) -> str:
    """Hash of what the bundle is: everything but measurements, receipts and the report."""
    files = {name: entry["sha256"] for name, entry in data["files"].items() if not name.startswith(_NOT_CONTENT_FILES)}
    rest = {key: value for key, value in data.items() if key not in (*_NOT_CONTENT, "files")}
    return sha256_json({"files": files, **rest})


def read(folder: Path) -> Manifest:
    """Read and check `folder/manifest.json`; no other file is opened.

    Raises InputError if the folder is not a bundle, its schema is newer, a key is missing, or a path escapes.
    """
    path = folder / FILE_NAME
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; a bundle is the folder that `toolkit convert` wrote.")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is not a bundle: it has no {FILE_NAME}.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("schema_version"), int):
        raise InputError(f"{path} is not a bundle manifest: it has no schema_version.")
    if data["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"{path} has schema version {data['schema_version']}; this toolkit reads up to {SCHEMA_VERSION}. "
            "Update the toolkit on this machine."
        )
    for key, kind in _REQUIRED.items():
        if not isinstance(data.get(key), kind):
            raise InputError(f"{path}: key '{key}' is missing or is not a {kind.__name__}.")
    for name, entry in data["files"].items():
        if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise InputError(f"{path}: the entry of '{name}' in 'files' has no sha256.")
    used = [
        data["artifact"].get("path"), *data["artifact"].get("data_files", ()), data["preprocessing"].get("path"),
    ]  # fmt: skip
    for name in [*data["files"], *used]:
        inside(folder, name)
    for name in used:  # a file that no hash covers could be exchanged
        if name not in data["files"]:
            raise InputError(f"{path}: '{name}' is not among the bundle's files.")
    return Manifest(folder, data)


def verify_files(manifest: Manifest) -> None:
    """Check every listed file's size and SHA-256, and the manifest's own hash. Raises InputError naming the first
    file that differs."""
    for name, entry in sorted(manifest.data["files"].items()):
        path = manifest.path(name)
        if not path.is_file():
            raise InputError(f"{manifest.folder}: the bundle's file '{name}' is missing.")
        size = path.stat().st_size
        if size != entry.get("bytes"):
            raise InputError(f"{path} has {size} bytes; the manifest says {entry.get('bytes')}. Not loaded.")
        if sha256_file(path) != entry["sha256"]:
            raise InputError(f"{path} was changed: its SHA-256 is not the manifest's. Not loaded.")
    if content_hash(manifest.data) != manifest.data["content_hash"]:
        raise InputError(f"{manifest.folder / FILE_NAME} was changed: its content hash does not fit. Not loaded.")


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in match.group(0).split(".")] if match else []
    while parts and parts[-1] == 0:  # 2.3 is 2.3.0
        parts.pop()
    return tuple(parts)


def check_engine_version(manifest: Manifest, package: str, version: str) -> None:
    """Raise MissingDependencyError if the installed runtime is older than the bundle needs."""
    needed = manifest.data["engine"].get("minimum_versions", {}).get(package)
    if needed and _numbers(version) < _numbers(needed):
        raise MissingDependencyError(
            f"The bundle {manifest.folder} needs {package} >= {needed}; {version} is installed. "
            f"Install it with: pip install '{package}>={needed}'"
        )
