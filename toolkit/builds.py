"""Builds: a model in any of its forms, taken whole from the raw example to the answer, for comparing two.

A build is a checkpoint, an artifact folder, a bundle, or a model file alone, which has no preprocessing and no labels
of its own and takes those of what it is compared with.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import bundle as bundles
from toolkit import checkpoint as checkpoints
from toolkit import engines, tasks
from toolkit import export as formats
from toolkit.engines import Arrays, Engine
from toolkit.errors import InputError
from toolkit.export import onnx_file
from toolkit.model_file import precision_of
from toolkit.probes import Probe
from toolkit.runtime import manifest as manifests
from toolkit.runtime import unloaded
from toolkit.runtime.encoder import Encoder
from toolkit.stages.evaluate import names_of
from toolkit.storage import read_json
from toolkit.tasks.task import Task

MASK = "attention_mask"


@dataclass
class Build:
    """One form of a model, with what it is fed by and what its answers are called."""

    name: str
    kind: str  # checkpoint, artifact, bundle, file
    task: Task
    labels: list[str]
    precision: str
    encoder: Encoder
    engine: Engine
    path: Path  # of the checkpoint's folder, or of the model file
    format: str  # one of toolkit/export, or torch
    output_name: str | None = None  # None: the only output
    lend: Callable[[Sequence[str], Sequence[int] | None], Encoder] | None = None  # for other inputs and lengths

    def output(self, arrays: Mapping[str, Any]) -> NDArray[np.float32]:
        """What the model gives for encoded inputs."""
        found = self.engine.run(arrays)
        name = self.output_name if self.output_name is not None else next(iter(found))
        return np.asarray(found[name], dtype=np.float32)

    def rows(self, output: NDArray[Any], arrays: Arrays) -> NDArray[np.float32]:
        """The rows of the answers in an output."""
        return np.asarray(self.task.rows(output, arrays), dtype=np.float32)

    def probe(self) -> Probe:
        """The model, ready to be looked into."""
        if self.format == "torch":
            from toolkit.probes import torch as probe_torch

            return probe_torch.open_probe(self.path, self.task)
        if self.format == "litert":
            from toolkit.probes import litert as probe_litert

            return probe_litert.open_probe(self.path)
        if self.format == "openvino":
            from toolkit.probes import openvino as probe_openvino

            return probe_openvino.open_probe(self.path)
        if self.format == "executorch":
            raise InputError(
                f"{self.name}: an ExecuTorch file cannot be looked into: what a backend took of it is one call. "
                "`toolkit check` compares its answers."
            )
        from toolkit.probes import onnx as probe_onnx

        return probe_onnx.open_probe(self.path)

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()


def open_build(path: Path, task: str | None = None, like: Build | None = None, allow_code: bool = False) -> Build:
    """The build at a path. `like` lends a model file its preprocessing and its labels; `allow_code` lets a checkpoint
    run the network that it brings. Raises InputError."""
    if path.is_file():
        return _file(path, like)
    if (path / manifests.FILE_NAME).is_file():
        return _bundle(path)
    if (path / "artifact.json").is_file():
        return _artifact(path, task)
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    checkpoints.refuse_code(path, allow_code)
    return _checkpoint(path, task)


def _bundle(path: Path) -> Build:
    manifest = manifests.read(path)
    manifests.verify_files(manifest)
    artifact = manifest.data["artifact"]

    def lend(inputs: Sequence[str], lengths: Sequence[int] | None) -> Encoder:
        tensors = [{"name": name} for name in inputs]
        changed = {**manifest.data, "artifact": {**artifact, "inputs": tensors, "lengths": lengths}}
        return unloaded(manifests.Manifest(path, changed)).encoder

    return Build(
        str(path), "bundle", tasks.get(manifest.task), manifest.labels, str(artifact["precision"]),
        unloaded(manifest).encoder, engines.get(manifest.engine).load(manifest.artifact, manifest.threads),
        manifest.artifact, _format(manifest.artifact), str(artifact["outputs"][0]["name"]), lend,
    )  # fmt: skip


def _artifact(path: Path, named: str | None) -> Build:
    artifact = read_json(path / "artifact.json")
    config = read_json(path / "config.json")
    task = tasks.get(named) if named else tasks.of(config)
    lend = _lender(path, task)
    encoder = lend(names_of(artifact), artifact["lengths"])
    file = manifests.inside(path, artifact["path"])
    engine = _engine(file)
    names = config.get("id2label") or {}
    return Build(
        str(path), "artifact", task, [str(names[key]) for key in sorted(names, key=int)], str(artifact["precision"]),
        encoder, engine, file, _format(file), str(artifact["outputs"][0]["name"]), lend,
    )  # fmt: skip


def _checkpoint(path: Path, named: str | None) -> Build:
    from toolkit.engines import torch as torch_engine

    task = tasks.get(named) if named else tasks.of(checkpoints.check_folder(path))
    found = checkpoints.inspect(path, task)
    if found.labels is None:
        raise InputError(f"{path} is not trained for {task.NAME}, so it has no answers to compare.")
    engine = torch_engine.TorchEngine(path, task, 1)
    lend = _lender(path, task)
    return Build(
        str(path), "checkpoint", task, list(found.labels), "fp32", lend(engine.input_names, None), engine, path,
        "torch", "output", lend,
    )  # fmt: skip


def _lender(path: Path, task: Task) -> Callable[[Sequence[str], Sequence[int] | None], Encoder]:
    """The encoder of a folder, for models that take other inputs of it, or other lengths."""
    return lambda inputs, lengths: task.encoder(path, {}, inputs=inputs, lengths=lengths)


def _file(path: Path, like: Build | None) -> Build:
    if path.suffix not in engines.OF_SUFFIX:
        raise InputError(f"{path} is neither a folder nor an .onnx, .tflite, .xml or .pte file.")
    if like is None and path.suffix == ".onnx":
        return _tensors(path)
    if like is None or like.lend is None:
        raise InputError(
            f"{path} is a model file alone, without preprocessing and labels; name it second, after the build that has "
            "them."
        )
    engine = _engine(path)
    precision = precision_of(path)
    described = formats.get(_format(path)).describe(path, precision, engines.OF_SUFFIX[path.suffix])
    encoder = like.lend(names_of(described), described["lengths"])
    output = str(described["outputs"][0]["name"])
    return Build(
        str(path), "file", like.task, like.labels, precision, encoder, engine, path, _format(path), output, like.lend
    )


def _tensors(path: Path) -> Build:
    """An ONNX file of which nobody says what it does: its examples are arrays by the names of its inputs."""
    from toolkit.runtime.tensors import TensorEncoder

    model = onnx_file.read(path, weights=False)
    onnx_file.check(path, model)
    precision = precision_of(path)
    described = formats.get("onnx").describe(path, precision, "onnxruntime")
    encoder = TensorEncoder(described)
    engine = _engine(path)
    return Build(
        str(path), "file", tasks.get("tensors"), [], precision, encoder, engine, path, "onnx",
        str(described["outputs"][0]["name"]), lambda inputs, lengths: encoder,
    )  # fmt: skip


def _engine(path: Path) -> Engine:
    """What runs a model file here. ONNX Runtime has no kernels for products in bfloat16; the stand-in for TensorRT has
    what does the same. Raises InputError."""
    name = engines.OF_SUFFIX[path.suffix]
    if path.suffix == ".onnx" and precision_of(path) == "bf16":
        name = "tensorrt"
    with warnings.catch_warnings(action="ignore"):  # that it stands in: answers are compared here, not speed
        return engines.get(name).load(path)


def _format(path: Path) -> str:
    return engines.FORMAT_OF[engines.OF_SUFFIX[path.suffix]]


def check_tasks(first: Build, second: Build) -> None:
    """Refuse builds that are not for one task. Raises InputError."""
    if first.task.NAME != second.task.NAME:
        raise InputError(f"{first.name} is for {first.task.NAME}, {second.name} for {second.task.NAME}.")


def examples_for(first: Build, second: Build, data: Path | None, column: str | None, most: int) -> list[Any]:
    """At most `most` raw examples to compare two builds on: of a data file, or the golden ones of a bundle. Raises
    InputError."""
    check_tasks(first, second)
    if data is not None:
        first.task.check_data(data)
        found = list(itertools.islice(first.task.unlabeled(data, column), most))
        if not found:
            raise InputError(f"{data} has no examples.")
        return found
    bundle = next((build for build in (first, second) if build.kind == "bundle"), None)
    if bundle is None:
        raise InputError("Name raw examples with --data; only bundles bring some.")
    manifest = manifests.read(Path(bundle.name))
    pipeline, files = unloaded(manifest), manifest.path(bundles.GOLDEN).parent
    return [pipeline.read(entry["input"], files) for entry in bundles.golden_of(manifest)[:most]]


def inputs_for(first: Build, second: Build, examples: Sequence[Any]) -> list[Arrays]:
    """Encoded examples that both models take: the first's tensors, in a length that the second has."""
    return [borrowed(first.encoder(example), second.encoder(example), second.encoder.padding) for example in examples]


def borrowed(mine: Arrays, other: Arrays, padding: Mapping[str, int]) -> Arrays:
    """One build's tensors as another takes them: its names, and its length, filled up with `padding`."""
    given = dict(mine)
    for name, array in other.items():
        value = mine.get(name, array)
        if value.ndim == 2 == array.ndim and value.shape[1] < array.shape[1] and value.dtype.kind == "i":
            padded = np.full_like(array, padding.get(name, 0))
            padded[:, : value.shape[1]] = value
            value = padded
        given[name] = value
    return given
