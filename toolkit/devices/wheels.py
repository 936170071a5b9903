"""The wheels of what a bundle needs on a device: downloaded here for the device's platform, or out of a folder of the
user's."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit import engines
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime.manifest import Manifest
from toolkit.storage import publish_folder, sha256_json

_READERS = {"tokenizer": "tokenizers", "image": "pillow"}  # by the kind of a bundle's preprocessing
_OLDEST_GLIBC = 17  # 2.17, of manylinux2014
_OF_32_BITS = {"aarch64": "armv7l", "x86_64": "i686"}  # the system's own name, of a Python of 32 bits on it


def wanted(manifests: Iterable[Manifest], *, same: bool) -> list[str]:
    """What the bundles' runtimes consist of, as requirements: with `same` in the versions that are installed here, so
    that a device runs what was converted and checked with, else in the least that they need."""
    least: dict[str, str | None] = {"numpy": None}
    for manifest in manifests:
        minimum = manifest.data["engine"].get("minimum_versions", {})
        least |= {name: minimum.get(name) for name in engines.KINDS[manifest.engine].distributions}
        reader = _READERS.get(manifest.data["preprocessing"]["kind"])
        least |= {reader: None} if reader else {}
    return [_requirement(name, version, same) for name, version in least.items()]


def _requirement(name: str, least: str | None, same: bool) -> str:
    if same:
        try:
            return f"{name}=={importlib.metadata.version(name).partition('+')[0]}"
        except importlib.metadata.PackageNotFoundError:
            pass
    return f"{name}>={least}" if least else name


def platforms(facts: Mapping[str, Any]) -> list[str]:
    """The names of platforms whose wheels a Linux takes, the best first."""
    machine = str(facts["machine"])
    machine = _OF_32_BITS.get(machine, machine) if facts["bits"] == 32 else machine
    if facts["glibc"] is None:
        return [f"musllinux_1_{minor}_{machine}" for minor in (2, 1)]
    minor = int(facts["glibc"].split(".")[1])
    found = [f"manylinux_2_{number}_{machine}" for number in range(minor, _OLDEST_GLIBC - 1, -1)]
    return [*found, f"manylinux2014_{machine}", f"linux_{machine}"]


def fetch(requirements: list[str], facts: Mapping[str, Any], cache: Path, named: Path | None) -> Path:
    """A folder with the wheels of requirements, and of what they need, for the Python that `facts` describe
    (`toolkit.devices.python_facts`): out of the folder `named`, or downloaded. It is kept in `cache`.

    Raises InputError for a folder that is none, MissingDependencyError where there are no such wheels.
    """
    if named is not None and not named.is_dir():
        raise InputError(f"--wheels {named} is not a folder.")
    version = ".".join(map(str, facts["version"][:2]))
    source = (
        None if named is None else [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in _in(named)]
    )
    key = sha256_json([requirements, version, platforms(facts), str(named), source])
    folder = cache / "devices" / f"wheels-{key[:16]}"
    if folder.is_dir():
        return folder
    command = [sys.executable, "-P", "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-input"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", version]
    command += [part for name in platforms(facts) for part in ("--platform", name)]
    command += ["--no-index", "--find-links", str(named)] if named is not None else []
    with publish_folder(folder) as aside:
        environ = {**os.environ, "LC_ALL": "C", "PYTHONPATH": ""}
        done = subprocess.run(
            [*command, "--dest", str(aside), *requirements], capture_output=True, text=True, env=environ, check=False
        )
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or ["pip gives no reason"]
            where = f"{named} holds no" if named is not None else "pip downloads no"
            raise MissingDependencyError(
                f"{where} wheels of {', '.join(requirements)} for Python {version} on {platforms(facts)[0]}: "
                f"{said[-1].removeprefix('ERROR: ').strip().rstrip('.')}."
            )
    return folder


def _in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.whl"))
