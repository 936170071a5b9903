"""Writing bundles: the folder that an app embeds. Reading and verifying them is `toolkit.runtime.manifest`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import InputError
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest
from toolkit.storage import explained, publish_folder, sha256_file, write_json

GOLDEN = "golden/examples.json"
GOLDEN_COUNT = 8
# Another CPU's kernels sum in another order, and a dynamically quantized activation may round to the next step.
GOLDEN_TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 0.25}


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
    texts: list[str], encoder: Any, logits: NDArray[Any], labels: list[str], count: int = GOLDEN_COUNT
) -> list[dict[str, Any]]:
    """Examples from the shortest to the longest with what each step must give: ids, logits, label.

    `texts` and `logits` float[n, classes] are the evaluation split and the artifact's own answers.
    """
    lengths = [len(encoder.ids(text)) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (lengths[i], i))
    positions = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    chosen = sorted({order[int(position)] for position in positions}, key=lambda i: (lengths[i], i))
    return [
        {
            "text": texts[i],
            "input_ids": encoder.ids(texts[i]),
            "logits": [round(float(value), 6) for value in logits[i]],
            "label": labels[int(logits[i].argmax())],
        }
        for i in chosen
    ]


def write(
    destination: Path,
    *,
    artifact_folder: Path,
    manifest: Mapping[str, Any],
    golden: list[dict[str, Any]],
    recipe: str,
    receipts: Any,
    report: str,
    replace: bool,
) -> Bundle:
    """Write a bundle in one step: it is whole at `destination`, or there is nothing.

    `receipts` is a function that writes the receipts into a folder. Raises InputError if the folder cannot be
    written.
    """
    if destination.exists() and not replace:
        raise InputError(f"{destination} exists already; remove it, choose another -o, or add --overwrite.")
    with explained("writing the bundle", destination), publish_folder(destination, replace=replace) as aside:
        data = dict(manifest)
        shutil.copy(artifact_folder / data["artifact"]["path"], aside / data["artifact"]["path"])
        shutil.copy(artifact_folder / "tokenizer.json", aside / "tokenizer.json")
        (aside / "golden").mkdir()
        write_json(aside / GOLDEN, golden)
        (aside / "recipe.yaml").write_text(recipe, encoding="utf-8")
        receipts(aside / "receipts")
        (aside / "report.html").write_text(report, encoding="utf-8")
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        data["files"] = {
            path.relative_to(aside).as_posix(): {"sha256": sha256_file(path), "bytes": path.stat().st_size}
            for path in files
        }
        data["content_hash"] = manifests.content_hash(data)
        write_json(aside / manifests.FILE_NAME, data)
    return Bundle(destination, data, {})


def verify(folder: Path) -> dict[str, Any]:
    """Check hashes, then replay the golden examples through the engine and compare every step.

    Raises InputError for a damaged bundle. Returns the largest logit difference and the failures, if any.
    """
    from toolkit.runtime import load

    manifest: Manifest = manifests.read(folder)
    manifests.verify_files(manifest)
    pipeline = load(folder, verify=False)
    tolerance = GOLDEN_TOLERANCE[manifest.data["artifact"]["precision"]]
    worst = 0.0
    failures = []
    golden = json.loads(manifest.path(GOLDEN).read_text(encoding="utf-8"))
    for number, example in enumerate(golden, start=1):
        ids = pipeline.encoder.ids(example["text"])
        if ids != example["input_ids"]:
            failures.append(f"golden example {number}: the tokenizer gives other ids")
            continue
        logits = pipeline.logits(example["text"])
        difference = float(np.abs(logits - np.asarray(example["logits"], dtype=np.float32)).max())
        worst = max(worst, difference)
        label = manifest.labels[int(logits.argmax())]
        if difference > tolerance:
            failures.append(f"golden example {number}: logits differ by {difference:.3g} (limit {tolerance:g})")
        elif label != example["label"] and difference > 1e-6:
            failures.append(f"golden example {number}: label '{label}' instead of '{example['label']}'")
    pipeline.close()
    return {
        "bundle": str(folder),
        "content_hash": manifest.data["content_hash"],
        "files": len(manifest.data["files"]),
        "golden_examples": len(golden),
        "largest_logit_difference": worst,
        "tolerance": tolerance,
        "failures": failures,
    }
