"""What an emulated Arm machine consists of: a Python of Debian for arm64, wheels of the engines, and the counter.

    guest-KEY/
      root/               the Python and the libraries that it needs, unpacked
      site-packages/      numpy, onnxruntime, ai-edge-litert, tokenizers for aarch64, in this machine's versions
      counter.so          the plugin that counts instructions, built by this machine's compiler
      guest.json          what is in it

Nothing is installed on this machine: packages are downloaded through a package state of its own and unpacked.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.cache import open_cache
from toolkit.errors import MissingDependencyError
from toolkit.storage import publish_folder, sha256_file, sha256_json, write_json

QEMU = "qemu-aarch64"
COUNTER = Path(__file__).with_name("instruction_counter.c")
FILE_NAME = "guest.json"
_PACKAGES = ("python3", "libstdc++6", "libgomp1")
_WHEELS = ("numpy", "onnxruntime", "ai-edge-litert", "tokenizers", "pillow")
_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
SYSTEM_QEMU = "qemu-system-aarch64"
_TOOLS = {
    QEMU: "qemu-user", "cc": "gcc", "apt-get": "apt", "dpkg-deb": "dpkg", "apt-cache": "apt", "mke2fs": "e2fsprogs",
    SYSTEM_QEMU: "qemu-system-arm",
}  # fmt: skip
SETUP_TOOLS = (QEMU, "cc", "apt-get", "dpkg-deb")
_VERSION = 1


def tools(names: Sequence[str] = SETUP_TOOLS) -> dict[str, str]:
    """The programs of these names, by default all that a setup takes, by their paths. Raises MissingDependencyError."""
    places = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    found = {name: shutil.which(name, path=places) for name in names}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        packages = " ".join(sorted({_TOOLS[name] for name in missing}))
        raise MissingDependencyError(
            f"Emulating an Arm CPU needs {', '.join(missing)}, which this machine has not. On Debian and Ubuntu: "
            f"apt-get install {packages}"
        )
    return {name: str(path) for name, path in found.items()}


def wheels() -> list[str]:
    """The packages of the guest, in the versions that are installed here."""
    made = []
    for name in _WHEELS:
        try:
            made.append(f"{name}=={importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return made


def guest_folder(cache: Path) -> Path:
    """Where the guest lies, set up or not: its name says what it is made of."""
    key = sha256_json([_VERSION, wheels(), sha256_file(COUNTER), list(_PACKAGES)])
    return cache / "devices" / f"guest-{key[:16]}"


def is_ready(cache: Path) -> bool:
    """Whether the guest is set up."""
    return (guest_folder(cache) / FILE_NAME).is_file()


def state(cache: Path) -> str:
    """`ready`, or what there is to do."""
    return "ready" if is_ready(cache) else "toolkit devices setup emulator"


def setup(cache: Path, on_step: Callable[[int, int, str], None] = lambda done, of, text: None) -> Path:
    """Make the guest, unless it is there. Raises MissingDependencyError for a missing program, or where packages cannot
    be had."""
    found = tools()
    folder = guest_folder(cache)
    with open_cache(cache).lock(folder.name):
        if not is_ready(cache):
            _make(folder, found["cc"], on_step)
    return folder


def _make(folder: Path, compiler: str, on_step: Callable[[int, int, str], None]) -> None:
    with publish_folder(folder) as aside:
        on_step(0, 4, "downloading a Python for arm64")
        archives = _download(aside / "apt")
        on_step(1, 4, f"unpacking {len(archives)} packages")
        for archive in archives:
            run(["dpkg-deb", "-x", str(archive), str(aside / "root")], "unpacking a package")
        shutil.rmtree(aside / "apt")
        python = _python(aside / "root")
        on_step(2, 4, "downloading the engines for aarch64")
        _install(aside / "site-packages", python)
        on_step(3, 4, "building the counter")
        run(
            [compiler, "-O2", "-shared", "-fPIC", "-o", str(aside / "counter.so"), str(COUNTER)],
            "building the counter",
        )
        facts = {"python": python, "wheels": wheels(), "packages": len(archives)}
        write_json(aside / FILE_NAME, facts)
        on_step(4, 4, "done")


def read(folder: Path) -> dict[str, Any]:
    """What a guest is made of."""
    found: dict[str, Any] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    return found


def sentence(facts: Mapping[str, Any]) -> str:
    """What a guest is made of, in words."""
    return f"Python {facts['python']} for arm64, {', '.join(facts['wheels'])}."


def _download(state: Path) -> list[Path]:
    """The archives of the packages and all that they depend on, for arm64, from where this machine has its own."""
    options = package_state(state)
    run(
        ["apt-get", *options, "install", "-y", "--no-install-recommends", "--download-only", *_PACKAGES],
        "downloading packages for arm64",
    )
    return sorted((state / "cache" / "archives").glob("*.deb"))


def package_state(state: Path) -> list[str]:
    """Make a package state for arm64 in a folder, with the lists of today; the options that have apt use it."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True)
    (state / "status").touch()
    values = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": str(state / "state"),
        "Dir::State::status": str(state / "status"), "Dir::Cache": str(state / "cache"),
        "APT::Sandbox::User": "",  # files of a folder that only we may enter
    }  # fmt: skip
    options = ["-qq", *(part for key, value in values.items() for part in ("-o", f"{key}={value}"))]
    run(["apt-get", *options, "update"], "reading the package lists for arm64")
    return options


def _python(root: Path) -> str:
    """The version of the guest's Python, `3.11`."""
    names = [path.name for path in (root / "usr" / "bin").glob("python3.*")]
    versions = [name.removeprefix("python") for name in names if re.fullmatch(r"python3\.\d+", name)]
    if len(versions) != 1:
        raise MissingDependencyError(f"The packages for arm64 hold no Python that is known: {names}.")
    return versions[0]


def _install(site: Path, python: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    command += ["--target", str(site), "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += [part for name in _PLATFORMS for part in ("--platform", name)]
    run([*command, *wheels()], "downloading wheels for aarch64")


def run(command: Sequence[str], what: str, folder: Path | None = None) -> str:
    """Run one program of a setup; what it says. Raises MissingDependencyError if it fails."""
    environ = {**os.environ, "LC_ALL": "C", "PYTHONPATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False, cwd=folder)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it gives no reason"]
        raise MissingDependencyError(f"Setting up the emulator, {what}: {said[-1].strip()}")
    return done.stdout
