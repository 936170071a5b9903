"""Reading what a report is made from: records of `toolkit bench` and `toolkit compare`, bundles, tables of sensitivity,
the JSON of other reports, and folders of these."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import toolkit
from toolkit.bench import record as records
from toolkit.bench.record import ComparisonRecord, Record
from toolkit.errors import InputError
from toolkit.reports import conversions
from toolkit.reports.data import SCHEMA_VERSION as REPORT_SCHEMA_VERSION
from toolkit.reports.data import Budgets, Layer, Pair, Report, Sensitivity
from toolkit.runtime import manifest as manifests

M = TypeVar("M", bound=BaseModel)
_HELD = ("records", "conversions", "sensitivities", "comparisons", "pairs")  # lists of a report


def report(runs: Sequence[Path], asked: Budgets | None = None) -> Report:
    """Everything that files and folders hold, each thing once. Raises InputError naming the file and the key."""
    made = Report(toolkit=toolkit.__version__, asked=asked or Budgets())
    for path in runs:
        found = _of(path)
        for name in _HELD:
            kept = getattr(made, name)
            kept += [each for each in getattr(found, name) if each not in kept]
    return made


def _of(path: Path) -> Report:
    made = Report(toolkit=toolkit.__version__)
    if path.is_dir():
        if (path / manifests.FILE_NAME).exists():
            _add_bundle(made, path)
            return made
        files = sorted(path.glob("*.json"))
        if not files:
            raise InputError(f"{path} is no bundle, and holds no .json file of a record.")
        for file in files:
            _add(made, read(file), file)
        return made
    if not path.exists():
        raise InputError(f"{path} does not exist; give a record that `toolkit bench -o` wrote, or a bundle.")
    _add(made, read(path), path)
    return made


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def read(path: Path) -> Any:
    """A JSON document. Raises InputError."""
    try:
        return parsed(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def parsed(content: str, place: str) -> Any:
    """The JSON of a text. Raises InputError naming the place."""
    try:
        return json.loads(content, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} cannot be read as JSON: {error}") from error


def _add(made: Report, document: Any, path: Path) -> None:
    """One document, or a list of them."""
    if isinstance(document, list):
        for each in document:
            _add(made, each, path)
    elif not isinstance(document, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    elif "records" in document and "conversions" in document:
        _check_version(document, REPORT_SCHEMA_VERSION, path)
        found = _valid(Report, document, path)
        for name in _HELD:
            getattr(made, name).extend(getattr(found, name))
    elif "bundle" in document and "protocol" in document:
        made.records.append(record_of(document, str(path)))
    elif "bundles" in document and "ratios" in document:
        _check_version(document, records.SCHEMA_VERSION, path)
        made.comparisons.append(_valid(ComparisonRecord, document, path))
    elif isinstance(document.get("record"), dict) and isinstance(document.get("ratios"), list):
        _add_stored(made, document, path)
    elif "layers" in document and "float_score" in document:
        made.sensitivities.append(_sensitivity(document, path.parent.name or path.stem, path))
    else:
        raise InputError(
            f"{path} is no record of `toolkit bench -o`, no comparison, no table of sensitivity and no report of this "
            "toolkit."
        )


def _add_stored(made: Report, document: Mapping[str, Any], path: Path) -> None:
    """What `toolkit compare --baseline` wrote: a record, and its ratio to a stored one."""
    record = record_of(document["record"], str(path))
    made.records.append(record)
    for each in document["ratios"]:
        found = _valid(records.Ratio, each, path)
        made.pairs.append(
            Pair(
                a=found.bundle, b="the stored record", where=record.device.title, source=f"{path.name}, not in turn",
                kind=record.kind, **found.model_dump(exclude={"bundle", "how"}),
            )
        )  # fmt: skip


def record_of(document: Mapping[str, Any], place: str) -> Record:
    """A record. Raises InputError naming the place and the key."""
    _check_version(document, records.SCHEMA_VERSION, place)
    return _valid(Record, document, place)


def _check_version(document: Mapping[str, Any], known: int, place: object) -> None:
    version = document.get("schema_version")
    if not isinstance(version, int) or version > known:
        raise InputError(
            f"{place} has schema version {version}; this toolkit reads up to {known}. Update the toolkit on this "
            "machine."
        )
    if version < known and known == records.SCHEMA_VERSION:
        raise InputError(f"{place} has schema version {version}, of an older toolkit; measure again.")


def _valid(model: type[M], document: Mapping[str, Any], place: object) -> M:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error


def _add_bundle(made: Report, folder: Path) -> None:
    manifest = manifests.read(folder)
    receipts = []
    for path in sorted((folder / "receipts").glob("*.json")):
        found = read(path)
        if not isinstance(found, dict):
            raise InputError(f"{path} is no receipt.")
        receipts.append(found)
    name = folder.resolve().name
    try:
        made.conversions.append(conversions.of(manifest.data, name, receipts))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / manifests.FILE_NAME}: what it says of its metrics is not what this version reads ({error}). "
            "Convert the model again."
        ) from error
    for each in receipts:
        if each.get("stage") == "sensitivity" and isinstance(each.get("report"), dict):
            made.sensitivities.append(_sensitivity(each["report"], name, folder / "receipts"))


def _sensitivity(document: Mapping[str, Any], name: str, path: Path) -> Sensitivity:
    found = {key: value for key, value in document.items() if key in Sensitivity.model_fields}
    layers = document.get("layers")
    if isinstance(layers, list):
        known = Layer.model_fields
        found["layers"] = [
            {key: value for key, value in layer.items() if key in known} if isinstance(layer, dict) else layer
            for layer in layers
        ]
    return _valid(Sensitivity, {**found, "name": name}, path)
