"""Where a trained model comes from: which float checkpoint it is, and which data it was trained on.

A bundle holds no float weights, but its recipe and the receipts of the stages that made them. A checkpoint folder that
this toolkit trained says in its receipt what it was trained on. `toolkit.recovery` gets both back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit import checkpoint as checkpoints
from toolkit import modules, planning, recipe, tasks
from toolkit.cache import Cache
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError, ToolkitError
from toolkit.planning import Options
from toolkit.recipe import Recipe
from toolkit.runner import Finished
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest
from toolkit.storage import read_json
from toolkit.tasks.task import Task

RECEIPT = "receipt.json"
INSTEAD = "name a checkpoint folder and its data: --continue-from FOLDER --old-data FILE"


class TrainedOn(BaseModel):
    """Data that a model was trained on and measured by, as the stage `prepare` split them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: dict[str, Any]  # of `prepare`
    data_sha256: str
    seed: int
    prepared_sha256: str | None = None  # None: nobody has prepared them yet
    key: str | None = None  # of the stage's output in the cache


def trained_on(prepare: Mapping[str, Any], data_sha256: str, seed: int, data: Finished) -> TrainedOn:
    """What a receipt says of the data that a checkpoint was trained on, and that were prepared as `data`."""
    return TrainedOn(
        parameters=dict(prepare), data_sha256=data_sha256, seed=seed,
        prepared_sha256=data.sha256, key=str(data.receipt["key"]),
    )  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What says how a bundle's checkpoint was made: its recipe and the receipts of its stages, in their order."""

    recipe: Recipe
    receipts: list[dict[str, Any]]
    sha256: str  # of the checkpoint

    def of(self, sha256: str) -> dict[str, Any] | None:
        """The receipt of the stage that made a checkpoint."""
        return next((receipt for receipt in self.receipts if receipt.get("checkpoint") == sha256), None)


@dataclass(frozen=True)
class Origin:
    """A trained model that the user named, before anything is run for it.

    `encoder` is a folder with what its encoder is made from, `encoding` the settings of that; None: nothing says them.
    `data` is what it was trained on, in order; empty if nothing says so. `checkpoint` is None where it has yet to be
    looked for, by `made`. `notes` are for the user, one line each.
    """

    path: Path
    task: Task
    labels: list[str]
    encoder: Path
    encoding: dict[str, Any] | None
    data: list[TrainedOn]
    checkpoint: Checkpoint | None = None
    made: Made | None = None
    notes: list[str] = field(default_factory=list)


def find(path: Path, options: Options, cache: Cache) -> Origin:
    """The model that `path` names, a bundle or a checkpoint folder. Raises InputError for what is neither, and for what
    gates refused."""
    if (path / manifests.FILE_NAME).exists():
        return _of_bundle(path, options, cache)
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path} is neither a bundle (it has no {manifests.FILE_NAME}) nor a checkpoint folder (no config.json)."
        )
    return _of_folder(path, options, cache)


def _of_folder(path: Path, options: Options, cache: Cache) -> Origin:
    checkpoints.refuse_code(path, options.allow_code)
    receipt = read_json(path / RECEIPT) if (path / RECEIPT).is_file() else {}
    task = planning.task_of(str(path), receipt.get("task") or options.task)
    folder = checkpoints.from_pickle(path, cache.folder) if options.allow_pickle else path
    found = checkpoints.inspect(folder, task)
    if found.labels is None:
        raise InputError(f"{path} is not trained for {task.NAME}; train it first with `toolkit finetune {path}`.")
    if receipt.get("accepted") is False:
        raise InputError(
            f"{path} was refused by its gates; continue from the model before it, with more that keeps what it knew."
        )
    try:
        data = [TrainedOn.model_validate(each) for each in receipt.get("trained_on", [])]
    except (ValidationError, TypeError) as error:
        raise InputError(f"{path / RECEIPT} is damaged: its 'trained_on' is not what this toolkit writes.") from error
    parameters = receipt.get("parameters")
    encoding = parameters.get("encoding") if isinstance(parameters, dict) else None
    return Origin(path, task, found.labels, folder, encoding, data, checkpoint=found)


def _of_bundle(path: Path, options: Options, cache: Cache) -> Origin:
    manifest = manifests.read(path)
    manifests.verify_files(manifest)
    if not manifest.data["accepted"]:
        why = "; ".join(map(str, manifest.data.get("refusals") or ["no reason given"]))
        raise InputError(f"{path} was refused by its gates ({why}); continue from an accepted one, or {INSTEAD}.")
    noted = manifest.data.get("checkpoint")
    sha256 = noted.get("sha256") if isinstance(noted, dict) else None
    if manifest.data["schema_version"] < manifests.SCHEMA_VERSION or sha256 is None:
        raise InputError(
            f"{path} was written by an older version, which did not note the checkpoint behind a bundle; convert the "
            f"model again, or {INSTEAD}."
        )
    made = Made(recipe.load(path / "recipe.yaml"), _receipts(manifest), str(sha256))
    task = tasks.get(manifest.task)
    prepared = next((receipt for receipt in made.receipts if receipt["stage"] == "prepare"), None)
    if prepared is None:
        raise InputError(f"{path} is damaged: none of its receipts is of the stage prepare.")
    data = TrainedOn(
        parameters=made.recipe.prepare, data_sha256=made.recipe.data_sha256, seed=made.recipe.seed,
        prepared_sha256=prepared["output_sha256"], key=prepared["key"],
    )  # fmt: skip
    encoding = prepared["report"].get("encoding")
    if made.sha256 != made.recipe.model_sha256:
        return Origin(path, task, manifest.labels, path, encoding, [data], made=made)
    # Nothing was trained for the bundle: its model is the checkpoint, and may know what it was trained on.
    checkpoint = model_of(path, made.recipe, options, cache)
    known = _of_folder(checkpoint.folder, replace(options, task=task.NAME), cache)
    if known.data:
        return replace(known, path=path)
    return Origin(path, task, manifest.labels, path, encoding, [data], checkpoint=checkpoint)


def _receipts(manifest: Manifest) -> list[dict[str, Any]]:
    """A bundle's receipts in their order. Raises InputError."""
    names = sorted(name for name in manifest.data["files"] if name.startswith("receipts/"))
    found = [read_json(manifest.path(name)) for name in names]
    needed = ("stage", "key", "title", "parameters", "inputs", "threads", "report", "output_sha256")
    for name, receipt in zip(names, found, strict=True):
        if any(key not in receipt for key in needed):
            raise InputError(f"{manifest.folder / name} is damaged: a receipt has {', '.join(needed)}.")
    return found


def model_of(path: Path, made: Recipe, options: Options, cache: Cache) -> Checkpoint:
    """The model that a bundle's recipe began from. Raises InputError if it is gone, or another one now."""
    task = tasks.get(made.task)
    given = Options(
        model=made.model, weights=made.weights, task=made.task,
        allow_code=options.allow_code, allow_pickle=options.allow_pickle,
    )  # fmt: skip
    if modules.parse(made.model) and not options.allow_code:
        raise InputError(f"{path} was made from {made.model}, which has to be run; if you trust it, add --allow-code.")
    try:
        found = checkpoints.inspect(planning.model_folder(given, cache), task)
    except ToolkitError as error:
        raise InputError(
            f"{path}: the model {made.model} that it was made from is needed and cannot be had ({error}) Put it back, "
            f"or {INSTEAD}."
        ) from error
    if found.sha256 != made.model_sha256:
        raise InputError(
            f"{path}: the model {made.model} is not the one that it was made from; it has changed since. Put that one "
            f"back, or {INSTEAD}."
        )
    return found
