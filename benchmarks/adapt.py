"""Full fine-tuning against few weights: the demo's sentences, the artifact's own accuracy.

    python benchmarks/adapt.py [--methods full lora ia3 frozen] [--epochs 3]

Every method fine-tunes the same checkpoint on the same split and is scored as the float ONNX artifact on the held-out
sentences, so that the merged adapter is what is measured. Runs come from the stage cache if they are there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from toolkit import conversion, planning
from toolkit.devices import local
from toolkit.runner import library_versions
from toolkit.storage import write_json

TARGET = "x86-avx512"
# Few weights need larger steps.
LEARNING_RATES = {"full": 1e-4, "lora": 1e-3, "ia3": 3e-3, "frozen": 3e-3}


def measured(method: str, epochs: int, folder: Path) -> dict[str, Any]:
    """One conversion: what learned, and the accuracy of the float checkpoint and of the artifact."""
    output = folder / method
    plan = planning.plan(
        planning.options(
            model="demo", target=TARGET, output=str(output), adapt=method, epochs=epochs,
            learning_rate=LEARNING_RATES[method],
        )
    )  # fmt: skip
    bundle = conversion.run(plan)
    receipts = [json.loads(path.read_text()) for path in (output / "receipts").glob("*.json")]
    tuned = next(receipt for receipt in receipts if receipt["stage"] == "finetune")
    return {
        "method": method,
        "learning_rate": LEARNING_RATES[method],
        "epochs": epochs,
        "trainable": tuned["report"]["trainable"],
        "parameters": tuned["report"]["parameters"],
        "merge": tuned["report"].get("merge"),
        "seconds": tuned["seconds"],
        "peak_rss_bytes": tuned["peak_rss_bytes"],
        "accuracy": bundle.summary["score"]["before"],
        "artifact": bundle.summary["chosen"],
        "artifact_accuracy": bundle.summary["score"]["after"],
    }


def main() -> None:
    """Train, score, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(LEARNING_RATES), choices=list(LEARNING_RATES))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "adapt.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        rows = [measured(method, arguments.epochs, Path(work)) for method in arguments.methods]
    record = {
        "command": f"python benchmarks/adapt.py --methods {' '.join(arguments.methods)} --epochs {arguments.epochs}",
        "kind": "measured",
        "device": local.describe(),
        "versions": library_versions(("torch", "transformers", "peft")),
        "rows": rows,
    }
    print(f"{'method':8} {'learns':>9} {'accuracy':>9} {'artifact':>9} {'seconds':>8} {'peak RSS':>9}")
    for row in rows:
        print(
            f"{row['method']:8} {row['trainable'] / row['parameters']:9.2%} {row['accuracy']:9.4f} "
            f"{row['artifact_accuracy']:9.4f} {row['seconds']:8.0f} {row['peak_rss_bytes'] / 1e6:6.0f} MB"
        )
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
