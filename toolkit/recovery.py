"""Gets back a trained model's float checkpoint and the data that it was trained on: from the stage cache, by the keys
of the receipts, or by running those stages again whose output the cache no longer has."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit import checkpoint as checkpoints
from toolkit import conversion
from toolkit.cache import Cache
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError
from toolkit.planning import Options
from toolkit.provenance import INSTEAD, Made, Origin, TrainedOn, model_of
from toolkit.runner import Finished, Runner, interrupted_key
from toolkit.storage import sha256_folder, sha256_path

_KEY = re.compile("[0-9a-f]{64}")  # of the cache


def cached(cache: Cache, key: str, sha256: str) -> Finished | None:
    """A stage's output in the cache, by the key and the hash that its receipt names; None if it is not there. What was
    changed since it was kept is forgotten, for nobody must take it from there."""
    if not _KEY.fullmatch(key):  # it comes with a bundle, and would be a path
        return None
    for place in (key, interrupted_key(key, sha256)):
        receipt = cache.receipt(place)
        if receipt is None or receipt["output_sha256"] != sha256:
            continue
        if sha256_folder(cache.entry(place) / "output") == sha256:
            return Finished(cache.entry(place) / "output", receipt)
        with cache.lock(place):
            cache.forget(place)
    return None


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
    place = Path(file or str(entry.parameters.get("data")))
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
        return model_of(origin.path, origin.made.recipe, options, cache).folder
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
    elif data[0].receipt["inputs"]["data"] != origin.made.recipe.data_sha256:
        raise InputError(
            f"{origin.path}: the cache no longer has its checkpoint. To make it again, --old-data must be the file of "
            f"then; or {INSTEAD}."
        )
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
        self.model = model_of(origin.path, made.recipe, options, cache)

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
        teaching = [self._teaching(inputs[name]) for name in sorted(inputs) if name.startswith("teaching ")]
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

    def _teaching(self, sha256: str) -> Finished:
        """What a teacher said. Raises InputError if no receipt tells of it."""
        receipt = next((each for each in self.made.receipts if each["output_sha256"] == sha256), None)
        if receipt is None:
            raise InputError(f"{self.origin.path}: no receipt says which stage made {sha256[:12]}.")
        return self._stage(receipt)

    def _unlabeled(self, sha256: str) -> str:
        """The recipe's texts without labels. Raises InputError if they are gone or changed."""
        path = Path(str(self.made.recipe.compress.unlabeled))
        if not path.is_file() or sha256_path(path) != sha256:
            raise InputError(
                f"{self.origin.path}: the texts {path}, which its checkpoint learned from, are gone or changed; put "
                f"them back, or {INSTEAD}."
            )
        return str(path)
