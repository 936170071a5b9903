"""The whole way: model + data + target → plan → stages → candidates → gates → bundle."""

from __future__ import annotations

import importlib.metadata
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import toolkit
from toolkit import bundle as bundles
from toolkit import candidates as candidate_steps
from toolkit import checkpoint as checkpoints
from toolkit import planning, report, search, tasks
from toolkit import target as targets
from toolkit.adapters import peft_folder
from toolkit.bundle import Bundle
from toolkit.compression import Chain
from toolkit.devices import local
from toolkit.errors import RefusedError
from toolkit.planning import LEAST_TO_COMPRESS, Plan
from toolkit.runner import Finished, Reporter, Runner, Silent
from toolkit.runtime import manifest as manifests
from toolkit.runtime import unloaded
from toolkit.runtime.manifest import Manifest
from toolkit.tensorrt import engine as engine_builds
from toolkit.tensorrt.engine import BuildFiles
from toolkit.workshop import Candidate, Workshop


def prepare(runner: Runner, made: Plan) -> Finished:
    """Run the stage `prepare` of a plan."""
    return prepare_data(runner, made.checkpoint.folder, made.recipe.prepare, made.recipe.data_sha256)


def prepare_data(runner: Runner, folder: Path, parameters: Mapping[str, Any], data_sha256: str) -> Finished:
    """Run the stage `prepare` with the encoder that lies in `folder`. The data are known by their content."""
    return runner.run(
        "prepare",
        folder,
        parameters,
        title="prepare data",
        reason="deduplicate, split, and measure what the encoder needs to know",
        inputs={"data": data_sha256, "encoder": tasks.get(runner.task).encoder_sha256(folder)},
        key_parameters={**parameters, "data": None},
    )


def finetune(runner: Runner, made: Plan, data: Finished, pseudo: Finished | None = None) -> Finished:
    """Run the stage `finetune` of a plan that has one; with `pseudo`, on a model's answers to further examples too."""
    parameters = {**(made.recipe.finetune.parameters or {}), "encoding": data.report["encoding"]}
    key = {**parameters, "tensorboard": None, "track": []}
    inputs = {"source": made.checkpoint.sha256}
    if pseudo is not None:
        parameters["pseudo"] = str(pseudo.output)
        inputs["pseudo"] = pseudo.sha256
    return runner.run(
        "finetune",
        made.checkpoint.folder,
        parameters,
        title="finetune" if pseudo is None else "finetune on its own labels too",
        reason=made.recipe.finetune.reason,
        inputs=inputs,
        data=data,
        threads=local.cores(),
        key_parameters=key,
        resumable=True,
        with_torch=True,
    )


def run(made: Plan, reporter: Reporter | None = None, runner: Runner | None = None) -> Bundle:
    """Carry a plan out and write the bundle.

    Raises RefusedError, after writing the best candidate and the report, if no candidate passes the gates.
    """
    started = time.monotonic()
    runner = runner or Runner(made.cache, made.recipe.task, made.recipe.seed, reporter or Silent(), made.options.force)
    with runner.warmed():
        data = prepare(runner, made)
        original = made.checkpoint
        if made.recipe.finetune.parameters is not None:
            tuned = finetune(runner, made, data)
            original = checkpoints.inspect(tuned.output, made.task)
            runner.note(tuned, checkpoint=original.sha256)
        workshop = Workshop(
            runner=runner,
            recipe=made.recipe,
            target=made.target,
            original=original,
            checkpoint=original,
            data=data,
            measurable=local.stands_for(made.target),
            workers=min(2, local.cores()) if original.size_bytes < candidate_steps.SIDE_BY_SIDE else 1,
        )
        result = _convert(workshop)
        result = _compress(made, result) or result
    build = _build_files(result)
    summary = report.summarize(
        result.workshop, result.candidates, result.winner, result.accepted, result.timing,
        compression=result.compression, build=build.as_dict() if build else None, seconds=time.monotonic() - started,
    )  # fmt: skip
    written = _write_bundle(made, result, summary, build)
    bundle = Bundle(written.path, written.manifest, {**summary, "bundle": str(written.path)})
    if not result.accepted:
        more = f" {result.compression['outcome']}." if result.compression else ""
        raise RefusedError(
            f"No candidate for {made.target.name} passed the gates; the best one, {result.winner.name}, was kept in "
            f"{written.path} with the report. It was refused by {result.winner.refused}.{more}",
            bundle=bundle,
        )
    return bundle


@dataclass(frozen=True)
class _Result:
    """A checkpoint's candidates and the one that was chosen."""

    workshop: Workshop
    candidates: list[Candidate]
    timing: dict[str, Any]
    winner: Candidate
    accepted: bool
    compression: dict[str, Any] | None = None


def _convert(workshop: Workshop) -> _Result:
    """Make a checkpoint's candidates, judge them and choose."""
    candidates = candidate_steps.make(workshop)
    timing = candidate_steps.time_them(workshop, candidates)
    candidate_steps.judge_speed(workshop, candidates)
    winner, accepted = candidate_steps.choose(workshop, candidates)
    return _Result(workshop, candidates, timing, winner, accepted)


def _compress(made: Plan, plain: _Result) -> _Result | None:
    """Run the compression chain if the recipe wants it and convert what it leads to; None if it does not run.

    A chain that leads nowhere leaves the plain result. With budgets the trained point that comes nearest is converted:
    it will be refused, and the report says by how much.
    """
    plan = made.recipe.compress
    if plan.when == "never" or (plan.when == "if a budget asks" and not _over_budget(plain)):
        return None
    if not plain.workshop.data_report["splits"]["validation"]:  # a training part may be there for calibration alone
        return replace(plain, compression={"outcome": _TOO_FEW, "steps": [], "points": []})
    basis = search.find_basis(plain.workshop, plain.candidates)
    if basis is None:
        outcome = "Nothing was compressed: the uncompressed model passes no gate in any engine and precision"
        return replace(plain, compression={"outcome": outcome, "steps": [], "points": []})
    searched = search.Search(
        workshop=plain.workshop,
        basis=basis,
        plan=plan,
        chain=Chain(plain.workshop.runner, plain.workshop.data, planning.bf16_pays(made.task, plain.workshop.original)),
        depth=plain.workshop.original.layers if plan.layers else 0,
    )
    link = searched.run()
    found = searched.as_dict()
    if link is None or link.checkpoint.sha256 == plain.workshop.original.sha256:
        return replace(plain, compression=found)
    return replace(_convert(searched.workshop_of(link)), compression=found)


_TOO_FEW = (
    f"Nothing was compressed: the data has fewer than {LEAST_TO_COMPRESS} examples, too few to learn from and to "
    "measure on. Give more with --data, or force it with --compress"
)


def _over_budget(plain: _Result) -> bool:
    """Whether only budgets stand between a plain conversion and its acceptance."""
    return not plain.accepted and any(
        candidate.refused_by and not candidate.refused_by - search.BUDGET_GATES for candidate in plain.candidates
    )


def _build_files(result: _Result) -> BuildFiles | None:
    """What the winner's engine is built by, and the engine where it can be built here; None for other engines."""
    workshop, winner = result.workshop, result.winner
    if winner.plan.engine != "tensorrt" or winner.built is None:
        return None
    return engine_builds.prepare(workshop.runner, winner.built, winner.artifact, workshop.data_report, workshop.target)


def _write_bundle(made: Plan, result: _Result, summary: dict[str, Any], build: BuildFiles | None) -> Bundle:
    workshop, winner, accepted = result.workshop, result.winner, result.accepted
    assert winner.built is not None  # noqa: S101 - only built candidates are chosen
    assert winner.answers is not None  # noqa: S101
    task, encoding = made.task, workshop.data_report["encoding"]
    folder = winner.built.output
    artifact = {
        key: winner.artifact[key] for key in ("path", "precision", "size_bytes", "inputs", "outputs", "lengths")
    }
    if winner.artifact.get("data_files"):
        artifact["data_files"] = winner.artifact["data_files"]
    support = made.target.engine(winner.plan.engine)
    manifest = {
        "schema_version": manifests.SCHEMA_VERSION,
        "task": made.recipe.task,
        "target": {"name": made.target.name, "title": made.target.title},
        "engine": {
            "name": winner.plan.engine,
            "minimum_versions": winner.artifact["minimum_versions"],
            "versions_on_target": support.versions,
            "threads": made.recipe.threads,
            "command": support.command,
        },
        "artifact": artifact,
        "labels": workshop.names(),
        "preprocessing": task.preprocessing(folder, encoding),
        "golden": {"path": bundles.GOLDEN},
        "checkpoint": {"sha256": workshop.checkpoint.sha256},
        "source_model": {
            "name": Path(made.recipe.model.rpartition(":")[2]).resolve().name,
            "sha256": made.checkpoint.sha256,
            "architecture": made.checkpoint.architecture,
            "licence": licence(made.checkpoint.folder),
            **peft_folder.record(made.checkpoint.folder),
        },
        "tool_versions": {
            "toolkit": toolkit.__version__,
            **{name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxruntime")},
        },
        "metrics": summary,
        "accepted": accepted,
        "refusals": [] if accepted else [winner.refused],
    }

    def golden(aside: Path) -> list[dict[str, Any]]:
        assert winner.answers is not None  # noqa: S101
        examples = task.read_examples(workshop.data.output, "eval")
        ends = np.cumsum([len(task.truth([example])) for example in examples])
        return bundles.golden_examples(
            aside,
            task,
            examples,
            unloaded(Manifest(folder, manifest)),
            np.split(workshop.answers(winner.answers), ends[:-1]),
            task.sizes([example.input for example in examples], folder, encoding),
        )

    return bundles.write(
        made.output,
        artifact_folder=folder,
        manifest=manifest,
        golden=golden,
        recipe=made.recipe.to_yaml(),
        receipts=workshop.runner.write_receipts,
        report=report.html(summary, workshop.runner.receipts, made.recipe),
        replace=made.options.overwrite,
        more=build.write if build else None,
    )


def licence(folder: Path) -> str:
    """The licence that the model card's front matter names, or "not stated"."""
    card = folder / "README.md"
    if card.is_file():
        for line in card.read_text(encoding="utf-8", errors="replace").splitlines()[:60]:
            if line.lower().startswith("license:"):
                return line.partition(":")[2].strip() or "not stated"
    return "not stated"


def convert(
    model: str | os.PathLike[str],
    target: str = targets.HOST,
    *,
    reporter: Reporter | None = None,
    **given: Any,
) -> Bundle:
    """Convert a model for a target and write a bundle; the function behind `toolkit convert`.

    `model` is a Hugging Face folder, `"demo"`, `module.py:build` or an ONNX file; `given` are the fields of `Options`
    (`data`, `output`, `min_score`, …) and the settings of the task (`text_column`, …). Raises InputError for bad input,
    RefusedError if no candidate passes the gates.
    """
    return run(planning.plan(planning.options(model=os.fspath(model), target=target, **given)), reporter)
