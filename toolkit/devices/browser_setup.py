"""What a page needs to run bundles: the engines' builds for browsers, from npm packages in the versions named here.

    browser-KEY/
      onnxruntime-web/       the files of it that a page loads
      @litertjs/core/
      @litertjs/wasm-utils/
      browser.json           what is in it

Packages come from where the user's npm has its own, must have the SHA-512 that stands here, and are unpacked: nothing
of them is run on this machine. The browser itself is not fetched; it is one that is installed.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import MissingDependencyError
from toolkit.storage import publish_folder, sha256_json, write_json

FILE_NAME = "browser.json"
BROWSERS = ("chromium", "chromium-browser")  # the same program under the names that distributions give it
_VERSION = 1


@dataclass(frozen=True)
class Package:
    """A package of npm: its archive's SHA-512 as npm spells it, and which of its files are kept."""

    version: str
    integrity: str
    files: tuple[str, ...]


ONNXRUNTIME, LITERT, LITERT_LOADER = "onnxruntime-web", "@litertjs/core", "@litertjs/wasm-utils"
RUNTIMES = {"onnxruntime": ONNXRUNTIME, "litert": LITERT}  # of engines' bundles, in a page
PACKAGES = {
    ONNXRUNTIME: Package(
        "1.30.0",
        "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        (
            "dist/ort.wasm.min.mjs", "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm",
            "dist/ort.webgpu.min.mjs", "dist/ort-wasm-simd-threaded.asyncify.mjs",
            "dist/ort-wasm-simd-threaded.asyncify.wasm",
        ),
    ),
    LITERT: Package(
        "2.5.3",
        "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        (
            "dist/index.js", "wasm/litert_wasm_internal.js", "wasm/litert_wasm_internal.wasm",
            "wasm/litert_wasm_threaded_internal.js", "wasm/litert_wasm_threaded_internal.wasm",
            "wasm/litert_wasm_jspi_internal.js", "wasm/litert_wasm_jspi_internal.wasm",
        ),
    ),
    LITERT_LOADER: Package(
        "2.5.3",
        "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        ("dist/index.js",),
    ),
}  # fmt: skip


def browser() -> Path:
    """The installed browser. Raises MissingDependencyError."""
    for name in BROWSERS:
        found = shutil.which(name)
        if found:
            return Path(found)
    raise MissingDependencyError(
        "Running a bundle in a browser needs Chromium, which this machine has not. On Debian: apt-get install chromium"
    )


def folder_of(cache: Path) -> Path:
    """Where the packages lie, set up or not: its name says what is in it."""
    described = [[name, package.version, package.integrity, package.files] for name, package in PACKAGES.items()]
    return cache / "devices" / f"browser-{sha256_json([_VERSION, described])[:16]}"


def is_ready(cache: Path) -> bool:
    """Whether the packages are there."""
    return (folder_of(cache) / FILE_NAME).is_file()


def state(cache: Path) -> str:
    """`ready`, or what there is to do."""
    if not any(shutil.which(name) for name in BROWSERS):
        return "needs Chromium"
    return "ready" if is_ready(cache) else "toolkit devices setup browser"


def setup(cache: Path, on_step: Callable[[int, int, str], None] = lambda done, of, text: None) -> Path:
    """Fetch the packages, unless they are there. Raises MissingDependencyError where there is no npm, or where a
    package cannot be had or is another than it should be."""
    folder = folder_of(cache)
    if is_ready(cache):
        return folder
    if shutil.which("npm") is None:
        raise MissingDependencyError(
            "Setting up the browser needs npm, which this machine has not. On Debian and Ubuntu: apt-get install npm"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with publish_folder(folder) as aside:
        on_step(0, 2, f"downloading {', '.join(PACKAGES)}")
        archives = _download(aside / "archives")
        on_step(1, 2, "unpacking")
        for name, package in PACKAGES.items():
            _unpack(archives[name], package, aside / name)
        shutil.rmtree(aside / "archives")
        facts = {"packages": {name: package.version for name, package in PACKAGES.items()}}
        write_json(aside / FILE_NAME, facts)
        on_step(2, 2, "done")
    return folder


def read(folder: Path) -> dict[str, Any]:
    """What was set up."""
    found: dict[str, Any] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    return found


def sentence(facts: Mapping[str, Any]) -> str:
    """What was set up, in words."""
    return f"{', '.join(f'{name} {version}' for name, version in facts['packages'].items())}."


def _download(folder: Path) -> dict[str, Path]:
    """The archives of all packages by name, which have the hashes that they must have."""
    folder.mkdir()
    command = ["npm", "pack", "--ignore-scripts", "--json", "--pack-destination", "."]
    command += [f"{name}@{package.version}" for name, package in PACKAGES.items()]
    environ = {**os.environ, "npm_config_update_notifier": "false"}
    # In a folder of its own, so that no project's settings of npm are read but the user's alone.
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
    try:
        said = json.loads(done.stdout)
        why = said.get("error", {}).get("summary") if isinstance(said, dict) else None
    except ValueError:
        said, why = None, None
    if done.returncode or not isinstance(said, list):
        last = done.stderr.strip().splitlines() or ["npm gives no reason"]
        raise MissingDependencyError(f"Setting up the browser, downloading its engines: {why or last[-1]}")
    archives = {str(each["name"]): folder / Path(each["filename"]).name for each in said}
    for name, package in PACKAGES.items():
        digest = hashlib.sha512(archives[name].read_bytes()).digest()
        found = f"sha512-{base64.b64encode(digest).decode()}"
        if found != package.integrity:
            raise MissingDependencyError(
                f"Setting up the browser: {name} {package.version} as npm gives it is not the one that this toolkit "
                f"knows: its hash is {found}, and not {package.integrity}."
            )
    return archives


def _unpack(archive: Path, package: Package, folder: Path) -> None:
    """Of a package's files those that are kept."""
    with tarfile.open(archive) as whole:
        for file in package.files:
            stream = whole.extractfile(f"package/{file}")
            assert stream is not None  # noqa: S101 - the hash says that it is there
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(stream.read())
