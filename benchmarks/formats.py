"""One encoder in every format and precision that a target takes, interleaved in one run on this machine.

    python benchmarks/formats.py [--target x86-amx-core] [--output benchmarks/results/formats.json]

Makes the candidates of `toolkit convert demo --target NAME` (fine-tuning included, unless it is in the stage cache),
scores each on the whole held-out split, and times them in turn: batch 1, one thread, over the real lengths of held-out
sentences. Then what an input of a length that an engine has not seen costs it: some prepare themselves for each.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from toolkit import candidates as candidate_steps
from toolkit import checkpoint as checkpoints
from toolkit import conversion, engines, planning, tasks
from toolkit.bench import statistics
from toolkit.devices import local
from toolkit.runner import Runner, library_versions
from toolkit.stages.evaluate import names_of
from toolkit.storage import write_json
from toolkit.workshop import Candidate, Workshop

AGAINST = ("onnxruntime fp32", "litert int8")
LIBRARIES = ("torch", "transformers", "onnxruntime", "ai-edge-litert", "ai-edge-quantizer", "openvino", "nncf")
SENTENCES = 60  # whose lengths are new to an engine


def made(target: str, folder: Path) -> tuple[Workshop, list[Candidate]]:
    """The candidates of a conversion, each scored on the whole split."""
    plan = planning.plan(planning.Options(model="demo", target=target, output=str(folder / "unused")))
    runner = Runner(plan.cache, plan.recipe.task, plan.recipe.seed)
    data = conversion.prepare(runner, plan)
    tuned = checkpoints.inspect(conversion.finetune(runner, plan, data).output, plan.task)
    workshop = Workshop(runner, plan.recipe, plan.target, tuned, tuned, data, local.stands_for(plan.target), 1)
    found = candidate_steps.make(workshop)
    for candidate in found:
        if candidate.built is None:
            raise SystemExit(f"{candidate.name}: {candidate.refused}")
        candidate_steps.complete(workshop, candidate)
    return workshop, found


def new_lengths(workshop: Workshop, candidate: Candidate) -> dict[str, float]:
    """Milliseconds of the first and the second inference of every length, on average."""
    assert candidate.built is not None
    folder, artifact = candidate.built.output, candidate.artifact
    task = tasks.get(workshop.recipe.task)
    encoder = task.encoder(
        folder, workshop.data_report["encoding"], inputs=names_of(artifact), lengths=artifact["lengths"]
    )
    engine = engines.get(candidate.plan.engine).load(folder / artifact["path"])
    encoded = [encoder(each.input) for each in task.read_examples(workshop.data.output, "eval")[:SENTENCES]]
    by_length = {encoder.length(arrays): arrays for arrays in encoded}
    seconds: dict[str, list[float]] = {"first_ms": [], "second_ms": []}
    for arrays in by_length.values():
        for times in seconds.values():
            started = time.perf_counter()
            engine.run(arrays)
            times.append(time.perf_counter() - started)
    engine.close()
    return {name: 1e3 * sum(times) / len(times) for name, times in seconds.items()} | {"lengths": len(by_length)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="x86-amx-core", help="a profile that this machine stands for")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "formats.json")
    given = parser.parse_args()
    workshop, found = made(given.target, given.output.parent)
    if not workshop.measurable:
        raise SystemExit(f"This machine does not stand for {given.target}: nothing can be measured.")
    report = candidate_steps.measure(workshop, {candidate.name: candidate for candidate in found})
    times = {candidate.name: candidate.times for candidate in found}
    builds: dict[str, Any] = {}
    for candidate in found:
        assert candidate.latency is not None
        builds[candidate.name] = {
            "score": candidate.metrics["score"],
            "bytes": candidate.artifact["size_bytes"],
            "mean_ms": candidate.latency.ms,
            "time_of": {
                name: statistics.compare(times[candidate.name], times[name]).as_dict()
                for name in AGAINST
                if name != candidate.name
            },
            "new_length": new_lengths(workshop, candidate),
            "refused": candidate.refused,
        }
    record = {
        "command": f"python benchmarks/formats.py --target {given.target}",
        "kind": "measured",
        "target": given.target,
        "rounds": report["rounds"],
        "examples": report["examples"],
        "threads": report["threads"],
        "score_examples": workshop.data_report["splits"]["eval"],
        "device": local.describe(),
        "versions": library_versions(LIBRARIES),
        "builds": builds,
    }
    write_json(given.output, record)
    heads = [f"of {name}" for name in AGAINST]
    print(f"{'build':20}{'score':>8}{'MB':>7}{'ms':>8}{heads[0]:>24}{heads[1]:>24}{'first, second':>16}")
    for name, row in sorted(builds.items(), key=lambda item: -item[1]["mean_ms"]):
        ratios = [
            f"{each['ratio']:.2f} ({each['low']:.2f}-{each['high']:.2f})" if each else "-"
            for each in (row["time_of"].get(other) for other in AGAINST)
        ]
        new = row["new_length"]
        print(
            f"{name:20}{row['score']:8.4f}{row['bytes'] / 1e6:7.1f}{row['mean_ms']:8.2f}{ratios[0]:>24}{ratios[1]:>24}"
            f"{new['first_ms']:9.1f},{new['second_ms']:6.1f}"
        )


if __name__ == "__main__":
    main()
