"""A profile to start from: that of another target, or of this machine, with a comment on every key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel

from toolkit import strict_yaml
from toolkit.errors import InputError
from toolkit.target import files, shared
from toolkit.target.calibration import Calibration
from toolkit.target.schema import HOST, Source, Target

_HEAD = """\
# A hardware profile to fill in: change the facts, delete what you do not know, and do not guess.
# Every number needs a source. `toolkit targets lint {file}` says what is missing; docs/targets.md explains the keys.
"""
_CALIBRATED = """\
# A hardware profile with the times of small kernels that were measured on this machine; estimates go by them.
"""
_COMMENTED = ("cpu", "gpu", "npu", "dla", "memory", "peaks", "budgets")


def draft(name: str, like: str) -> str:
    """The text of a profile `name` with the facts of the target `like`; `host` is this machine.

    Its numbers are stated as those of `like` until sources of one's own replace that. Raises InputError for a name
    that is none, or that is taken.
    """
    check_name(name)
    made = _named(name, files.resolve(like))
    return _HEAD.format(file=f"{name}.yaml") + "".join(_lines(made))


def check_name(name: str) -> None:
    """Raises InputError for a name that is none, or that a shipped profile has."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        raise InputError(f"'{name}' is no name for a target: small letters, digits and -, such as my-board.")
    if name == HOST or name in files.available() or name in files.aliases():
        raise InputError(f"There is a target '{name}' already; choose another name.")


def calibrated(name: str, base: Target, calibrations: Sequence[Calibration], source: str) -> str:
    """The text of a profile `name` with the facts of `base` and what was measured, of which `source` tells. What was
    measured before of other engines and numbers of threads stays."""
    new = {(one.engine, one.threads) for one in calibrations}
    kept = [one for one in base.calibration if (one.engine, one.threads) not in new]
    made = base if base.name == name else _named(name, base)
    sources = [each for each in made.sources if kept or each.covers != ["calibration"]]
    changed: dict[str, Any] = {
        "calibration": [*kept, *calibrations],
        "sources": [*sources, Source(covers=["calibration"], source=source, confidence="measured")],
    }
    if base.name == HOST and made.cpu is not None:
        changed["cpu"] = made.cpu.model_copy(update={"threads": calibrations[0].threads})
    return _CALIBRATED + "".join(_lines(made.model_copy(update=changed)))


def _named(name: str, base: Target) -> Target:
    """A target under another name; its numbers are those of `base`."""
    if base.name == HOST:
        return base.model_copy(update={"name": name})
    return base.model_copy(
        update={
            "name": name,
            "title": f"{name}, like {base.title}",
            "aliases": [],
            "sources": [
                source.model_copy(update={"source": f"{source.source} (of {base.name})"}) for source in base.sources
            ],
        }
    )


def _lines(target: Target) -> Iterator[str]:
    """The profile as YAML, with the meaning of each key of its sections beside it."""
    data = target.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    if "images" in data:  # those that are shared, by their ids
        data["images"] = [each["id"] if each["id"] in shared.images() else each for each in data["images"]]
    order = [key for key in Target.model_fields if key in data or key == "engines"]
    yield "schema_version: 1\n"
    for key in order:
        if key == "schema_version":
            continue
        if key == "calibration":
            yield from _calibration_lines(data[key])
            continue
        comments = _comments(Target.model_fields[key].annotation) if key in _COMMENTED else {}
        text = strict_yaml.dump({key: data.get(key, [])}, width=10**6 if comments else 110)  # no comment inside a value
        for line in text.splitlines():
            field = re.match(r" +(\w+):", line)
            comment = comments.get(field.group(1)) if field else None
            yield f"{line}  # {comment}\n" if comment else f"{line}\n"


def _calibration_lines(calibrations: list[dict[str, Any]]) -> Iterator[str]:
    """What was measured, a kernel a line."""
    yield "calibration:\n"
    for one in calibrations:
        head = strict_yaml.dump([{key: value for key, value in one.items() if key != "kernels"}])
        yield f"{head}  kernels:\n"
        yield from (f"  - {strict_yaml.dump_line(kernel)}\n" for kernel in one["kernels"])


def _comments(annotation: Any) -> dict[str, str]:
    """What the fields of a section mean, by their names."""
    parts = [part for part in (annotation, *getattr(annotation, "__args__", ())) if isinstance(part, type)]
    sections = [part for part in parts if issubclass(part, BaseModel) and part is not Source]
    return {
        name: field.description
        for section in sections
        for name, field in section.model_fields.items()
        if field.description
    }
