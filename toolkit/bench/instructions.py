"""Instructions of a bundle's inferences on an emulated CPU, and whether its answers are those of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from toolkit import engines
from toolkit.bench.run import SCHEMA_VERSION, examples_of
from toolkit.devices import emulator
from toolkit.runner import Reporter, Silent
from toolkit.runtime import manifest as manifests
from toolkit.runtime import unloaded

EXAMPLES = 3
_TITLE = "count instructions"
HEAD = ("class of instructions", "per inference", "share")


def count(
    bundle: str,
    device: str,
    cache: Path,
    *,
    data: str | None = None,
    examples: int = EXAMPLES,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Count the instructions of at most `examples` inferences, on one thread, from encoded inputs to outputs.

    Raises InputError for a damaged bundle or an engine that fails there, MissingDependencyError for a device that is
    not set up.
    """
    reporter = reporter or Silent()
    manifest = manifests.read(Path(bundle))
    manifests.verify_files(manifest)
    emulated = emulator.connect(device, cache)
    recorded, origin = examples_of(manifest, data)
    pipeline = unloaded(manifest)
    files = manifest.path("golden")
    inputs = [pipeline.encoder(pipeline.read(each, files)) for each in recorded[:examples]]
    reporter.started(_TITLE)
    reporter.progress(_TITLE, 0, 1, f"{len(inputs)} examples on {emulated.cpu}")
    found = emulated.count(manifest.engine, manifest.artifact, inputs)
    reporter.progress(_TITLE, 1, 1, "done")
    here = engines.get(manifest.engine).load(manifest.artifact, 1)
    answers = [(here.run(given), each.answers) for given, each in zip(inputs, found, strict=True)]
    here.close()
    names = list(found[0].instructions)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "emulated",
        "clock": "none: instructions are counted",
        "bundle": Path(bundle).name,
        "content_hash": manifest.data["content_hash"],
        "precision": manifest.data["artifact"]["precision"],
        "artifact_bytes": manifest.data["artifact"]["size_bytes"],
        "engine": {"engine": manifest.engine, "threads": 1},
        "examples": len(inputs),
        "examples_from": origin,
        "device": emulated.describe(),
        "instructions": {name: float(np.mean([each.instructions[name] for each in found])) for name in names},
        "instructions_of_each": [each.instructions["total"] for each in found],
        "largest_difference": max(float(np.abs(a[name] - b[name]).max()) for a, b in answers for name in a),
        "bit_exact": all(np.array_equal(a[name], b[name]) for a, b in answers for name in a),
    }


def rows(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    """A row per class, under `HEAD`; what is in none is moves, addresses and other arithmetic."""
    total = record["instructions"]["total"]
    made = [
        (name.replace("_", " "), f"{value / 1e6:.3f} M", f"{100 * value / total:.1f} %")
        for name, value in record["instructions"].items()
        if value and name != "total"
    ]
    return [("all", f"{total / 1e6:.3f} M", ""), *made]


def sentence(record: dict[str, Any]) -> str:
    """What the count stands for, and how the answers compare."""
    same = "the same to the last bit" if record["bit_exact"] else f"{record['largest_difference']:.1e} apart at most"
    device = record["device"]
    return (
        f"Emulated {device['cpu_model']} (QEMU {device['qemu']}), {record['engine']['engine']}, 1 thread, mean of "
        f"{record['examples']} examples ({record['examples_from']}). A count of instructions, not a time. Answers here "
        f"and there: {same}."
    )
