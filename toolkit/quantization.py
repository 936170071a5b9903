"""Quantizing a folder of the user's: what `toolkit quantize` runs.

    checkpoint → qat → export → balance → sensitivity → quantize

An artifact folder starts behind the export. Only ONNX files can be balanced; for others `balance` comes first. Every
step is a cached stage, and each but the last is left out unless it is asked for.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from toolkit import architecture, calibration, conversion, engines, graphs, planning, stages, tasks
from toolkit import checkpoint as checkpoints
from toolkit import export as formats
from toolkit.cache import Cache, open_cache
from toolkit.checkpoint import Checkpoint
from toolkit.devices import local
from toolkit.errors import InputError, RefusedError
from toolkit.gates import score
from toolkit.recipe import CALIBRATED
from toolkit.runner import Finished, Reporter, Runner, Silent
from toolkit.storage import (
    check_output,
    copy_folder,
    explained,
    publish_folder,
    sha256_folder,
    sha256_path,
    write_json,
)  # fmt: skip
from toolkit.tasks.task import Task

RECEIPT = "receipt.json"
DEFAULT_LENGTHS = (32, 64, 128)
# Methods whose rounding, as training has to see it, is another one's: 16 bits round activations too little to count.
_TRAINED_AS = {"integer-int8": "static-int8", "int16-activations": "weight-int8"}


@dataclass(frozen=True)
class Wanted:
    """What `toolkit quantize` can be told besides the stage's own parameters (`parameters`)."""

    parameters: Mapping[str, Any] = field(default_factory=dict)
    engine: str | None = None  # of a checkpoint
    lengths: Sequence[int] | None = None
    opset: int | None = None
    sensitivity: bool = False
    min_score: str | None = None  # of the layers that are chosen: mixed precision
    examples: int = 200  # that sensitivity is measured on
    samples: int = 256
    calibration_data: str | None = None
    balance: float | None = None
    qat_epochs: int = 0
    qat_learning_rate: float = 1e-5

    @property
    def static(self) -> bool:
        return self.parameters.get("method") in formats.STATIC

    @property
    def reason_for_data(self) -> str | None:
        """Which part of the request needs labelled examples, in words; None if none does."""
        if self.qat_epochs:
            return "--qat trains on"
        if self.sensitivity or self.min_score is not None:
            return "sensitivity is measured on"
        if self.static or self.balance is not None:
            return "calibration takes"
        return None


@dataclass(frozen=True)
class _Folder:
    """A folder on the way: where it is and the hash of what is in it."""

    path: Path
    sha256: str


class Line:
    """One run of `toolkit quantize`: the stages, each on the output of the one before."""

    def __init__(self, runner: Runner, wanted: Wanted, data: Finished | None, encoding: Mapping[str, Any]) -> None:
        self.runner, self.wanted, self.data, self.encoding = runner, wanted, data, dict(encoding)

    def _run(self, stage: str, source: _Folder, parameters: Mapping[str, Any], title: str, **given: Any) -> Finished:
        """Run a stage. A file of calibration examples is known by its content in the cache's key."""
        inputs = {"source": source.sha256, **given.pop("inputs", {})}
        file = self.wanted.calibration_data
        if file is not None:
            inputs["calibration"] = sha256_path(Path(file))
        return self.runner.run(stage, source.path, parameters, title=title, inputs=inputs, **given)

    def _calibration(self, file: str | None) -> dict[str, Any]:
        return {"samples": self.wanted.samples, "encoding": self.encoding, "file": file}

    def _with_examples(self, parameters: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters with where the calibration examples are, and the same for the key, without the file's place."""
        if self.wanted.calibration_data is None:
            given = {**parameters, "examples": self._calibration(None)}
            return given, given
        return (
            {**parameters, "examples": self._calibration(self.wanted.calibration_data)},
            {**parameters, "examples": self._calibration("calibration")},
        )

    def balance(self, source: _Folder) -> _Folder:
        """Scales moved from activations into weights."""
        given, key = self._with_examples({"alpha": self.wanted.balance})
        finished = self._run(
            "balance", source, given, "balance activations", key_parameters=key, data=self.data, with_torch=True,
            threads=local.cores(), reason="asked for",
        )  # fmt: skip
        return _Folder(finished.output, finished.sha256)

    def train(self, source: _Folder) -> _Folder:
        """Fine-tuning with quantization in sight, on the model's own float answers."""
        assert self.data is not None  # noqa: S101 - checked before anything runs
        teaching = self._run(
            "teach", source, {"encoding": self.encoding}, "answers of the float model", data=self.data,
            threads=local.cores(), with_torch=True, reason="quantization-aware training learns them",
        )  # fmt: skip
        own, task = self.wanted.parameters, tasks.get(self.runner.task)
        given, key = self._with_examples(
            {
                "epochs": self.wanted.qat_epochs,
                "learning_rate": self.wanted.qat_learning_rate,
                "bf16": planning.bf16_pays(task, checkpoints.inspect(source.path, task)),
                "encoding": self.encoding,
                "method": _TRAINED_AS.get(own["method"], own["method"]),
                **{name: own[name] for name in ("calibration", "percentile", "block_size", "embeddings")
                   if name in own},
            }
        )  # fmt: skip
        finished = self._run(
            "qat", source, {**given, "teaching": [str(teaching.output)]}, "quantization-aware training",
            key_parameters=key, inputs={"teaching": teaching.sha256}, data=self.data, threads=local.cores(),
            with_torch=True, resumable=True, reason="asked for",
        )  # fmt: skip
        return _Folder(finished.output, finished.sha256)

    def export(self, source: _Folder, engine: str) -> _Folder:
        """The float artifact."""
        found = self.data.report["lengths"] if self.data else DEFAULT_LENGTHS
        lengths = self.wanted.lengths or found or None
        parameters = formats.settings(engine, lengths=lengths, opset=self.wanted.opset)
        finished = self.runner.run(
            "export", source.path, parameters, title=f"export for {engine}", reason="what is quantized",
            inputs={"source": source.sha256}, with_torch=True,
        )  # fmt: skip
        return _Folder(finished.output, finished.sha256)

    def sensitivity(self, source: _Folder, engine: str) -> Finished:
        """The table of layers, and those that stay in float."""
        given, key = self._with_examples(self.wanted.parameters)
        rest = {
            "engine": engine,
            "encoding": self.encoding,
            "examples": self.wanted.examples,
            "min_score": self.wanted.min_score,
        }
        return self._run(
            "sensitivity", source, {"quantize": given, **rest}, "sensitivity of the layers",
            key_parameters={"quantize": key, **rest}, data=self.data, reason="which layers bear fewer bits",
        )  # fmt: skip

    def quantize(self, source: _Folder, keep: Sequence[str]) -> Finished:
        """The artifact in fewer bits."""
        parameters = {**self.wanted.parameters, "keep": list(keep)}
        has_examples = self.data is not None or self.wanted.calibration_data is not None
        if not self.wanted.static and not (parameters["method"] in CALIBRATED and has_examples):
            return self.runner.run(
                "quantize", source.path, parameters, title=f"quantize by {parameters['method']}", reason="asked for",
                inputs={"source": source.sha256},
            )  # fmt: skip
        given, key = self._with_examples(parameters)
        return self._run(
            "quantize", source, given, f"quantize by {parameters['method']}", key_parameters=key, data=self.data,
            reason="asked for",
        )  # fmt: skip

    def run(self, folder: Path, engine: str, is_artifact: bool) -> tuple[list[str], Finished | None, Finished]:
        """All that was asked for: (layers that stay in float, the table of sensitivity if any, the artifact)."""
        wanted = self.wanted
        if is_artifact:
            current = _Folder(folder, sha256_folder(folder))
        else:
            current = _Folder(folder, checkpoints.inspect(folder, tasks.get(self.runner.task)).sha256)
            if wanted.balance is not None and engines.FORMAT_OF[engine] != "onnx":
                current = self.balance(current)
            if wanted.qat_epochs:
                current = self.train(current)
            current = self.export(current, engine)
        if wanted.balance is not None and engines.FORMAT_OF[engine] == "onnx":
            current = self.balance(current)
        keep = list(wanted.parameters.get("keep", ()))
        table = None
        if wanted.sensitivity or wanted.min_score is not None:
            table = self.sensitivity(current, engine)
            keep = table.report.get("keep", keep)
        return keep, table, self.quantize(current, keep)


def _check_artifact(folder: Path, wanted: Wanted) -> str:
    """The engine of an artifact folder that can be quantized as wanted. Raises InputError."""
    description = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
    if "engine" not in description:
        raise InputError(f"{folder} was written by an older version; export the checkpoint again.")
    if description["precision"] != "fp32":
        raise InputError(f"{folder} is {description['precision']} already; quantize the float export.")
    if wanted.qat_epochs:
        raise InputError(f"--qat trains a checkpoint; {folder} is an exported artifact. Give its checkpoint.")
    engine = str(description["engine"])
    if wanted.balance is not None and description["format"] != "onnx":
        raise InputError(f"Only an ONNX file can be balanced, and {folder} is none. Give its checkpoint.")
    if wanted.engine not in (None, engine):
        raise InputError(f"{folder} was exported for {engine}; --engine {wanted.engine} needs the checkpoint.")
    return engine


def _check_checkpoint(folder: Path, task: Task, wanted: Wanted) -> str:
    """The engine that a trained checkpoint is exported for. Raises InputError."""
    found = checkpoints.inspect(folder, task)
    if found.labels is None:
        raise InputError(f"{folder} is not trained for {task.NAME}; fine-tune it first with `toolkit finetune`.")
    if wanted.engine is None:
        what = "an ONNX file" if found.is_graph else "a checkpoint"
        raise InputError(f"{folder} is {what}: name what it is exported for with --engine.")
    if found.is_graph and wanted.qat_epochs:
        raise InputError("--qat trains a checkpoint; this is an ONNX file.")
    if found.is_graph and graphs.precision(folder) != "fp32":
        raise InputError(f"The ONNX file is {graphs.precision(folder)} already; quantize the float one.")
    return engines.exported_for(wanted.engine)


def _prepare(runner: Runner, task: Task, folder: Path, data: str, options: planning.Options) -> Finished:
    """The stage `prepare` with the labels that the model knows, and a training part."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    shared = {
        "data": data,
        "known_labels": [str(names[key]) for key in sorted(names, key=int)],
        "where": [list(pair) for pair in options.where],
        "drop_missing": options.drop_missing,
        **task.settings_of(Checkpoint(folder, config, {}, "")),
    }
    parameters = task.preparation(shared, options.options)
    return conversion.prepare_data(runner, folder, parameters, task.data_sha256(parameters))


def _checked(model: str, task: Task, wanted: Wanted, options: planning.Options, cache: Cache) -> tuple[Path, str]:
    """The folder of `model` and the engine that its artifact is for. Raises InputError for what cannot work."""
    if wanted.reason_for_data and options.data is None:
        raise InputError(f"Name labelled examples with --data: {wanted.reason_for_data} them.")
    if options.data is not None:
        task.check_data(Path(options.data))
    if wanted.calibration_data is not None:
        calibration.check_file(Path(wanted.calibration_data), task)
    if wanted.min_score is not None:
        score.parse(wanted.min_score)
    folder = Path(model)
    planning.check_graph(replace(options, model=model))
    is_artifact = _is_artifact(folder)
    if is_artifact and options.adapter is not None:
        raise InputError(f"--adapter {options.adapter}: {folder} is an exported artifact; give its checkpoint.")
    if not is_artifact:
        folder = planning.model_folder(replace(options, model=model), cache)
    if folder.is_dir() and not is_artifact and not (folder / "config.json").is_file():
        raise InputError(
            f"{model} is not an artifact folder, and no checkpoint; make an artifact with `toolkit export`."
        )
    engine = _check_artifact(folder, wanted) if is_artifact else _check_checkpoint(folder, task, wanted)
    form = engines.FORMAT_OF[engine]
    if wanted.balance is not None and form != "onnx":
        architecture.refuse_prompt(checkpoints.check_folder(folder))
    method = str(wanted.parameters["method"])
    formats.check_method(form, engine, method, formats.get(form).METHODS)
    formats.check_calibration(form, method, str(wanted.parameters.get("calibration", "min-max")))
    _check_method(method, task, wanted)
    stages.get("quantize").Parameters.model_validate(dict(wanted.parameters))
    if wanted.qat_epochs and method in ("fp16", "bf16"):
        raise InputError(f"--qat trains for integers; {method} needs no training.")
    return folder, engine


def _check_method(method: str, task: Task, wanted: Wanted) -> None:
    """Refuse what a method cannot be combined with. Raises InputError."""
    formats.check_integer(method, task.INPUT_NAMES)
    if method == formats.INTEGER:
        kept = wanted.parameters.get("keep") and "--keep"
        asked = kept or (wanted.min_score is not None and "--mixed") or (wanted.sensitivity and "--sensitivity")
        if asked:
            raise InputError(f"{asked} leaves layers in float; a file of {method} has none. Use static-int8.")
    calibration_method = wanted.parameters.get("calibration")
    if method == "int16-activations" and calibration_method in ("entropy", "mse"):
        raise InputError(
            f"--calibration {calibration_method} weighs what 256 steps lose, and {method} has 65,536. Use "
            "min-max or percentile."
        )
    if method != formats.INTEGER and "io" in wanted.parameters:
        raise InputError(f"--io is for {formats.INTEGER}; a file of {method} has inputs and outputs in float.")


def _is_artifact(folder: Path) -> bool:
    return (folder / "artifact.json").is_file()


def quantize(
    model: str,
    output: str,
    wanted: Wanted,
    options: Mapping[str, Any],
    *,
    reporter: Reporter | None = None,
    around: Callable[[Runner], AbstractContextManager[Any]] = contextlib.nullcontext,
) -> dict[str, Any]:
    """Quantize `model`, an artifact folder or a trained checkpoint, into the artifact folder `output`.

    `options` are those of the data and the run, by the names of `toolkit.planning.Options`. Raises InputError, and
    RefusedError if no choice of layers reaches `wanted.min_score`.
    """
    given = planning.options(**options)
    check_output(Path(output), given.overwrite, RECEIPT)
    cache = open_cache(Path(given.cache_dir) if given.cache_dir else None)
    task = planning.task_of(model, given.task, given.preprocessing)
    folder, engine = _checked(model, task, wanted, given, cache)
    runner = Runner(cache, task.NAME, given.seed, reporter or Silent(), given.force)
    with around(runner), runner.warmed():
        prepared = _prepare(runner, task, folder, given.data, given) if given.data is not None else None
        line = Line(runner, wanted, prepared, prepared.report["encoding"] if prepared else {})
        keep, table, finished = line.run(folder, engine, _is_artifact(Path(model)))
    _publish(finished, table, runner.receipts, Path(output), given.overwrite)
    return _report(output, engine, keep, table, finished, runner.receipts)


def _report(
    output: str, engine: str, keep: list[str], table: Finished | None, finished: Finished,
    receipts: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """What was made. Raises RefusedError if the layers that were chosen do not reach the score that was asked for."""
    said = [warning for receipt in receipts for warning in receipt["report"].get("warnings", ())]
    report = {
        "output": output,
        "engine": engine,
        "keep": keep,
        **finished.report,
        "warnings": list(dict.fromkeys(said)),
    }
    if table is not None:
        report["sensitivity"] = table.report
        if table.report.get("score", 1.0) < table.report.get("floor", 0.0):
            raise RefusedError(
                f"No choice of layers reaches the score {table.report['floor']:.4f}; with all of them in float it is "
                f"{table.report['score']:.4f}. The artifact was written to {output}."
            )
    return report


def _publish(
    finished: Finished, table: Finished | None, receipts: Sequence[Mapping[str, Any]], output: Path, overwrite: bool
) -> None:
    """The artifact, the table of sensitivity if there is one, and the receipts of all stages."""
    before = [receipt for receipt in receipts if receipt["key"] != finished.receipt["key"]]
    with explained("writing the output", output), publish_folder(output, replace=overwrite) as aside:
        copy_folder(finished.output, aside)
        if table is not None:
            for path in table.output.iterdir():
                shutil.copy(path, aside / path.name)
        write_json(aside / RECEIPT, {**finished.receipt, "before": before})
