"""Continual update: what a model forgets when it learns more, plain, with rehearsal, with EWC and with both.

    python benchmarks/continual.py [--epochs 2] [--rehearsal 0.5] [--ewc 0.1]

The demo's sentences are cut into two parts of another label mix: 80 % positive ones, then 80 % negative ones. A model
is fine-tuned on the first part and learns the second one by `toolkit finetune --continue-from`. All updates begin from
the same checkpoint; the old score is that on the evaluation split of the first part. Runs come from the stage cache if
they are there.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from pathlib import Path
from typing import Any

from toolkit import continual, demo, steps
from toolkit.devices import local
from toolkit.errors import RefusedError
from toolkit.runner import library_versions
from toolkit.storage import write_json

MIX = 0.8  # of the label that a part has more of


def parts(folder: Path, seed: int) -> list[Path]:
    """Two CSV files with half of the sentences each: `MIX` of the first are positive, of the second negative."""
    found = demo.find()
    with found.data.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == found.where[0][1]]
    sentences = {label: [row["text"] for row in rows if row["label"] == label] for label in ("0", "1")}
    for texts in sentences.values():
        random.Random(seed).shuffle(texts)
    files = []
    for name, shares in (("first", {"0": 1 - MIX, "1": MIX}), ("second", {"0": MIX, "1": 1 - MIX})):
        chosen = []
        for label, share in shares.items():
            count = round(share * len(sentences[label]))
            texts = sentences[label][:count] if name == "first" else sentences[label][-count:]
            chosen += [(text, found.labels[int(label)]) for text in texts]
        random.Random(seed).shuffle(chosen)
        path = folder / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["text", "label"])
            writer.writerows(chosen)
        files.append(path)
    return files


def updated(
    name: str, tuned: Path, new: Path, folder: Path, rehearsal: float, ewc: float, epochs: int
) -> dict[str, Any]:
    """One update: both scores before and after."""
    options = {"data": str(new), "epochs": epochs, "learning_rate": 1e-4}
    try:
        result = continual.update(
            str(folder / name.replace(" ", "-")), options, continue_from=str(tuned), rehearsal=rehearsal, ewc=ewc
        )
    except RefusedError as error:
        result = error.bundle
    found = result["continual"]
    return {
        "update": name,
        "rehearsal": rehearsal,
        "ewc": ewc,
        "epochs": epochs,
        "rehearsed": result["rehearsed"],
        "left_out": result["left_out"],
        "old": {key: found["old"][key] for key in ("examples", "before", "after", "forgetting_points")},
        "new": found["new"],
        "accepted": result["accepted"],
        "refusals": result["refusals"],
    }


def main() -> None:
    """Train, update, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rehearsal", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--ewc", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "continual.json")
    arguments = parser.parse_args()
    kinds = {"plain": (0.0, 0.0)}
    kinds |= {f"rehearsal {share:g}": (share, 0.0) for share in arguments.rehearsal}
    kinds |= {f"ewc {arguments.ewc:g}": (0.0, arguments.ewc)}
    kinds |= {f"rehearsal {share:g}, ewc {arguments.ewc:g}": (share, arguments.ewc) for share in arguments.rehearsal}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        first, second = parts(folder, arguments.seed)
        tuned = folder / "tuned"
        steps.finetune(str(tuned), {"model": str(demo.find().model), "data": str(first), "epochs": arguments.epochs})
        rows = [
            updated(name, tuned, second, folder, rehearsal, ewc, arguments.epochs)
            for name, (rehearsal, ewc) in kinds.items()
        ]
    shares = " ".join(f"{share:g}" for share in arguments.rehearsal)
    record = {
        "command": f"python benchmarks/continual.py --epochs {arguments.epochs} --rehearsal {shares} "
        f"--ewc {arguments.ewc:g} --seed {arguments.seed}",
        "kind": "measured",
        "device": local.describe(),
        "versions": library_versions(("torch", "transformers")),
        "mix": MIX,
        "rows": rows,
    }
    print(f"{'update':24} {'old before':>10} {'after':>7} {'forgotten':>10} {'new before':>11} {'after':>7}  gates")
    for row in rows:
        old, new = row["old"], row["new"]
        print(
            f"{row['update']:24} {old['before']:10.4f} {old['after']:7.4f} {old['forgetting_points']:+7.2f} pt "
            f"{new['before']:11.4f} {new['after']:7.4f}  {'passed' if row['accepted'] else 'refused'}"
        )
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
