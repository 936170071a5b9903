"""Where a trained model comes from: the float checkpoint that it is, and the data that it was trained on.

A bundle holds no float weights, but the receipts of the stages that made them, by which the stage cache finds their
output. What the cache no longer has is made again from the bundle's recipe, stage by stage. A checkpoint folder that
this toolkit trained says in its receipt what it was trained on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit import checkpoint as checkpoints
from toolkit import conversion, recipe, tasks
from toolkit.cache import Cache
from toolkit.checkpoint import Checkpoint
from toolkit.conversion import Options
from toolkit.errors import InputError, ToolkitError
from toolkit.recipe import Recipe
from toolkit.runner import Finished, Runner, interrupted_key
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest
from toolkit.storage import sha256_folder, sha256_path
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
    return _of_folder(path, options)


def _of_folder(path: Path, options: Options) -> Origin:
    checkpoints.refuse_code(path, options.allow_code)
    receipt = _read_json(path / RECEIPT) if (path / RECEIPT).is_file() else {}
    task = conversion.task_of(str(path), receipt.get("task") or options.task)
    found = checkpoints.inspect(path, task)
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
    encoding = (receipt.get("parameters") or {}).get("encoding")
    return Origin(path, task, found.labels, path, encoding, data, checkpoint=found)


def _of_bundle(path: Path, options: Options, cache: Cache) -> Origin:
    manifest = manifests.read(path)
    manifests.verify_files(manifest)
    if not manifest.data["accepted"]:
        why = "; ".join(map(str, manifest.data.get("refusals") or ["no reason given"]))
        raise InputError(f"{path} was refused by its gates ({why}); continue from an accepted one, or {INSTEAD}.")
    sha256 = (manifest.data.get("checkpoint") or {}).get("sha256")
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
    encoding = prepared["report"]["encoding"]
    if made.sha256 != made.recipe.model_sha256:
        return Origin(path, task, manifest.labels, path, encoding, [data], made=made)
    # Nothing was trained for the bundle: its model is the checkpoint, and may know what it was trained on.
    checkpoint = _model(path, made.recipe, options, cache)
    known = _of_folder(checkpoint.folder, replace(options, task=task.NAME))
    if known.data:
        return replace(known, path=path)
    return Origin(path, task, manifest.labels, path, encoding, [data], checkpoint=checkpoint)


def _receipts(manifest: Manifest) -> list[dict[str, Any]]:
    """A bundle's receipts in their order. Raises InputError."""
    names = sorted(name for name in manifest.data["files"] if name.startswith("receipts/"))
    found = [_read_json(manifest.path(name)) for name in names]
    needed = ("stage", "key", "title", "parameters", "inputs", "threads", "report", "output_sha256")
    for name, receipt in zip(names, found, strict=True):
        if any(key not in receipt for key in needed):
            raise InputError(f"{manifest.folder / name} is damaged: a receipt has {', '.join(needed)}.")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return found


def _model(path: Path, made: Recipe, options: Options, cache: Cache) -> Checkpoint:
    """The model that a bundle's recipe began from. Raises InputError if it is gone, or another one now."""
    task = tasks.get(made.task)
    given = Options(
        model=made.model, weights=made.weights, task=made.task,
        allow_code=options.allow_code, allow_pickle=options.allow_pickle,
    )  # fmt: skip
    network = task.NETWORKS.get(made.model)
    if network is None and ".py:" in made.model and not options.allow_code:
        raise InputError(f"{path} was made from {made.model}, which has to be run; if you trust it, add --allow-code.")
    try:
        found = checkpoints.inspect(conversion.model_folder(given, cache), task)
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


# What the cache has


def cached(cache: Cache, key: str, sha256: str) -> Finished | None:
    """A stage's output in the cache, by the key and the hash that its receipt names; None if it is not there. What was
    changed since it was kept is forgotten, for nobody must take it from there."""
    for place in (key, interrupted_key(key, sha256)):
        receipt = cache.receipt(place)
        if receipt is None or receipt["output_sha256"] != sha256:
            continue
        if sha256_folder(cache.entry(place) / "output") == sha256:
            return Finished(cache.entry(place) / "output", receipt)
        with cache.lock(place):
            cache.forget(place)
    return None


# Making again what the cache no longer has


def prepared(
    origin: Origin, entry: TrainedOn, file: str | None, options: Options, cache: Cache, runner: Runner
) -> Finished:
    """Data that a model was trained on, split as they were then. `file` is where they lie now, if the user said so.

    Raises InputError if they are gone, or have changed and the user did not name them.
    """
    known = None
    if entry.key is not None and entry.prepared_sha256 is not None:
        known = cached(cache, entry.key, entry.prepared_sha256)
    if file is None and known is not None:
        return known
    place = Path(file or str(entry.parameters["data"]))
    parameters = {**entry.parameters, "data": str(place)}
    try:
        origin.task.check_data(place)
    except InputError as error:
        raise InputError(
            f"{origin.path} was trained on {place}, which cannot be read ({error}) Name the file with --old-data."
        ) from error
    same = origin.task.data_sha256(parameters) == entry.data_sha256
    if same and known is not None:
        return known
    if not same and file is None:
        raise InputError(
            f"{origin.path} was trained on {place}, which has changed since. Name the file as it was with --old-data."
        )
    if not same:
        origin.notes.append(
            f"{place} is not what {origin.path} was trained on: its split is a new one, and the model may have learned "
            "from what now evaluates it"
        )
        # Data that only measured the model were not split; these are said to be what it learned from.
        parameters |= {"evaluate_only": False, "least_to_split": 0, "calibration": 0}
    folder = _encoder_of_then(origin, options, cache)
    data = conversion.prepare_data(runner, folder, parameters, origin.task.data_sha256(parameters))
    if same and entry.prepared_sha256 not in (None, data.sha256):
        origin.notes.append(
            f"{place} was prepared anew and is not byte for byte what it was then (other versions of the libraries?): "
            "the old evaluation examples may be others"
        )
    return data


def _encoder_of_then(origin: Origin, options: Options, cache: Cache) -> Path:
    """What the data were prepared with: the recipe's model, or what the bundle keeps of its encoder."""
    if origin.made is None:
        return origin.encoder
    try:
        return _model(origin.path, origin.made.recipe, options, cache).folder
    except InputError:
        return origin.encoder


def checkpoint_of(
    origin: Origin, data: Sequence[Finished], options: Options, cache: Cache, runner: Runner
) -> Checkpoint:
    """The float checkpoint of an origin: the folder itself; of a bundle what the cache has, or else what its recipe
    makes anew from the prepared `data`. Raises InputError if that cannot be done."""
    if origin.checkpoint is not None:
        return origin.checkpoint
    assert origin.made is not None  # noqa: S101 - a bundle's, without a model that is its checkpoint
    receipt = origin.made.of(origin.made.sha256)
    if receipt is None:
        raise InputError(f"{origin.path}: no receipt says which stage made its checkpoint; {INSTEAD}.")
    kept = cached(cache, str(receipt["key"]), str(receipt["output_sha256"]))
    if kept is not None:
        found = checkpoints.inspect(kept.output, origin.task)
    else:
        found = _Again(origin, origin.made, data[0], options, cache, runner).checkpoint(origin.made.sha256)
        if found.sha256 != origin.made.sha256:
            origin.notes.append(
                f"the checkpoint behind {origin.path} was made anew and is not byte for byte the one from then (other "
                "versions of the libraries, or another processor)"
            )
    checkpoints.refuse_code(found.folder, options.allow_code)
    return found


class _Again:
    """Runs the stages again that led to a bundle's checkpoint, each as its receipt says."""

    def __init__(
        self, origin: Origin, made: Made, data: Finished, options: Options, cache: Cache, runner: Runner
    ) -> None:
        self.origin, self.made, self.data, self.cache, self.runner = origin, made, data, cache, runner
        self.model = _model(origin.path, made.recipe, options, cache)

    def checkpoint(self, sha256: str) -> Checkpoint:
        """The checkpoint that had this hash, made from the recipe's model."""
        if sha256 == self.made.recipe.model_sha256:
            return self.model
        receipt = self.made.of(sha256)
        if receipt is None:
            raise InputError(f"{self.origin.path}: no receipt says which stage made the checkpoint {sha256[:12]}.")
        return checkpoints.inspect(self._stage(receipt).output, self.origin.task)

    def _stage(self, receipt: Mapping[str, Any]) -> Finished:
        """The output of a stage that takes a checkpoint: from the cache, or by running it again."""
        kept = cached(self.cache, str(receipt["key"]), str(receipt["output_sha256"]))
        if kept is not None:
            return kept
        inputs = receipt["inputs"]
        source = self.checkpoint(inputs["source"])
        known = {other["output_sha256"]: other for other in self.made.receipts if other["stage"] == "teach"}
        teaching = [self._stage(known[inputs[name]]) for name in sorted(inputs) if name.startswith("teaching ")]
        given: dict[str, Any] = dict(receipt["parameters"])
        if teaching:
            given["teaching"] = [str(each.output) for each in teaching]
        if "unlabeled" in inputs:
            given["unlabeled"] = self._unlabeled(inputs["unlabeled"])
        finished = self.runner.run(
            receipt["stage"], source.folder, given,
            title=receipt["title"], reason="the cache no longer has the checkpoint behind the bundle",
            inputs={**inputs, "source": source.sha256, **{f"teaching {i}": t.sha256 for i, t in enumerate(teaching)}},
            data=self.data, threads=receipt["threads"], key_parameters=receipt["parameters"],
            resumable=receipt["stage"] != "teach" and bool(given.get("epochs", 1)), with_torch=True,
        )  # fmt: skip
        if finished.report.get("interrupted"):  # half a training is not what the bundle came from
            raise KeyboardInterrupt
        return finished

    def _unlabeled(self, sha256: str) -> str:
        """The recipe's texts without labels. Raises InputError if they are gone or changed."""
        path = Path(str(self.made.recipe.compress.unlabeled))
        if not path.is_file() or sha256_path(path) != sha256:
            raise InputError(
                f"{self.origin.path}: the texts {path}, which its checkpoint learned from, are gone or changed; put "
                f"them back, or {INSTEAD}."
            )
        return str(path)
