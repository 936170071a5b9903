"""The ways in which a bundle runs on an NVIDIA GPU:

    onnxruntime      an ONNX artifact by ONNX Runtime's CUDA kernels
    tensorrt         an artifact for TensorRT, as the engine that is built here for this GPU
    torch            the checkpoint that the bundle was made from, by PyTorch as it is
    torch-compiled   the same, compiled by torch.compile
    torch-graphs     the same, recorded as a CUDA graph for every shape of input

`prepare` does once what takes long or may be refused, before anything is measured; `load` is what a measuring process
does with what `prepare` gave. Nothing falls back to the CPU.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toolkit.devices import Settings
from toolkit.engines import Engine
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime.manifest import Manifest

Told = dict[str, Any]  # what a measuring process is told, as JSON
Said = Callable[[str], None]


def prepare(manifest: Manifest, number: int, way: str | None, settings: Settings, said: Said) -> Told:
    """See to it that a bundle can run on GPU `number`; `said` gets lines of what takes long. Raises InputError for a
    bundle that cannot, or not in this way, MissingDependencyError for what is not installed."""
    way = way or _usual(manifest)
    return {"way": way, "number": number, "device": f"cuda:{number}", **_PREPARE[way](manifest, settings, said)}


def load(manifest: Manifest, told: Mapping[str, Any], threads: int) -> Engine:
    """The engine, on the GPU. Raises MissingDependencyError if the GPU cannot be used, InputError for a file that
    cannot be run."""
    return WAYS[told["way"]](manifest, told, threads)


def _usual(manifest: Manifest) -> str:
    if manifest.engine not in ("onnxruntime", "tensorrt"):
        raise InputError(
            f"{manifest.folder.name} is for {manifest.engine}, which has no kernels for NVIDIA GPUs. Convert "
            "for a target with ONNX Runtime or TensorRT (`toolkit targets`), or name PyTorch: gpu://0?with=torch."
        )
    return manifest.engine


def _needs_onnx(manifest: Manifest, settings: Settings, said: Said) -> Told:
    if manifest.artifact.suffix != ".onnx":
        raise InputError(f"{manifest.folder.name} holds no ONNX file: its engine is {manifest.engine}.")
    from toolkit.engines import onnxruntime

    if not onnxruntime.has_cuda():
        raise MissingDependencyError(
            f"onnxruntime {onnxruntime.version()}, as it is installed here, has no CUDA kernels. Install them with: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    return {}


def _needs_build(manifest: Manifest, settings: Settings, said: Said) -> Told:
    if manifest.engine != "tensorrt":
        raise InputError(
            f"{manifest.folder.name} is for {manifest.engine}, not for TensorRT: convert for a target that has it, "
            "such as rtx-4090."
        )
    from toolkit.tensorrt import builder

    engines = settings.cache / "engines"
    known = builder.run(manifest.folder, ["--engines", str(engines), "--runtime", "tensorrt"], on_line=said)
    return {"engine": str(engines / known["engine"])}


def _needs_checkpoint(manifest: Manifest, settings: Settings, said: Said) -> Told:
    if settings.checkpoint is None:
        raise InputError(
            "PyTorch runs checkpoints, and a bundle holds none: name the one it was made from by --checkpoint FOLDER."
        )
    if not (settings.checkpoint / "config.json").is_file():
        raise InputError(f"--checkpoint {settings.checkpoint}: there is no config.json, so it is no checkpoint.")
    return {
        "checkpoint": str(settings.checkpoint.resolve()),
        "warning": f"PyTorch ran the checkpoint {settings.checkpoint.name}, not the bundle's file",
    }


def _onnxruntime(manifest: Manifest, told: Mapping[str, Any], threads: int) -> Engine:
    from toolkit.engines import onnxruntime

    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it did not find
        onnxruntime.preload_cuda()
    provider = (onnxruntime.CUDA, {"device_id": int(told["number"])})
    engine = onnxruntime.load(manifest.artifact, threads, [provider])
    if engine.describe()["provider"] != onnxruntime.CUDA:
        raise MissingDependencyError(
            f"onnxruntime {onnxruntime.version()} does not start its CUDA kernels on GPU {told['number']}: the CUDA or "
            "cuDNN that it was built with is not found. It would run on the CPU, which is not what was asked."
        )
    return engine


def _tensorrt(manifest: Manifest, told: Mapping[str, Any], threads: int) -> Engine:
    from toolkit.tensorrt import execute

    return execute.load(Path(told["engine"]), int(told["number"]))


def _torch(how: str) -> Callable[[Manifest, Mapping[str, Any], int], Engine]:
    def load_checkpoint(manifest: Manifest, told: Mapping[str, Any], threads: int) -> Engine:
        from toolkit import tasks
        from toolkit.engines.torch import TorchEngine

        engine = TorchEngine(Path(told["checkpoint"]), tasks.get(manifest.task), threads, told["device"], how)
        engine.output_name = str(manifest.data["artifact"]["outputs"][0]["name"])
        return engine

    return load_checkpoint


WAYS: dict[str, Callable[[Manifest, Mapping[str, Any], int], Engine]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "torch": _torch("eager"),
    "torch-compiled": _torch("compiled"),
    "torch-graphs": _torch("graphs"),
}
_PREPARE: dict[str, Callable[[Manifest, Settings, Said], Told]] = {
    "onnxruntime": _needs_onnx,
    "tensorrt": _needs_build,
    **dict.fromkeys(("torch", "torch-compiled", "torch-graphs"), _needs_checkpoint),
}
