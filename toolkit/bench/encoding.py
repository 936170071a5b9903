"""For devices that have no Python of their own: examples encoded here, and answers compared here."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import engines
from toolkit.bench import sizes as resizing
from toolkit.engines import Arrays
from toolkit.runtime import manifest as manifests
from toolkit.runtime import unloaded
from toolkit.runtime.manifest import Manifest


def encoded(
    folder: Path, examples: Sequence[Any], sizes: Mapping[str, int] | None = None
) -> tuple[Manifest, list[Arrays]]:
    """The manifest of a bundle, and what its artifact takes for raw examples, repeated to `sizes` if there are any."""
    manifest = manifests.read(folder)
    pipeline = unloaded(manifest)
    files = manifest.path("golden")
    arrays = [pipeline.encoder(pipeline.read(each, files)) for each in examples]
    if sizes:
        arrays = [resizing.resized(each, manifest.data["artifact"], sizes) for each in arrays]
    return manifest, arrays


EXAMPLES = 3  # whose answers are compared, of those that a device gave as JSON


def compared_with_bundle(folder: Path, step: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a step `answers` (`toolkit.bench.measure`), held against the bundle in `folder` on this machine."""
    manifest, inputs = encoded(folder, step["examples"][:EXAMPLES], step.get("sizes"))
    said: list[Arrays] = [
        {name: np.asarray(one["values"], one["dtype"]).reshape(one["shape"]) for name, one in each.items()}
        for each in result["answers"][:EXAMPLES]
    ]
    return {"engine": result["engine"], "answers": compared(manifest, inputs, said)}


def compared(manifest: Manifest, inputs: Sequence[Arrays], answers: Sequence[Arrays]) -> dict[str, Any]:
    """How a device's answers compare with those of the bundle's engine on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an engine that gives answers here and no times: answers are what is wanted
        here = engines.get(manifest.engine).load(manifest.artifact, 1)
    pairs = [(here.run(given), said) for given, said in zip(inputs, answers, strict=True)]
    here.close()
    return {
        "compared_with": f"{manifest.engine} on this machine",
        "examples": len(pairs),
        "largest_difference": max(float(np.abs(a[name] - b[name]).max()) for a, b in pairs for name in a),
        "bit_exact": all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a),
    }
