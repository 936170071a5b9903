"""Plans: what a model, its data, a target and the options of a user lead to, before anything runs."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

import toolkit
from toolkit import checkpoint as checkpoints
from toolkit import demo, estimate, graphs, hub, modules, recipe, stages, tasks
from toolkit import target as targets
from toolkit.adapters import peft_folder
from toolkit.cache import Cache, open_cache
from toolkit.checkpoint import Checkpoint
from toolkit.devices import local
from toolkit.errors import InputError
from toolkit.gates import score
from toolkit.recipe import Recipe
from toolkit.runtime import manifest as manifests
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
    preprocessing: str | None = None  # of an ONNX file: a folder with what its encoder is made from
    graph_output: str | None = None  # of an ONNX file: the output that holds the answers
    fix: Mapping[str, int] = field(default_factory=dict)  # sizes of open axes of ONNX files, by name
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
            preprocessing=given.preprocessing, graph_output=given.graph_output, fix=given.fix,
            task=given.task, target=given.target, labels=given.prepare.get("known_labels"),
        )  # fmt: skip
    elif options.model == demo.NAME and not Path(demo.NAME).exists():
        options = _with_demo(options)
    if not options.model:
        raise InputError("Name a model: a Hugging Face folder or `demo`; or a recipe with --recipe.")
    if options.data is None:
        raise InputError("Name the labelled examples with --data: the gates measure on them.")
    task = task_of(options.model, options.task, options.preprocessing)
    check_graph(options)
    task.check_data(Path(options.data))
    if options.unlabeled:
        task.check_unlabeled(Path(options.unlabeled), options.unlabeled_column)
    target = targets.resolve(options.target)
    recipe.candidates(
        target, texts=_reads_texts(task)
    )  # refuses a target that nothing can be made for before anything is fetched
    if given is None:
        check_latency(budgets_of(options, target), target)
    score.parse(options.min_score)
    trackers.check(options.track)
    model = Path(options.model.rpartition(":")[2]).resolve().name
    output = Path(options.output or f"{model}-{output_name(options, target)}")
    check_output(output, options.overwrite, marker)
    cache = open_cache(Path(options.cache_dir) if options.cache_dir else None)
    folder = model_folder(options, cache)
    checkpoint = checkpoints.inspect(folder, task)
    check_fix(options.fix, checkpoint)
    made = given or _recipe(options, task, checkpoint, target)
    if given is not None:
        _check_same(given, task, checkpoint, Path(options.recipe or ""))
    return Plan(options, made, checkpoint, target, cache, output)


def output_name(options: Options, target: Target) -> str:
    """The part of an output's name that says what it is for."""
    image = targets.split_image(options.target)[1]
    return f"{target.name}-{image}" if image else target.name


def target_name(options: Options, target: Target) -> str:
    """What a recipe calls its target: the profile's name, or its path if it is the user's own; with the image."""
    named, image = targets.split_image(options.target)
    known = named if named.endswith((".yaml", ".yml")) else target.name
    return f"{known}@{image}" if image else known


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
    """The folder of a folder, a hub id, FILE.py:FUNCTION or an ONNX file. Raises InputError."""
    if graphs.is_graph(options.model):
        wanted = task_of(options.model, options.task, options.preprocessing)
        return graphs.imported(Path(options.model), wanted, options.preprocessing, options.graph_output, cache.folder)
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


def check_graph(options: Options) -> None:
    """Refuse what cannot be done with an ONNX file, and what can be done with nothing else. Raises InputError."""
    if not graphs.is_graph(options.model):
        for option, value in (("--preprocessing", options.preprocessing), ("--graph-output", options.graph_output)):
            if value is not None:
                raise InputError(f"{option} {value} goes with a MODEL that is an ONNX file.")
        return
    asked = {
        "--finetune": options.finetune,
        "--compress": options.compress,
        "--adapter": options.adapter,
        "--unlabeled": options.unlabeled,
        "--weights": options.weights,
    }
    for option, given in asked.items():
        if given:
            raise InputError(f"{option}: nothing can be trained or cut in an ONNX file; give the checkpoint.")


def check_fix(fix: Mapping[str, int], checkpoint: Checkpoint) -> None:
    """Refuse to fix a length that the model does not take. Raises InputError."""
    length = fix.get("length", 0)
    if not checkpoint.is_graph and length > checkpoint.model_limit:
        raise InputError(f"--fix length={length}: the model takes at most {checkpoint.model_limit} tokens.")


def task_of(model: str, named: str | None, preprocessing: str | None = None) -> Task:
    """The task that is named, or that the local checkpoint or artifact `model` was trained for. Raises InputError."""
    if graphs.is_graph(model):
        return graphs.task_of(named, preprocessing)
    config = Path(model) / "config.json"
    if named or not config.is_file():
        return tasks.get(named or DEFAULT_TASK)
    return tasks.of(checkpoints.check_folder(config.parent))


def _reads_texts(task: Task) -> bool:
    return "input_ids" in task.INPUT_NAMES


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


def budgets_of(options: Options, target: Target) -> recipe.Budgets:
    """The user's budgets; where the user says nothing, those of the target's profile."""
    given = {limit: value for limit in recipe.LIMITS if (value := getattr(options, limit)) is not None}
    profile = target.budgets.model_dump(exclude_none=True)
    own = {limit: value for limit, value in profile.items() if limit not in given}
    return recipe.Budgets(
        min_score=options.min_score,
        **given,
        **own,
        given_by={limit: f"{limit} of {target.name}" for limit in own},
    )


def check_latency(budgets: recipe.Budgets, target: Target) -> None:
    """Refuse a latency budget for a target whose latency can neither be measured here nor estimated."""
    most, given_by = budgets.of("max_latency_ms")
    known = [e for e in target.engines if e.processor in target.peaks or estimate.is_calibrated(target, e)]
    if most is not None and not known and not local.stands_for(target):
        raise InputError(
            f"{given_by} {most:g} ms: no latency on '{target.name}' can be told. It is not this machine, and its "
            "profile has neither a calibration nor peak rates of what runs the model."
        )


def _recipe(options: Options, task: Task, checkpoint: Checkpoint, target: Target) -> Recipe:
    """The recipe that options, checkpoint and target lead to."""
    learned = {} if checkpoint.is_graph else hyperparameters(options, task, checkpoint)
    finetune = recipe.finetune_plan(checkpoint, options.finetune, learned)
    if options.augment and finetune.parameters is None:
        raise InputError(f"--augment {next(iter(options.augment))}: nothing is trained here ({finetune.reason}).")
    tuned = checkpoint
    if finetune.parameters is not None:
        learning: Any = stages.get("finetune").Parameters.model_validate(finetune.parameters)
        tuned = recipe.as_tuned(checkpoint, task, learning.adapt, learning.prompt_tokens)
    budgets = budgets_of(options, target)
    compress = recipe.compress_plan(
        tuned,
        False if checkpoint.is_graph else options.compress,
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
    chosen, skipped = recipe.candidates(target, task.is_convolutional(checkpoint), _reads_texts(task))
    if checkpoint.is_graph:
        chosen, skipped = recipe.of_graph(chosen, skipped, graphs.precision(checkpoint.folder))
    needs_calibration = any(plan.method in recipe.CALIBRATED for plan in chosen)
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
        preprocessing=options.preprocessing,
        graph_output=options.graph_output,
        fix=dict(options.fix),
        model_sha256=checkpoint.sha256,
        data_sha256=task.data_sha256(prepare),
        task=task.NAME,
        target=target_name(options, target),
        threads=target.threads,
        seed=options.seed,
        prepare=prepare,
        finetune=finetune,
        compress=compress,
        candidates=chosen,
        skipped=skipped,
        budgets=budgets,
    )
