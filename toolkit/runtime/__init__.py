"""What an app imports on the device: numpy, tokenizers and the bundle's one engine. No framework.

import toolkit
classify = toolkit.load("bundle/")
classify("a quiet, brilliant film")   # {'label': 'positive', 'score': 0.99, …}
"""

from __future__ import annotations

import importlib
import os
import warnings
from pathlib import Path
from typing import Any

from toolkit import engines, silence
from toolkit.errors import InputError
from toolkit.runtime import manifest as manifests

# Adding a task: one file in this folder with a PIPELINE class, and one line here.
_TASKS = {"text-classification": "toolkit.runtime.text_classification"}


def load(bundle: str | os.PathLike[str], *, threads: int | None = None, verify: bool = True) -> Any:
    """Load a bundle into its engine: a callable that takes raw examples.

    Everything is checked before anything is loaded: schema, paths, hashes (unless `verify=False`), engine
    version. `threads` overrides the bundle's own number. A bundle that its gates refused loads with a warning.

    Raises InputError for a damaged or foreign folder, MissingDependencyError for a missing or old engine.
    """
    silence.apply()
    manifest = manifests.read(Path(bundle))
    if verify:
        manifests.verify_files(manifest)
    if manifest.task not in _TASKS:
        raise InputError(f"{bundle}: this toolkit does not know the task '{manifest.task}'. Update it.")
    if not manifest.data["accepted"]:
        reasons = "; ".join(manifest.data.get("refusals", []))
        warnings.warn(f"The gates refused this bundle: {reasons}", stacklevel=2)
    module = engines.get(manifest.engine)
    package = getattr(module, "distribution", lambda: manifest.engine)()
    manifests.check_engine_version(manifest, package, module.version())
    pipeline = importlib.import_module(_TASKS[manifest.task]).PIPELINE
    return pipeline(manifest, module.load(manifest.artifact, threads or manifest.threads))
