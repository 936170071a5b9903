"""What is installed here, what is missing, and what to type."""

from __future__ import annotations

import importlib.metadata
import shutil
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from toolkit import cache, target
from toolkit.devices import local

DISTRIBUTION = "edge-deployment-toolkit"
_LEAST_FREE_GB = 5.0


# Extras that only collect others; the built metadata repeats the others' packages under them.
_COLLECTIONS = ("all", "test")


def _requirements() -> list[Requirement]:
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that was never installed
        text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        lines = list(project["dependencies"])
        for extra, wanted in project["optional-dependencies"].items():
            lines += [f'{line}; extra == "{extra}"' for line in wanted]
    return [Requirement(line) for line in lines]


def _extra(requirement: Requirement) -> str:
    marker = str(requirement.marker or "")
    return marker.partition("extra == ")[2].strip("\"' ") if "extra ==" in marker else "core"


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def examine() -> dict[str, Any]:
    """Device, packages per extra, and advice. `broken` lists packages that are there in a version that does not fit."""
    packages, broken, missing = [], [], set()
    seen: set[str] = set()
    for requirement in sorted(_requirements(), key=lambda r: _extra(r) in _COLLECTIONS):
        extra, installed = _extra(requirement), _installed(requirement.name)
        if requirement.name == DISTRIBUTION or (extra in _COLLECTIONS and requirement.name in seen):
            continue
        seen.add(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        packages.append(
            {
                "extra": extra,
                "package": requirement.name,
                "wanted": str(requirement.specifier),
                "installed": installed,
            }
        )
        if installed is None:
            missing.add(extra)
        elif not fits:
            broken.append(f"{requirement.name} {installed} is installed, {requirement.specifier} is needed")
    advice = [f"Extra '{extra}' is not complete: pip install '{DISTRIBUTION}[{extra}]'" for extra in sorted(missing)]
    folder = cache.default_folder()
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < _LEAST_FREE_GB:
        advice.append(f"Only {free:.1f} GB are free at {existing}; a conversion wants about {_LEAST_FREE_GB:g} GB.")
    here = [name for name, path in target.available().items() if local.stands_for(target.load_file(Path(path)))]
    advice.append(f"Measured here rather than estimated: {', '.join(['host', *here])}.")
    return {
        "device": {**local.describe(), "cache": str(folder), "free_disk_gb": round(free, 1)},
        "packages": packages,
        "advice": advice,
        "broken": list(dict.fromkeys(broken)),  # a package of several extras is broken once
    }
