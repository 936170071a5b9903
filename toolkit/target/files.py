"""Profiles as files: which there are, reading one with its family, and finding the one that a name means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.version import Version

from toolkit import rules, shipped, strict_yaml
from toolkit.errors import InputError
from toolkit.target.schema import HOST, EngineSupport, Target

_SECTIONS = ("cpu", "gpu", "npu", "dla", "memory")  # filled in key by key from a family
_APPENDED = ("known_traps", "sources", "other_runtimes")  # a profile adds to its family's


def load_file(path: Path) -> Target:
    """Read and validate one profile. Raises InputError naming file, line and key."""
    data, lines = strict_yaml.read(path, "target profile")
    return strict_yaml.validate(Target, _with_family(data, path, lines), path, lines)


def families() -> dict[str, Path]:
    """Family name → file. A family holds what its devices have in common, in the keys of a profile."""
    return {path.stem: path for path in sorted((shipped.targets_folder() / "families").glob("*.yaml"))}


def _with_family(data: dict[str, Any], path: Path, lines: strict_yaml.Lines) -> dict[str, Any]:
    """A profile's data on top of those of the family that it names."""
    if "family" not in data:
        return data
    own = {key: value for key, value in data.items() if key != "family"}
    if data["family"] not in families():
        known = ", ".join(families())
        raise InputError(f"{path}:{lines['family',]}: family: there is no '{data['family']}'; known: {known}")
    base, _ = strict_yaml.read(families()[data["family"]], "family of targets")
    whole = {**base, **own}
    for key in _SECTIONS:
        if isinstance(base.get(key), dict) and isinstance(own.get(key), dict):
            whole[key] = {**base[key], **own[key]}
    for key in _APPENDED:
        if isinstance(base.get(key), list) and isinstance(own.get(key), list):
            whole[key] = [*own[key], *base[key]]  # its own first: their places are those of the file's lines
    return whole


def available() -> dict[str, Path]:
    """Profile name → file of all shipped profiles."""
    return {path.stem: path for path in sorted(shipped.targets_folder().glob("*.yaml"), key=lambda path: path.stem)}


def aliases() -> dict[str, str]:
    """Alias → profile name, over all shipped profiles. Raises InputError if two profiles claim one alias."""
    found: dict[str, str] = {}
    for name, path in available().items():
        for alias in load_file(path).aliases:
            if alias in found or alias in available() or alias == HOST:
                raise InputError(f"{path}: alias '{alias}' is already taken.")
            found[alias] = name
    return found


def resolve(name: str) -> Target:
    """The target called `name`: `host`, a profile, an alias, or the path of a YAML file; with `@IMAGE`, narrowed to
    that image.

    Raises InputError for an unknown name, suggesting the nearest.
    """
    name, image = split_image(name)
    found = _named(name)
    return found if image is None else narrowed(found, image)


def split_image(name: str) -> tuple[str, str | None]:
    """NAME@IMAGE in its parts; None if no image is named. The path of a profile may have an @ in it."""
    head, at, image = name.rpartition("@")
    return (head, image) if at and not image.endswith((".yaml", ".yml")) else (name, None)


def _named(name: str) -> Target:
    if name == HOST:
        from toolkit.devices import local

        return local.as_target()
    if name.endswith((".yaml", ".yml")):
        return load_file(Path(name))
    files = available()
    if name in files:
        return load_file(files[name])
    known_aliases = aliases()
    if name in known_aliases:
        return load_file(files[known_aliases[name]])
    candidates = [*files, *known_aliases, HOST]
    nearest = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise InputError(
        f"Unknown target '{name}'.{hint} `toolkit targets` lists all of them; a profile of your own is "
        "given as the path of its .yaml file."
    )


def narrowed(target: Target, image: str) -> Target:
    """A target with one of its images: the versions, opsets and rules of its engines are those of the image.

    Raises InputError if the target has no such image.
    """
    chosen = next((known for known in target.images if known.id == image), None)
    if chosen is None:
        known = ", ".join(known.id for known in target.images) or "none"
        raise InputError(f"Target '{target.name}' has no image '{image}'; it has: {known}.")
    engines = [_on_image(engine, chosen.versions) for engine in target.engines]
    title = f"{target.title} with {chosen.title}"
    return target.model_copy(update={"images": [chosen], "image": image, "engines": engines, "title": title})


def _on_image(engine: EngineSupport, versions: Mapping[str, str]) -> EngineSupport:
    """An engine's entry for the one version that an image has of it, or of another runtime for its files; unchanged if
    the image names none."""
    runtimes = (engine.name, *rules.TAKE_FILES_OF.get(engine.name, ()))
    runtime = next((name for name in runtimes if name in versions), None)
    if runtime is None:
        return engine
    version = versions[runtime]
    table = rules.fitting(runtime, version)
    release = ".".join(str(part) for part in Version(version).release[:2])
    found = {
        "versions": f"=={release}.*",
        "rules": table.name if table else None,
        "delegate": engine.delegate if engine.delegate and rules.load(engine.delegate).holds_for(version) else None,
        "onnx_opset_max": table.opset_max if table else None,
    }
    return engine.model_copy(update=found)
