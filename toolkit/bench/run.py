"""Benching a bundle on this machine: start the child, collect its record, add what the parent knows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from toolkit import bundle as bundles
from toolkit import tasks
from toolkit.child import Child
from toolkit.devices import local
from toolkit.errors import InputError
from toolkit.runner import Reporter, Silent
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest

SCHEMA_VERSION = 1
_MINIMUM_RUNS = 50
_MOST = 2000
_TITLE = "bench"


def examples_of(manifest: Manifest, data: str | None) -> tuple[list[Any], str]:
    """(examples as JSON that the bundle's pipeline can read, where they come from)."""
    if data is None:
        return [entry["input"] for entry in bundles.golden_of(manifest)], "the bundle's golden examples"
    path = Path(data)
    if not path.exists():
        raise InputError(f"Data file {path} does not exist.")
    found = tasks.get(manifest.task).examples_of(path, _MOST)
    if not found:
        raise InputError(f"{path} holds no examples.")
    return found, path.name


def bench(
    bundle: str,
    *,
    threads: int | None = None,
    data: str | None = None,
    seconds: float = 5.0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a bundle in a fresh process and return the record.

    Times in milliseconds at batch 1, from the raw example to the prediction; sizes in bytes. Raises InputError for a
    damaged bundle, MissingDependencyError if its engine is not installed.
    """
    reporter = reporter or Silent()
    folder = Path(bundle)
    manifest = manifests.read(folder)
    manifests.verify_files(manifest)
    examples, origin = examples_of(manifest, data)
    request = {
        "bundle": str(folder.resolve()),
        "threads": threads,
        "examples": examples,
        "seconds": seconds,
        "minimum_runs": _MINIMUM_RUNS,
        "started": time.time(),
    }
    with tempfile.TemporaryDirectory() as work:
        reporter.started(_TITLE)
        child = Child(
            "toolkit.bench.measure", request, Path(work), on_progress=lambda *step: reporter.progress(_TITLE, *step)
        )
        try:
            while not child.poll(0.2):
                pass
        except BaseException:
            child.kill()
            raise
        record = child.result()
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "measured",
        "clock": "time.perf_counter",
        "bundle": folder.name,
        "content_hash": manifest.data["content_hash"],
        "precision": manifest.data["artifact"]["precision"],
        "artifact_bytes": manifest.data["artifact"]["size_bytes"],
        "examples": len(examples),
        "examples_from": origin,
        "device": local.describe(),
        **record,
    }
