"""The whole way: model + data + target → plan → stages → candidates → gates → bundle."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

import toolkit
from toolkit import bundle as bundles
from toolkit import candidates as candidate_steps
from toolkit import checkpoint as checkpoints
from toolkit import demo, hub, modules, recipe, report, search, stages, tasks
from toolkit import target as targets
from toolkit.adapters import peft_folder
from toolkit.bundle import Bundle
from toolkit.cache import Cache, open_cache
from toolkit.candidates import Candidate, Workshop
from toolkit.checkpoint import Checkpoint
from toolkit.compression import Chain
from toolkit.devices import local
from toolkit.errors import InputError, RefusedError
from toolkit.gates import score
from toolkit.recipe import Recipe
from toolkit.runner import Finished, Reporter, Runner, Silent
from toolkit.runtime import manifest as manifests
from toolkit.runtime import unloaded
from toolkit.runtime.manifest import Manifest
from toolkit.storage import check_output, sha256_path
from toolkit.target import Target
from toolkit.tasks.task import Task
from toolkit.training import trackers

DEFAULT_TASK = "text-classification"
# With fewer examples a part of them teaches a student little, and the rest measures it badly.
LEAST_TO_COMPRESS = 1000
CALIBRATION_EXAMPLES = 256


@dataclass(frozen=True)
class Options:
    """Everything a user can say about a conversion."""

    model: str = ""
    recipe: str | None = None
    target: str = targets.HOST
    data: str | None = None
    task: str | None = None
    output: str | None = None
    where: Sequence[tuple[str, str]] = ()
    labels: Sequence[str] | None = None
    drop_missing: bool = False
    finetune: bool | None = None
    split: bool = False  # hold a training part back although the model is trained: a stage will learn from it
    epochs: int = 3
    learning_rate: float = 1e-4
    batch_size: int = 32
    adapt: str = "full"  # which weights fine-tuning changes (`toolkit.adapters`)
    rank: int = 8
    training: Mapping[str, Any] = field(default_factory=dict)  # further parameters of the stage finetune
    augment: Mapping[str, Any] = field(default_factory=dict)  # of the task's augmentation
    options: Mapping[str, Any] = field(default_factory=dict)  # the task's own
    min_score: str = "99%"
    max_latency_ms: float | None = None
    max_size_mb: float | None = None
    max_memory_mb: float | None = None
    compress: bool | None = None  # None: if a budget is not met without it
    unlabeled: str | None = None
    unlabeled_column: str | None = None
    seed: int = 0
    force: bool = False
    overwrite: bool = False
    allow_pickle: bool = False
    allow_code: bool = False  # whether a model folder's own network may be run
    weights: str | None = None  # of a network that is given as FILE.py:FUNCTION
    adapter: str | None = None  # a folder that peft wrote, merged into the model first
    cache_dir: str | None = None
    tensorboard: str | None = None
    track: Sequence[str] = ()  # wandb, mlflow


def options(**given: Any) -> Options:
    """Options from keywords: what is no field of `Options` is the task's own, and so are the pairs of `option`."""
    known = {field.name for field in fields(Options)}
    own = {name: value for name, value in given.items() if name not in known | {"option"} and value is not None}
    own |= dict(given.get("option") or ())
    fitting = {name: value for name, value in given.items() if name in known}
    fitting |= {name: dict(fitting.get(name) or ()) for name in ("training", "augment")}
    return Options(**fitting, options=own)


@dataclass(frozen=True)
class Plan:
    """A recipe and what it was made from."""

    options: Options
    recipe: Recipe
    checkpoint: Checkpoint
    target: Target
    cache: Cache
    output: Path

    @property
    def task(self) -> Task:
        return tasks.get(self.recipe.task)


def _with_demo(options: Options) -> Options:
    """`demo` replaced by the model, data and labels that it stands for."""
    found = demo.find()
    return replace(
        options,
        model=str(found.model),
        data=options.data or str(found.data),
        task=options.task or found.task,
        where=options.where or found.where,
        labels=options.labels or found.labels,
        output=options.output or f"demo-{options.target}",
    )


def plan(options: Options, *, marker: str = manifests.FILE_NAME) -> Plan:
    """Look at model, target and options, and say what will be done. Runs no stage.

    `marker` is the file by which an output of the same kind is known; `overwrite` replaces nothing else.
    With `options.recipe`, everything but output, cache and flags comes from that recipe, and the model and the data
    must be the ones that it was made for. Raises InputError for anything that can be seen to be wrong beforehand.
    """
    given = recipe.load(Path(options.recipe)) if options.recipe else None
    if given is not None:
        options = replace(
            options, model=given.model, weights=given.weights, adapter=given.adapter, data=given.prepare["data"],
            task=given.task, target=given.target, labels=given.prepare.get("known_labels"),
        )  # fmt: skip
    elif options.model == demo.NAME and not Path(demo.NAME).exists():
        options = _with_demo(options)
    if not options.model:
        raise InputError("Name a model: a Hugging Face folder or `demo`; or a recipe with --recipe.")
    if options.data is None:
        raise InputError("Name the labelled examples with --data: the gates measure on them.")
    task = task_of(options.model, options.task)
    task.check_data(Path(options.data))
    if options.unlabeled:
        task.check_unlabeled(Path(options.unlabeled), options.unlabeled_column)
    target = targets.resolve(options.target)
    score.parse(options.min_score)
    trackers.check(options.track)
    output = Path(options.output or f"{Path(options.model.rpartition(':')[2]).resolve().name}-{target.name}")
    check_output(output, options.overwrite, marker)
    cache = open_cache(Path(options.cache_dir) if options.cache_dir else None)
    folder = model_folder(options, cache)
    checkpoint = checkpoints.inspect(folder, task)
    made = given or _recipe(options, task, checkpoint, target)
    if given is not None:
        _check_same(given, task, checkpoint, Path(options.recipe or ""))
    return Plan(options, made, checkpoint, target, cache, output)


def model_folder(options: Options, cache: Cache) -> Path:
    """The folder of the model that is named, with the adapter merged into it, if one is named. Raises InputError."""
    folder = _named_folder(options, cache)
    if options.adapter is None:
        return folder
    return peft_folder.merged(
        folder, Path(options.adapter), task_of(str(folder), options.task), cache,
        model=options.model, labels=None if options.finetune else options.labels,
    )  # fmt: skip


def _named_folder(options: Options, cache: Cache) -> Path:
    """The folder of a folder, a hub id, or FILE.py:FUNCTION. Raises InputError."""
    own = tasks.get(options.task).NETWORKS.get(options.model) if options.task else None
    named = f"{own}:build" if own is not None and not Path(options.model).exists() else options.model
    if modules.parse(named):
        return modules.imported(named, options.weights, cache.folder, options.allow_pickle)
    if options.weights is not None:
        raise InputError(f"--weights {options.weights} go with a network that is given as FILE.py:FUNCTION.")
    if hub.is_id(options.model):
        return hub.fetch(options.model, cache.folder)
    folder = Path(options.model)
    checkpoints.refuse_code(folder, options.allow_code)
    return checkpoints.from_pickle(folder, cache.folder) if options.allow_pickle else folder


def task_of(model: str, named: str | None) -> Task:
    """The task that is named, or that the local checkpoint or artifact `model` was trained for. Raises InputError."""
    config = Path(model) / "config.json"
    if named or not config.is_file():
        return tasks.get(named or DEFAULT_TASK)
    return tasks.of(checkpoints.check_folder(config.parent))


def _check_same(given: Recipe, task: Task, checkpoint: Checkpoint, path: Path) -> None:
    """Refuse to rerun a recipe on another model or other data than it was made for."""
    if checkpoint.sha256 != given.model_sha256:
        raise InputError(f"{path}: the model {given.model} is not the one that the recipe was made for.")
    if task.data_sha256(given.prepare) != given.data_sha256:
        raise InputError(f"{path}: the data {given.prepare['data']} is not what the recipe was made for.")
    unlabeled = given.compress.unlabeled
    if unlabeled is not None:
        task.check_unlabeled(Path(unlabeled), given.compress.unlabeled_column)
        if sha256_path(Path(unlabeled)) != given.compress.unlabeled_sha256:
            raise InputError(f"{path}: the texts {unlabeled} are not what the recipe was made for.")


def bf16_pays(task: Task, checkpoint: Checkpoint) -> bool:
    """Whether this machine has bf16 arithmetic, so that training in it is faster. Depthwise convolutions take longer in
    it than in float32."""
    return ("avx512_bf16" in local.isa() or "amx_bf16" in local.isa()) and not task.is_convolutional(checkpoint)


def further(given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of the stage finetune that a user named. Raises InputError for one that there is not."""
    model = stages.get("finetune").Parameters
    elsewhere = (
        "augment",
        "continual",
        "encoding",
        "pseudo",
        "tensorboard",
        "track",
    )  # those have options of their own
    known = [name for name in model.model_fields if name not in elsewhere]
    for name in given:
        if name not in known:
            raise InputError(f"Fine-tuning has no parameter '{name}'; it has: {', '.join(sorted(known))}.")
    try:
        model.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"--training {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
    return dict(given)


def hyperparameters(options: Options, task: Task, checkpoint: Checkpoint) -> dict[str, Any]:
    """Parameters of the stage finetune that options lead to. Raises InputError."""
    found = {
        "epochs": options.epochs,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
        "bf16": bf16_pays(task, checkpoint),
        "tensorboard": options.tensorboard,
        "track": list(options.track),
        **({} if options.adapt == "full" else {"adapt": options.adapt, "rank": options.rank}),
    }
    found |= further(options.training)
    if augment := task.augmentation(options.augment):
        found["augment"] = augment
    stage = importlib.import_module("toolkit.stages.finetune")
    stage.check(stage.Parameters.model_validate(found), task, checkpoint)
    return found


def _recipe(options: Options, task: Task, checkpoint: Checkpoint, target: Target) -> Recipe:
    """The recipe that options, checkpoint and target lead to."""
    finetune = recipe.finetune_plan(checkpoint, options.finetune, hyperparameters(options, task, checkpoint))
    if options.augment and finetune.parameters is None:
        raise InputError(f"--augment {next(iter(options.augment))}: nothing is trained here ({finetune.reason}).")
    tuned = checkpoint
    if finetune.parameters is not None:
        learning: Any = stages.get("finetune").Parameters.model_validate(finetune.parameters)
        tuned = recipe.as_tuned(checkpoint, task, learning.adapt, learning.prompt_tokens)
    budgets = recipe.Budgets(
        min_score=options.min_score,
        max_latency_ms=options.max_latency_ms,
        max_size_mb=options.max_size_mb,
        max_memory_mb=options.max_memory_mb,
    )
    compress = recipe.compress_plan(
        tuned,
        options.compress,
        budgets=budgets,
        multiple=target.vector_multiple,
        bf16=bf16_pays(task, checkpoint),
        texts={
            "unlabeled": options.unlabeled,
            "unlabeled_sha256": sha256_path(Path(options.unlabeled)) if options.unlabeled else None,
            "unlabeled_column": options.unlabeled_column,
        },
        keeps_width=task.KEEPS_WIDTH,
        convolutional=task.is_convolutional(checkpoint),
    )
    trained_labels = None if finetune.parameters is not None else checkpoint.labels
    if options.unlabeled and compress.when == "never":
        raise InputError(f"--unlabeled {options.unlabeled}: nothing learns from it here ({compress.reason}).")
    chosen, skipped = recipe.candidates(target, task.is_convolutional(checkpoint))
    needs_calibration = any(plan.method == "static-int8" for plan in chosen)
    shared = {
        "data": str(options.data),
        "where": [list(pair) for pair in options.where],
        "label_names": list(options.labels) if options.labels and not trained_labels else None,
        "drop_missing": options.drop_missing,
        "evaluate_only": finetune.parameters is None and not options.split and compress.when == "never",
        "calibration": CALIBRATION_EXAMPLES if trained_labels is not None and needs_calibration else 0,
        "least_to_split": LEAST_TO_COMPRESS
        if compress.when == "if a budget asks" and trained_labels is not None
        else 0,
        "known_labels": trained_labels,
        **task.settings_of(tuned),
    }
    prepare = task.preparation(shared, options.options)
    return Recipe(
        toolkit_version=toolkit.__version__,
        model=options.model,
        weights=options.weights,
        adapter=options.adapter,
        model_sha256=checkpoint.sha256,
        data_sha256=task.data_sha256(prepare),
        task=task.NAME,
        target=options.target if options.target.endswith((".yaml", ".yml")) else target.name,
        threads=target.threads,
        seed=options.seed,
        prepare=prepare,
        finetune=finetune,
        compress=compress,
        candidates=chosen,
        skipped=skipped,
        budgets=budgets,
    )


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
            workers=min(2, local.cores()),
        )
        result = _convert(workshop)
        result = _compress(made, result) or result
    summary = report.summarize(
        result.workshop, result.candidates, result.winner, result.accepted, result.timing,
        compression=result.compression, seconds=time.monotonic() - started,
    )  # fmt: skip
    written = _write_bundle(made, result, summary)
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
        chain=Chain(plain.workshop.runner, plain.workshop.data, bf16_pays(made.task, plain.workshop.original)),
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


def _write_bundle(made: Plan, result: _Result, summary: dict[str, Any]) -> Bundle:
    workshop, winner, accepted = result.workshop, result.winner, result.accepted
    assert winner.built is not None  # noqa: S101 - only built candidates are chosen
    assert winner.answers is not None  # noqa: S101
    task, encoding = made.task, workshop.data_report["encoding"]
    folder = winner.built.output
    artifact = {
        key: winner.artifact[key] for key in ("path", "precision", "size_bytes", "inputs", "outputs", "lengths")
    }
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

    `model` is a Hugging Face folder or `"demo"`; `given` are the fields of `Options` (`data`, `output`, `min_score`, …)
    and the settings of the task (`text_column`, …). Raises InputError for bad input, RefusedError if no candidate
    passes the gates.
    """
    return run(plan(options(model=os.fspath(model), target=target, **given)), reporter)
