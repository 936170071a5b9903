"""Every target profile with two models: what `toolkit convert` makes, or why it refuses.

    python benchmarks/targets.py --text tuned/ --reviews reviews.csv --image mobilenet/ --images folder/

Both models are trained checkpoints (`toolkit finetune`). Stages come from the cache where targets share them, so the
seconds are those of a run after its like. Prints a table and writes `benchmarks/targets.md` and a record to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import toolkit
from toolkit import inspection
from toolkit import target as targets
from toolkit.errors import RefusedError, ToolkitError
from toolkit.report import latency_text
from toolkit.runner import library_versions
from toolkit.storage import write_atomic, write_json

HERE = Path(__file__).parent
LEAST = "95%"
HEAD = ("target", "model", "result", "engine", "precision", "MB", "score", "rung", "latency", "s")


def convert(name: str, model: str, given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One conversion: what came out, or the reason of the refusal."""
    started = time.monotonic()
    output = folder / f"{name}-{model}"
    row: dict[str, Any] = {"target": name, "model": model}
    try:
        made = toolkit.convert(target=name, output=str(output), min_score=LEAST, **given)
        row |= _of(made, "converted", "")
    except RefusedError as error:
        reason = str(error).replace(str(output), "BUNDLE")
        row |= _of(error.bundle, "refused by a gate", reason) if error.bundle else {"reason": reason}
        row.setdefault("result", "refused by a gate")
    except ToolkitError as error:
        row |= {"result": "refused", "reason": str(error)}
    return {**row, "seconds": round(time.monotonic() - started, 1)}


def _of(bundle: Any, result: str, reason: str) -> dict[str, Any]:
    summary = bundle.summary
    chosen = next(each for each in summary["candidates"] if each["name"] == summary["chosen"])
    return {
        "result": result,
        "reason": reason,
        "engine": chosen["engine"],
        "precision": chosen["precision"],
        "megabytes": round(chosen["size_bytes"] / 1e6, 2),
        "score": round(chosen["score"], 4),
        "rung": _rung(bundle.path),
        "latency": latency_text(chosen["latency"]),
        "candidates": {each["name"]: each["outcome"] for each in summary["candidates"]},
    }


def _rung(bundle: Path) -> str | None:
    """How far the validation of a TensorRT build reached, and whether its engine is in the bundle."""
    reached: str | None = (inspection.inspect(bundle)["validation"] or {}).get("rung")
    built = any((bundle / "engines").glob("*.engine"))
    return f"{reached}, engine built, not run" if built else reached


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    known = [str(row.get(key) or "") for key in ("engine", "precision", "megabytes", "score", "rung", "latency")]
    return [row["target"], row["model"], row["result"], *known, f"{row['seconds']:.0f}"]


def markdown(rows: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> str:
    """The page."""
    lines = [
        "# Every target, two models",
        "",
        f"`python benchmarks/targets.py …` on {record['device']}; `--min-score {LEAST}`. What is not this machine has "
        "an *estimate* from its profile; `rung` is how far the validation of a TensorRT build reached.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
        *("| " + " | ".join(cells(row)) + " |" for row in rows),
        "",
        "## Why not",
        "",
    ]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["reason"]:
            text = row["reason"].replace(row["target"], "TARGET")
            reasons.setdefault(text, []).append(f"{row['target']} ({row['model']})")
    lines += [f"- {', '.join(names)}: {text}" for text, names in reasons.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("text", "reviews", "image", "images"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--only", nargs="*", help="These targets.")
    options = parser.parse_args()
    models = {
        "MiniLM": {"model": options.text, "data": options.reviews},
        "MobileNetV2": {
            "model": options.image, "data": options.images, "task": "image-classification", "allow_code": True,
        },
    }  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as work:
        for name in options.only or [targets.HOST, *sorted(targets.available())]:
            for model, given in models.items():
                rows.append(convert(name, model, given, Path(work)))
                print("  ".join(cells(rows[-1])), rows[-1]["reason"][:150], flush=True)
    from toolkit.devices import local

    record = {"versions": library_versions(("torch", "onnxruntime", "ai-edge-litert", "tensorrt-rtx-cu12")),
              "device": local.describe()["cpu_model"], "rows": rows}  # fmt: skip
    if not options.only:
        write_json(HERE / "results" / "targets.json", record)
        write_atomic(HERE / "targets.md", markdown(rows, record))


if __name__ == "__main__":
    main()
