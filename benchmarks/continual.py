"""Continual update: what a model forgets when it learns more, plain, with rehearsal, with EWC and with both.

    python benchmarks/continual.py [--pairs mix source] [--mix 0.6 0.7 0.8] [--epochs 2] [--rehearsal 0.5 1]
        [--ewc 100]

A model is fine-tuned on a first part of the demo's reviews and learns a second part by `toolkit finetune
--continue-from`. All updates begin from the same checkpoint; the old score is that on the evaluation split of the first
part. Two pairs of parts:

- `mix`: halves of the film-review sentences, 60, 70 or 80 % of the first positive, as many of the second negative.
  No sentence tells which half it is from, so what the first half taught of how frequent a label is cannot hold on both.
  The mean recall of the two classes does not count it;
- `source`: half of the sentences, and as many openings of longer reviews by others; as many positive as negative ones.

Runs come from the stage cache if they are there.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit import continual, demo, steps
from toolkit.devices import local
from toolkit.errors import RefusedError
from toolkit.runner import library_versions
from toolkit.storage import write_json

EACH = 2132  # positive and negative ones of a part of the other pair
WORDS = 21  # of an opening: the mean length of the sentences

Reviews = list[tuple[str, str]]  # text and label


def reviews(source: str) -> Reviews:
    """The demo's reviews from a source."""
    found = demo.find()
    csv.field_size_limit(1 << 30)
    with found.data.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == source]
    return [(row["text"], found.labels[int(row["label"])]) for row in rows]


def by_mix(seed: int, mix: float) -> tuple[Reviews, Reviews]:
    """Halves of the sentences: the share `mix` of the first is positive, of the second negative."""
    first, second = [], []
    for label, share in zip(demo.find().labels, (1 - mix, mix), strict=True):
        chosen = [review for review in reviews("rotten_tomatoes") if review[1] == label]
        random.Random(seed).shuffle(chosen)
        count = round(share * len(chosen))
        first += chosen[:count]
        second += chosen[count:]
    return first, second


def by_source(seed: int) -> tuple[Reviews, Reviews]:
    """Half of the sentences, and the openings of as many longer reviews."""
    parts: list[Reviews] = []
    for source in ("rotten_tomatoes", "imdb"):
        rows = reviews(source)
        random.Random(seed).shuffle(rows)
        chosen = [[text for text, of in rows if of == label][:EACH] for label in demo.find().labels]
        openings = [[" ".join(text.replace("<br />", " ").split()[:WORDS]) for text in texts] for texts in chosen]
        kept = chosen if source == "rotten_tomatoes" else openings
        parts.append([(text, label) for label, texts in zip(demo.find().labels, kept, strict=True) for text in texts])
    return parts[0], parts[1]


PAIRS = ("mix", "source")


def written(path: Path, rows: Reviews, seed: int) -> Path:
    """A CSV file of reviews in random order."""
    random.Random(seed).shuffle(rows)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


def updated(tuned: Path, new: Path, output: Path, rehearsal: float, ewc: float, epochs: int) -> dict[str, Any]:
    """One update: scores before and after, and the mean recall of the classes of the old data."""
    options = {"data": str(new), "epochs": epochs}
    try:
        result = continual.update(str(output), options, continue_from=str(tuned), rehearsal=rehearsal, ewc=ewc)
    except RefusedError as error:
        result = error.bundle
    found = result["continual"]
    old = {key: found["old"][key] for key in ("examples", "before", "after", "forgetting_points")}
    recalls = list(found["old"]["classes"].values())
    for when in ("before", "after"):
        old[f"mean_recall_{when}"] = sum(each[f"recall_{when}"] for each in recalls) / len(recalls)
    return {
        "rehearsal": rehearsal,
        "ewc": ewc,
        "rehearsed": result["rehearsed"],
        "left_out": result["left_out"],
        "old": old,
        "new": found["new"],
        "accepted": result["accepted"],
        "refusals": result["refusals"],
    }


def measured(pair: str, mix: float | None, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """All updates of a pair of parts, one after the other."""
    shares = [0.0, *arguments.rehearsal]
    kinds = dict.fromkeys((share, strength) for strength in (0.0, arguments.ewc) for share in shares)
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        parts = by_source(arguments.seed) if mix is None else by_mix(arguments.seed, mix)
        first, second = (written(folder / f"{i}.csv", part, arguments.seed) for i, part in enumerate(parts))
        options = {"model": str(demo.find().model), "data": str(first), "epochs": arguments.epochs}
        steps.finetune(str(folder / "tuned"), options)
        for i, (share, strength) in enumerate(kinds):
            made = updated(folder / "tuned", second, folder / f"updated-{i}", share, strength, arguments.epochs)
            yield {"pair": pair, "mix": mix, **made}


def show(row: dict[str, Any]) -> str:
    """A row of the table."""
    old, new = row["old"], row["new"]
    name = row["pair"] if row["mix"] is None else f"{row['pair']} {row['mix']:g}"
    return (
        f"{name:7} {row['rehearsal']:9g} {row['ewc']:5g} {old['before']:10.4f} {old['after']:7.4f} "
        f"{old['forgetting_points']:+9.2f} {old['mean_recall_before']:11.4f} {old['mean_recall_after']:7.4f} "
        f"{new['before']:10.4f} {new['after']:7.4f}  {'passed' if row['accepted'] else 'refused'}"
    )


def main() -> None:
    """Train, update, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), choices=PAIRS)
    parser.add_argument("--mix", type=float, nargs="+", default=[0.6, 0.7, 0.8])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rehearsal", type=float, nargs="+", default=[0.5, 1.0])
    parser.add_argument("--ewc", type=float, default=100.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "continual.json")
    arguments = parser.parse_args()
    print(
        f"{'parts':7} {'rehearsal':>9} {'ewc':>5} {'old before':>10} {'after':>7} {'forgotten':>9} {'mean recall':>11} "
        f"{'after':>7} {'new before':>10} {'after':>7}  gates"
    )
    rows = []
    for pair in arguments.pairs:
        for mix in arguments.mix if pair == "mix" else (None,):
            for row in measured(pair, mix, arguments):
                print(show(row), flush=True)
                rows.append(row)
    mixes, shares = (" ".join(f"{share:g}" for share in of) for of in (arguments.mix, arguments.rehearsal))
    record = {
        "command": f"python benchmarks/continual.py --pairs {' '.join(arguments.pairs)} --mix {mixes} "
        f"--epochs {arguments.epochs} --rehearsal {shares} --ewc {arguments.ewc:g} --seed {arguments.seed}",
        "kind": "measured",
        "device": local.describe(),
        "versions": library_versions(("torch", "transformers")),
        "rows": rows,
    }
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
