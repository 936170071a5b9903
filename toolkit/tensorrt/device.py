"""Builds a bundle's engine where it is to run: on this machine, or on a device behind ssh."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.version import Version

from toolkit.devices import local, ssh_client
from toolkit.devices.ssh_client import Ssh
from toolkit.errors import InputError, MissingDependencyError, RefusedError, missing_extra
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest
from toolkit.storage import explained, write_atomic, write_json
from toolkit.target import shared
from toolkit.tensorrt import builder, preflight, rungs
from toolkit.tensorrt import recipe as recipes

_NO_RUNTIME = 3  # exit code of build_engine.py
_TRTEXEC = "trtexec.engine"
_KEPT = "toolkit-builds"  # in the home of the user on the device


def build(
    bundle: Path,
    device: str = local.NAME,
    *,
    image: str | None = None,
    keep: bool = False,
    ssh_config: Path | None = None,
    timeout_seconds: float = builder.TIMEOUT_SECONDS,
    on_line: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Build the engine of a bundle for TensorRT on a device, `local` or `ssh://[user@]host[:port]`.

    The engine and the note of what it was built from end up in the bundle's folder `engines/`. `image` is the one that
    the device must have; with `keep`, the files stay on a device behind ssh, and the next build copies what changed.
    `on_line` gets lines of progress. Returns what is known of the engine, with the bundle's `validation`.

    Raises InputError for a bundle that has no engine to build or a device of another image, RefusedError if TensorRT
    builds none, MissingDependencyError if the device is not reached or has no TensorRT.
    """
    manifest = manifests.read(bundle)
    manifests.verify_files(manifest)
    if manifest.engine != "tensorrt":
        raise InputError(f"{bundle} is a bundle for {manifest.engine}, which builds no engine.")
    if recipes.FILE_NAME not in manifest.data["files"]:
        raise InputError(f"{bundle} has no {recipes.FILE_NAME}: an older version wrote it. Convert the model again.")
    if image is not None and image not in (known := shared.images()):
        raise InputError(f"Unknown image '{image}'; known: {', '.join(sorted(known))}.")
    if device == local.NAME:
        known = _here(manifest, image, timeout_seconds, on_line)
    else:
        known = _there(manifest, ssh_client.parse(device, ssh_config), image, keep, timeout_seconds, on_line)
    validation = (manifest.data.get("metrics") or {}).get("validation") or {"rung": None, "steps": {}}
    if known["on_device"]:
        validation = rungs.with_engine(validation, known)
    return {**known, "bundle": str(bundle), "device": device, "validation": validation}


def _here(
    manifest: Manifest, image: str | None, timeout_seconds: float, on_line: Callable[[str], None]
) -> dict[str, Any]:
    recipe = json.loads(manifest.path(recipes.FILE_NAME).read_text(encoding="utf-8"))
    if not any(importlib.util.find_spec(name) for name in recipe["runtimes"]):
        if "tensorrt_rtx" in recipe["runtimes"]:
            raise missing_extra(preflight.PACKAGE, "tensorrt", "Building an engine without the GPU")
        raise MissingDependencyError(
            "This Python has no module 'tensorrt'. It comes with a Jetson's JetPack; build there: "
            "--device ssh://user@host."
        )
    if image is not None:
        _check_image(local.NAME, builder.describe(), image)
    return builder.run(manifest.folder, [], timeout_seconds=timeout_seconds, on_line=on_line)


def _check_image(device: str, found: dict[str, Any], image: str | None) -> None:
    """Refuse a device whose image is not the one that was asked for. Raises InputError."""
    if image is not None and found["image"] != image:
        has = found["image"] or "no JetPack that is known"
        raise InputError(f"--image {image}: {device} has {has} (L4T {found['l4t'] or '-'}).")


def _there(
    manifest: Manifest,
    device: Ssh,
    image: str | None,
    keep: bool,
    timeout_seconds: float,
    on_line: Callable[[str], None],
) -> dict[str, Any]:
    kept = f"{_KEPT}/{manifest.data['content_hash'][:16]}" if keep else None
    with device.folder(kept) as folder:
        script = folder / recipes.SCRIPT.name
        _copy(manifest, device, folder, on_line)
        done = device.run(["python3", str(script), "--describe"])
        if done.returncode:
            raise MissingDependencyError(f"{device.name} has no python3 (3.6 or later) that runs {script.name}.")
        found = json.loads(done.stdout)
        _check_image(device.name, found, image)
        report = folder / "report.json"
        # `timeout` ends the build there too, if the connection is cut.
        limited = ["timeout", str(int(timeout_seconds))]
        code = device.stream([*limited, "python3", str(script), "--report", str(report)], on_line, timeout_seconds + 30)
        known = _report(device, report, code)
        if code == _NO_RUNTIME and "no module" in known["error"]:
            on_line(f"build: {known['error']}; trying trtexec")
            known = _trtexec(manifest, device, folder, found, timeout_seconds, on_line)
        elif "error" in known:
            raise builder.ERRORS[known["exit_code"]](f"{device.name}: {known['error']}")
        if f"{recipes.ENGINES}/{known['engine']}" not in manifest.data["files"]:  # those are the bundle's own
            _bring(manifest.folder, device, folder / recipes.ENGINES / known["engine"], known)
    return known


def _copy(manifest: Manifest, device: Ssh, folder: PurePosixPath, on_line: Callable[[str], None]) -> None:
    """Copy what the build needs and the device does not have already."""
    weights = manifest.data["artifact"].get("data_files", ())
    names = [manifest.artifact.name, *weights, recipes.FILE_NAME, recipes.SCRIPT.name, recipes.SHELL_SCRIPT]
    has = device.run(["sha256sum", "--", *(str(folder / name) for name in names)]).stdout.decode(errors="replace")
    known = {PurePosixPath(path).name: sha256 for sha256, path in map(str.split, has.splitlines())}
    for name in names:
        if manifest.data["files"][name]["sha256"] != known.get(name):
            on_line(f"build: copying {name}")
            device.put(manifest.path(name), folder / name)


def _report(device: Ssh, report: PurePosixPath, code: int) -> dict[str, Any]:
    """What the script wrote. A build that was killed wrote nothing."""
    try:
        known: dict[str, Any] = json.loads(device.get(report))
    except (InputError, ValueError) as error:
        how = "it took too long" if code == 124 else f"it ended with code {code}; its memory may have run out"
        raise RefusedError(f"{device.name}: the build left no report: {how}.") from error
    return known


def _trtexec(
    manifest: Manifest,
    device: Ssh,
    folder: PurePosixPath,
    found: dict[str, Any],
    timeout_seconds: float,
    on_line: Callable[[str], None],
) -> dict[str, Any]:
    """Build by trtexec, with the flags of the TensorRT that the device's image has."""
    recipe = json.loads(manifest.path(recipes.FILE_NAME).read_text(encoding="utf-8"))
    images = shared.images()
    if found["image"] in images:
        version = Version(images[found["image"]].versions["tensorrt"])
        with tempfile.TemporaryDirectory() as aside:
            script = Path(aside) / recipes.SHELL_SCRIPT
            script.write_text(recipes.shell_script(recipe, version), encoding="utf-8")
            device.put(script, folder / recipes.SHELL_SCRIPT)
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        on_line(line)

    command = ["timeout", str(int(timeout_seconds)), "sh", str(folder / recipes.SHELL_SCRIPT)]
    code = device.stream(command, heard, timeout_seconds + 30)
    if code == 127:
        raise MissingDependencyError(
            f"{device.name} has neither the Python module tensorrt nor /usr/src/tensorrt/bin/trtexec; both come with "
            "JetPack (apt install tensorrt python3-libnvinfer)."
        )
    if code:
        said = next((line for line in reversed(lines) if line), f"code {code}")
        raise RefusedError(f"{device.name}: trtexec builds no engine: {said}")
    engine = device.get(folder / recipes.ENGINES / _TRTEXEC)
    return {
        "engine": _TRTEXEC,
        "engine_bytes": len(engine),
        "engine_sha256": hashlib.sha256(engine).hexdigest(),
        "built_from": {
            "onnx_sha256": recipe["onnx_sha256"],
            "runtime": "trtexec",
            "version": _version(lines),
            "compute_capability": found["compute_capability"],
            "device": found["device"],
            "precision": recipe["precision"],
        },
        "on_device": True,
        "typing": "trtexec",
        "failed_before": [],
        "cached": False,
        "machine": found,
    }


def _version(lines: list[str]) -> str:
    """The version in trtexec's first lines: `[TensorRT v8502]` is 8.5.2, `[TensorRT v100300]` 10.3.0."""
    found = re.search(r"TensorRT v(\d{4,6})", "\n".join(lines))
    if found is None:
        return "unknown"
    number = int(found.group(1))
    parts = (number // 10000, number // 100 % 100, number % 100)
    if number < 10000:
        parts = (number // 1000, number // 100 % 10, number % 100)
    return ".".join(map(str, parts))


def _bring(bundle: Path, device: Ssh, engine: PurePosixPath, known: dict[str, Any]) -> None:
    """Bring an engine and its note into the bundle, whole. Raises InputError if it does not arrive as it was."""
    name = manifests.inside(bundle / recipes.ENGINES, known["engine"]).name
    data = device.get(engine)
    if hashlib.sha256(data).hexdigest() != known["engine_sha256"]:
        raise InputError(f"{device.name}: the engine {name} did not arrive as it was built; try again.")
    with explained("bringing the engine back", bundle):
        (bundle / recipes.ENGINES).mkdir(exist_ok=True)
        write_atomic(bundle / recipes.ENGINES / name, data)
        note = {key: value for key, value in known.items() if key != "cached"}
        write_json((bundle / recipes.ENGINES / name).with_suffix(".json"), note)
