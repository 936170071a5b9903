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

from toolkit import engines, silence, tasks
from toolkit.errors import InputError
from toolkit.runtime import manifest as manifests
from toolkit.runtime.pipeline import Pipeline


def load(bundle: str | os.PathLike[str], *, threads: int | None = None, verify: bool = True) -> Pipeline:
    """Load a bundle into its engine: a callable that takes raw examples.

    Everything is checked before anything is loaded: schema, paths, hashes (unless `verify=False`), engine
    version. `threads` overrides the bundle's own number. A bundle that its gates refused loads with a warning.

    Raises InputError for a damaged or foreign folder, MissingDependencyError for a missing or old engine.
    """
    silence.apply()
    manifest = manifests.read(Path(bundle))
    if verify:
        manifests.verify_files(manifest)
    if manifest.task not in tasks.names():
        raise InputError(f"{bundle}: this toolkit does not know the task '{manifest.task}'. Update it.")
    if not manifest.data["accepted"]:
        reasons = "; ".join(manifest.data.get("refusals", []))
        warnings.warn(f"The gates refused this bundle: {reasons}", stacklevel=2)
    module = engines.get(manifest.engine)
    package = getattr(module, "distribution", lambda: manifest.engine)()
    manifests.check_engine_version(manifest, package, module.version())
    start = getattr(module, "load_for_use", module.load)
    return _pipeline(manifest.task)(manifest, start(manifest.artifact, threads or manifest.threads))


def unloaded(manifest: manifests.Manifest) -> Pipeline:
    """The pipeline that a manifest describes, without an engine: it encodes, and reads answers that are there."""
    return _pipeline(manifest.task)(manifest, None)


def with_engine(manifest: manifests.Manifest, engine: engines.Engine) -> Pipeline:
    """The pipeline that a manifest describes, with another engine than its own."""
    return _pipeline(manifest.task)(manifest, engine)


def _pipeline(task: str) -> type[Pipeline]:
    found: type[Pipeline] = importlib.import_module(f"toolkit.runtime.{tasks.module(task)}").PIPELINE
    return found
