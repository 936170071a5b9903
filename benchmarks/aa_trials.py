"""How often two builds that are the same are called different.

    python benchmarks/aa_trials.py [--bundle FOLDER] [--trials 200]

Each trial times the artifact of one bundle against itself over real sentences exactly as the gates do, and asks
`toolkit.bench.statistics.compare` for its verdict. At a 95 % interval, at most 5 % of the trials may call an A/A
pair faster or slower. Without a bundle, the demo is converted for this machine (or taken from the stage cache).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import toolkit
from toolkit import conversion, demo
from toolkit import data as tables
from toolkit.bench import loops, statistics
from toolkit.devices import local
from toolkit.stages import measure as stage
from toolkit.storage import write_json


def sentences() -> list[str]:
    """Real sentences of the demo."""
    found = demo.find()
    rows = tables.where(tables.read_rows(found.data), found.data, found.where)
    return [str(row["text"]) for row in rows]


def trial(bundle: Path, texts: list[str], seed: int) -> statistics.Comparison:
    """One artifact against itself."""
    encoder = toolkit.load(bundle).encoder
    inputs = [encoder(text) for text in texts]

    def load() -> loops.Runner:
        engine = toolkit.load(bundle).engine
        return loops.Runner(lambda index: engine.run(inputs[index]), engine.close)

    times = loops.interleave({"a": load, "b": load}, len(texts), stage.ROUNDS, seed)
    return statistics.compare(times["a"], times["b"], seed)


def main() -> None:
    """Run the trials, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "aa_trials.json")
    arguments = parser.parse_args()

    texts = sentences()
    with tempfile.TemporaryDirectory() as work:
        bundle = arguments.bundle
        if bundle is None:
            bundle = conversion.convert("demo", output=str(Path(work) / "bundle")).path
        found: list[statistics.Comparison] = []
        for number in range(arguments.trials):
            chosen = np.random.default_rng(number).permutation(len(texts))[: stage.EXAMPLES]
            found.append(trial(bundle, sorted((texts[i] for i in chosen), key=len), number))
            if sys.stderr.isatty():
                print(f"\r{number + 1} of {arguments.trials}", end="", file=sys.stderr, flush=True)
    verdicts = Counter(comparison.verdict for comparison in found)
    different = arguments.trials - verdicts["undecided"]
    ratios = np.asarray([comparison.ratio for comparison in found])
    record: dict[str, Any] = {
        "command": f"python benchmarks/aa_trials.py --trials {arguments.trials}",
        "kind": "measured",
        "protocol": f"{stage.EXAMPLES} examples, {stage.ROUNDS} rounds with two loads of the "
        "artifact in turn, a new draw of examples for every trial",
        "device": local.describe(),
        "trials": arguments.trials,
        "verdicts": dict(verdicts),
        "called_different": different / arguments.trials,
        "ratio": {f"p{q}": float(np.percentile(ratios, q)) for q in (2.5, 50, 97.5)},
        "half_width_of_the_interval_p50": float(np.median([(c.high - c.low) / 2 for c in found])),
    }
    print(f"called different: {different} of {arguments.trials} ({record['called_different']:.1%}); {dict(verdicts)}")
    print(f"ratios: {record['ratio']}; half of the interval: {record['half_width_of_the_interval_p50']:.4f}")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
