"""Benching a bundle on this machine: start the child, collect its record, add what the parent knows."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from toolkit import bundle as bundles
from toolkit.child import Child
from toolkit.devices import local
from toolkit.errors import InputError
from toolkit.runner import Reporter, Silent
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest

SCHEMA_VERSION = 1
_MINIMUM_RUNS = 50
_MOST_TEXTS = 2000
_TITLE = "bench"


def _texts(manifest: Manifest, data: str | None) -> tuple[list[str], str]:
    """(texts, where they come from)."""
    if data is None:
        golden = json.loads(manifest.path(bundles.GOLDEN).read_text(encoding="utf-8"))
        return [str(example["text"]) for example in golden], "the bundle's golden examples"
    path = Path(data)
    if not path.is_file():
        raise InputError(f"Data file {path} does not exist.")
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    else:
        from toolkit import data as tables

        rows = tables.read_rows(path)
        column = tables.find_column(path, rows, None, tables.TEXT_COLUMNS, "text")
        lines = [str(row[column]) for row in rows if row[column]]
    texts = [line for line in lines if line.strip()][:_MOST_TEXTS]
    if not texts:
        raise InputError(f"{path} holds no text.")
    return texts, path.name


def bench(
    bundle: str,
    *,
    threads: int | None = None,
    data: str | None = None,
    seconds: float = 5.0,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Measure a bundle in a fresh process and return the record.

    Times in milliseconds at batch 1, from the raw text to the label; sizes in bytes. Raises InputError for a damaged
    bundle, MissingDependencyError if its engine is not installed.
    """
    reporter = reporter or Silent()
    folder = Path(bundle)
    manifest = manifests.read(folder)
    manifests.verify_files(manifest)
    texts, origin = _texts(manifest, data)
    request = {
        "bundle": str(folder.resolve()),
        "threads": threads,
        "texts": texts,
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
        "texts": len(texts),
        "texts_from": origin,
        "device": local.describe(),
        **record,
    }
