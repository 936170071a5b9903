"""What an engine is built by: the build recipe, and the files that a bundle for TensorRT carries because of it.

build.json         the recipe
build_engine.py    builds the engine on the device: Python 3.6, `tensorrt`, nothing else
build_engine.sh    the same by trtexec, where Python has no tensorrt
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from toolkit.storage import sha256_file, write_json
from toolkit.target import Target

SCHEMA_VERSION = 1
FILE_NAME = "build.json"
SCRIPT = Path(__file__).with_name("build_engine.py")
SHELL_SCRIPT = "build_engine.sh"
ENGINES = "engines"
RTX = "tensorrt-rtx"  # among a target's other runtimes
# Builders that take more are killed on boards of 4 and 8 GB, whose GPU shares the memory.
WORKSPACE_SHARE = 0.3
_UNKNOWN_RAM_GB = 4.0
_BATCH = "batch"


def shapes(artifact: Mapping[str, Any], data_report: Mapping[str, Any]) -> dict[str, dict[str, list[int]]]:
    """The optimization profile of the inputs with open sizes: the least, the usual and the largest shape of each.

    The batch is 1, which is what the runtime runs. Of a text the usual length is the data's 90th percentile, the
    largest the one that the encoder cuts at.
    """
    made = {}
    for tensor in artifact["inputs"]:
        if all(isinstance(size, int) and size > 0 for size in tensor["shape"]):
            continue
        usual, most = _lengths(data_report)
        made[tensor["name"]] = {
            place: [
                size if isinstance(size, int) and size > 0 else 1 if size == _BATCH else length
                for size in tensor["shape"]
            ]
            for place, length in (("min", 1), ("opt", usual), ("max", most))
        }
    return made


def _lengths(data_report: Mapping[str, Any]) -> tuple[int, int]:
    """The usual and the largest length of a text; 1 and 1 of what has none."""
    most = int(data_report.get("encoding", {}).get("max_length", 1))
    usual = data_report.get("tokens", {}).get("p90", most)
    return min(most, -(-int(usual) // 8) * 8), most


def make(onnx: Path, artifact: Mapping[str, Any], data_report: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """The build recipe of an artifact for a target."""
    support = target.engine("tensorrt")
    ram = target.memory.ram_gb or (target.memory.ram_gb_range or (_UNKNOWN_RAM_GB,))[0]
    return {
        "schema_version": SCHEMA_VERSION,
        "onnx": onnx.name,
        "onnx_sha256": sha256_file(onnx),
        "data_files": {name: sha256_file(onnx.parent / name) for name in artifact.get("data_files", ())},
        "precision": artifact["precision"],
        "shapes": shapes(artifact, data_report),
        "workspace_share": WORKSPACE_SHARE,
        "workspace_bytes": int(WORKSPACE_SHARE * ram * 1e9),
        "target": target.name,
        "image": target.image,
        "versions": support.versions,
        "compute_capability": target.gpu.compute_capability if target.gpu else None,
        "runtimes": ["tensorrt", "tensorrt_rtx"] if builds_offline(target) else ["tensorrt"],
    }


def builds_offline(target: Target) -> bool:
    """Whether TensorRT-RTX builds for the target without its GPU."""
    return any(other.name == RTX for other in target.other_runtimes)


def trtexec(recipe: Mapping[str, Any], version: Version) -> list[str]:
    """The arguments of trtexec of a TensorRT that build the recipe's engine."""
    flags = {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"], "bf16": ["--bf16"]}[recipe["precision"]]
    megabytes = recipe["workspace_bytes"] // 2**20
    made = [f"--onnx={recipe['onnx']}"]
    made += [f"--workspace={megabytes}"] if version < Version("8.4") else [f"--memPoolSize=workspace:{megabytes}"]
    if version < Version("10"):
        made += flags
    elif version < Version("11"):  # which knows nothing else
        made += ["--stronglyTyped"]
    made += ["--buildOnly"] if version < Version("8.6") else ["--skipInference"]
    for option, place in (("--minShapes", "min"), ("--optShapes", "opt"), ("--maxShapes", "max")):
        given = [f"{name}:{'x'.join(map(str, each[place]))}" for name, each in recipe["shapes"].items()]
        made += [f"{option}={','.join(given)}"] if given else []
    return made


def shell_script(recipe: Mapping[str, Any], version: Version) -> str:
    """A POSIX shell script that runs trtexec; every argument is quoted."""
    arguments = " \\\n    ".join(shlex.quote(each) for each in trtexec(recipe, version))
    return f"""#!/bin/sh
# Builds the engine of this bundle with trtexec of TensorRT {version.major}.{version.minor}.
# For where Python has no tensorrt. build_engine.py is better: it knows when an engine no longer fits.
set -eu
cd "$(dirname "$0")"
trtexec="${{TRTEXEC:-/usr/src/tensorrt/bin/trtexec}}"
mkdir -p {ENGINES}
"$trtexec" \\
    {arguments} \\
    --saveEngine={ENGINES}/.trtexec.partial
mv {ENGINES}/.trtexec.partial {ENGINES}/trtexec.engine
"""


def version_of(target: Target) -> Version:
    """The TensorRT that the target's image has, or the lowest that its profile names."""
    image = next((image for image in target.images if image.id == target.image), None)
    if image is not None and "tensorrt" in image.versions:
        return Version(image.versions["tensorrt"])
    lowest = re.search(r"(?:>=|==)\s*([\d.]+\d)", target.engine("tensorrt").versions or "")
    return Version(lowest.group(1)) if lowest else Version("10.3")


def write(folder: Path, recipe: Mapping[str, Any], target: Target) -> None:
    """Write the three files beside the ONNX file."""
    write_json(folder / FILE_NAME, recipe)
    shutil.copy(SCRIPT, folder / SCRIPT.name)
    (folder / SHELL_SCRIPT).write_text(shell_script(recipe, version_of(target)), encoding="utf-8")
    for name in (SCRIPT.name, SHELL_SCRIPT):
        (folder / name).chmod(0o755)
