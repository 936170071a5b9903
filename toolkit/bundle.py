"""Writing bundles: the folder that an app embeds. Reading and verifying them is `toolkit.runtime.manifest`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest
from toolkit.runtime.pipeline import Pipeline
from toolkit.storage import explained, publish_folder, sha256_file, write_json

if TYPE_CHECKING:
    from toolkit.tasks.task import Example, Task

GOLDEN = "golden/examples.json"
GOLDEN_COUNT = 8
# Another CPU's kernels sum in another order, and a dynamically quantized activation may round to the next step.
# bfloat16 rounds every sum: an encoder's logits were 0.105 from float32's at most.
GOLDEN_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.2, "int8": 0.25}


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, as `toolkit.convert` returns it."""

    path: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]

    def load(self) -> Any:
        """The bundle as a callable; the same as `toolkit.load(bundle.path)`."""
        from toolkit.runtime import load

        return load(self.path)


def golden_examples(
    folder: Path,
    task: Task,
    examples: Sequence[Example],
    pipeline: Pipeline,
    answers: Sequence[NDArray[Any]],
    sizes: Sequence[int],
    count: int = GOLDEN_COUNT,
) -> list[dict[str, Any]]:
    """Examples from the smallest to the largest with what each step must give: inputs, answers, decision.

    `examples`, their `sizes` and the artifact's own `answers` float[rows, width] are the evaluation split's. Files that
    an example needs are written to `folder`.
    """
    order = sorted(range(len(examples)), key=lambda i: (sizes[i], i))
    positions = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    chosen = sorted({order[int(position)] for position in positions}, key=lambda i: (sizes[i], i))
    return [
        {
            "input": task.record(examples[i].input, folder, f"{number:02d}"),
            "tensors": pipeline.encoder.record(pipeline.encoder(examples[i].input), folder, f"{number:02d}"),
            "answers": [[round(float(value), 6) for value in row] for row in answers[i]],
            "decision": pipeline.decision(answers[i], examples[i].input),
        }
        for number, i in enumerate(chosen, start=1)
    ]


def write(
    destination: Path,
    *,
    artifact_folder: Path,
    manifest: Mapping[str, Any],
    golden: Callable[[Path], list[dict[str, Any]]],
    recipe: str,
    receipts: Any,
    report: str,
    replace: bool,
    more: Callable[[Path], None] | None = None,
) -> Bundle:
    """Write a bundle in one step: it is whole at `destination`, or there is nothing.

    `receipts` and `golden` are functions that write into a folder, the receipts and what golden examples need; the
    latter returns these. `more` writes what else the engine wants into the bundle. Raises InputError if the folder
    cannot be written.
    """
    if destination.exists() and not replace:
        raise InputError(f"{destination} exists already; remove it, choose another -o, or add --overwrite.")
    with explained("writing the bundle", destination), publish_folder(destination, replace=replace) as aside:
        data = dict(manifest)
        for name in (data["artifact"]["path"], *data["artifact"].get("data_files", ())):
            shutil.copy(artifact_folder / name, aside / name)
        shutil.copy(artifact_folder / data["preprocessing"]["path"], aside / data["preprocessing"]["path"])
        (aside / "golden").mkdir()
        write_json(aside / GOLDEN, golden((aside / GOLDEN).parent))
        (aside / "recipe.yaml").write_text(recipe, encoding="utf-8")
        receipts(aside / "receipts")
        (aside / "report.html").write_text(report, encoding="utf-8")
        if more is not None:
            more(aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        data["files"] = {
            path.relative_to(aside).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in files
        }
        data["content_hash"] = manifests.content_hash(data)
        write_json(aside / manifests.FILE_NAME, data)
    return Bundle(destination, data, {})


def golden_of(manifest: Manifest) -> list[dict[str, Any]]:
    """A bundle's golden examples. Raises InputError for a bundle from before schema version 2."""
    if manifest.data["schema_version"] < 2:
        raise InputError(
            f"{manifest.folder} was written by an older version, whose golden examples this one does not read; "
            "convert the model again."
        )
    found: list[dict[str, Any]] = json.loads(manifest.path(GOLDEN).read_text(encoding="utf-8"))
    return found


def verify(folder: Path) -> dict[str, Any]:
    """Check hashes, then replay the golden examples through the engine and compare every step.

    Raises InputError for a damaged bundle. Returns the largest difference of an answer and the failures, if any.
    """
    from toolkit.runtime import load

    manifest: Manifest = manifests.read(folder)
    manifests.verify_files(manifest)
    golden = golden_of(manifest)
    pipeline = load(folder, verify=False)
    tolerance = GOLDEN_TOLERANCE[manifest.data["artifact"]["precision"]]
    worst = 0.0
    failures = []
    files = manifest.path(GOLDEN).parent
    for number, entry in enumerate(golden, start=1):
        example = pipeline.read(entry["input"], files)
        if not pipeline.encoder.same(pipeline.encoder(example), entry["tensors"], files):
            failures.append(f"golden example {number}: the encoder gives other tensors")
            continue
        answers = pipeline.answers(example)
        difference = float(np.abs(answers - np.asarray(entry["answers"], dtype=np.float32)).max())
        worst = max(worst, difference)
        decision = pipeline.decision(answers, example)
        if difference > tolerance:
            failures.append(f"golden example {number}: answers differ by {difference:.3g} (limit {tolerance:g})")
        elif decision != entry["decision"] and difference > 1e-6:
            failures.append(f"golden example {number}: '{decision}' instead of '{entry['decision']}'")
    pipeline.close()
    return {
        "bundle": str(folder),
        "content_hash": manifest.data["content_hash"],
        "files": len(manifest.data["files"]),
        "golden_examples": len(golden),
        "largest_difference": worst,
        "tolerance": tolerance,
        "failures": failures,
    }
