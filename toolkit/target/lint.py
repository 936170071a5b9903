"""What is wrong with a profile although its schema holds: numbers without a source, rules that do not fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

from toolkit import rules, shipped, strict_yaml
from toolkit.engines import KINDS
from toolkit.errors import InputError
from toolkit.target import shared
from toolkit.target.files import families, load_file
from toolkit.target.schema import EngineSupport, Target

# Keys that hold no fact about the hardware: a setting, and what has a source of its own.
_NO_FACTS = ("schema_version", "cpu.threads", "images", "sources")
_SETTING = ".max_fallback"


def lint(path: Path) -> list[str]:
    """What is wrong with a profile file beyond the schema; an empty list means clean."""
    try:
        target = load_file(path)
    except InputError as error:
        return str(error).splitlines()
    problems = []
    if path.stem != target.name:
        problems.append(f"name '{target.name}' differs from the file name")
    keys = list(_keys(target.model_dump(mode="json", exclude_none=True)))
    covered = {key for source in target.sources for key in source.covers}
    for key, value in keys:
        if key.endswith(_SETTING):
            continue
        if isinstance(value, int | float) and not _under(key, covered) and not _under(key, _NO_FACTS):
            problems.append(f"no source covers the number '{key}'")
    for key in sorted(covered):
        if not any(_under(known, [key]) for known, _ in keys):
            problems.append(f"a source covers '{key}', which the profile does not have")
    for processor, peaks in target.peaks.items():
        for engine in target.engines:
            if engine.processor == processor and peaks.rate("fp32") is None and "fp32" in engine.precisions:
                problems.append(f"peaks.{processor} has no fp32 rate; no estimate can be made")
                break
    problems += [problem for engine in target.engines for problem in _rules_fit(engine)]
    problems += [
        f"other_runtimes.{other.name}: there is no rule table '{other.rules}'"
        for other in target.other_runtimes
        if other.rules is not None and other.rules not in rules.names()
    ]
    problems += _image_fits(target)
    return [f"{path}:1: {problem}" for problem in dict.fromkeys(problems)]


def lint_shared() -> list[str]:
    """What is wrong with what the shipped profiles share: faulty rule tables, and things that nothing uses."""
    folder = shipped.targets_folder()
    problems = []
    used: set[str] = set()
    for name in rules.names():
        try:
            used.update(rules.load(name).limits)
        except InputError as error:
            problems += str(error).splitlines()
    limits = strict_yaml.read(folder / "shared" / "limits.yaml", "list of limits")[0]["limits"]
    problems += [f"{folder}/shared/limits.yaml:1: no rule table names '{name}'" for name in limits if name not in used]
    holders = [*folder.glob("*.yaml"), *(folder / "families").glob("*.yaml")]
    texts = [strict_yaml.read(path, "target profile")[0] for path in holders]
    for kind, key, known in (
        ("shared/images.yaml", "images", list(shared.images())),
        ("shared/traps.yaml", "known_traps", list(shared.traps())),
        ("families", "family", list(families())),
    ):
        named = [name for data in texts for name in (data.get(key) or [] if key != "family" else [data.get(key)])]
        problems += [f"{folder}/{kind}:1: no profile names '{name}'" for name in known if name not in named]
    return problems


def _keys(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a profile as a dotted path, with its value; list items by their name, or not told apart."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _keys(item, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list) and value:
        for item in value:
            named = f"{prefix}.{item['name']}" if isinstance(item, dict) and "name" in item else prefix
            yield from _keys(item, named)
    else:
        yield prefix, value


def _under(key: str, parents: Any) -> bool:
    """Whether a dotted path is one of `parents` or lies below one."""
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def _rules_fit(engine: EngineSupport) -> Iterator[str]:
    """What does not fit between an engine's entry and the rule tables that it names."""
    missing = [name for name in (engine.rules, engine.delegate) if name is not None and name not in rules.names()]
    yield from (f"engines.{engine.name}: there is no rule table '{name}'" for name in missing)
    if (
        engine.delegate is not None
        and not missing
        and rules.load(engine.delegate).engine not in KINDS[engine.name].delegates
    ):
        yield f"engines.{engine.name}: the rule table '{engine.delegate}' is of no delegate of {engine.name}"
    if engine.rules is None or missing:
        return
    table = rules.load(engine.rules)
    if table.engine not in (engine.name, *rules.TAKE_FILES_OF.get(engine.name, ())):
        yield f"engines.{engine.name}: the rule table '{table.name}' is one of {table.engine}"
    if not SpecifierSet(engine.versions or "").contains(table.version):
        yield f"engines.{engine.name}: the rule table '{table.name}' is of {table.version}, not in {engine.versions}"
    if engine.onnx_opset_max and table.opset_max and engine.onnx_opset_max > table.opset_max:
        yield f"engines.{engine.name}: onnx_opset_max is {engine.onnx_opset_max}, and {table.name} takes {table.opsets}"


def _image_fits(target: Target) -> Iterator[str]:
    """Whether the profile's own versions are those of the image that it says they are of."""
    chosen = next((image for image in target.images if image.id == target.image), None)
    for engine in target.engines:
        version = chosen.versions.get(engine.name) if chosen else None
        if version is not None and not SpecifierSet(engine.versions or "").contains(version):
            yield f"engines.{engine.name}: image '{target.image}' has {version}, which is not in {engine.versions}"
