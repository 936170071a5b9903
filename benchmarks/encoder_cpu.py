"""One encoder, six ways to run it on this CPU, interleaved in one run.

    python benchmarks/encoder_cpu.py [--output benchmarks/results/encoder_cpu.json]

Fine-tunes MiniLM on Rotten Tomatoes (or takes it from the stage cache), converts it for `x86-avx512`, builds what the
peers' own tools give with their documented calls, and times all of them in turn: batch 1, one thread, over the real
lengths of held-out sentences and at 128 tokens. Every build is scored on the whole held-out split.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import encoder_peers as peers

from toolkit import conversion, planning, tasks
from toolkit.devices import local
from toolkit.runner import Runner, library_versions
from toolkit.storage import write_json

TARGET = "x86-avx512"
OURS = "this toolkit's bundle"


def build(folder: Path) -> tuple[peers.Bench, dict[str, int], str]:
    """Fine-tune or take from the cache, convert, and build the peers in `folder`: the bench, the builds' bytes and the
    candidate that was chosen."""
    from toolkit.engines import torch as torch_engine

    plan = planning.plan(planning.Options(model="demo", target=TARGET, output=str(folder / "bundle")))
    runner = Runner(plan.cache, plan.recipe.task, plan.recipe.seed)
    data = conversion.prepare(runner, plan)
    tuned = conversion.finetune(runner, plan, data).output
    bundle = conversion.run(plan)
    task = tasks.get(plan.recipe.task)
    model = torch_engine.load_model(tuned, task)
    builds = peers.build_onnx_peers(model, folder)
    builds[peers.LITERT] = peers.build_litert_peer(model, folder)
    builds[peers.EAGER] = partial(peers.load_eager, tuned)
    sizes = {name: (folder / peers.FILES[name]).stat().st_size for name in builds if name in peers.FILES}
    sizes[peers.EAGER] = (tuned / "model.safetensors").stat().st_size
    sizes[OURS] = bundle.manifest["artifact"]["size_bytes"]
    bench = peers.Bench(
        builds=builds,
        bundles={OURS: bundle.path},
        encoder=task.encoder(tuned, {"max_length": peers.LONG}, inputs=peers.NAMES),
        task=task,
        examples=task.read_examples(data.output, "eval"),
        labels=json.loads((data.output / "labels.json").read_text()),
    )
    return bench, sizes, bundle.summary["chosen"]


def main() -> None:
    """Build, score, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "encoder_cpu.json")
    parser.add_argument("--examples", type=int, default=200, help="held-out sentences that are timed")
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        bench, sizes, chosen = build(Path(work))
        scores = bench.scores()
        lengths = {
            title: peers.compared(bench.times(texts, arguments.rounds), OURS, peers.ONNX_INT8)
            for title, texts in (
                ("real lengths", bench.real_texts(arguments.examples)),
                (f"{peers.LONG} tokens", bench.long_texts()),
            )
        }
    record: dict[str, Any] = {
        "command": f"python benchmarks/encoder_cpu.py --rounds {arguments.rounds} --examples {arguments.examples}",
        "kind": "measured",
        "protocol": peers.protocol(arguments.rounds),
        "device": local.describe(),
        "versions": library_versions(
            ("torch", "transformers", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
        ),
        "target": TARGET,
        "chosen": chosen,
        "scores": scores,
        "score_examples": len(bench.examples),
        "size_bytes": sizes,
        "lengths": lengths,
    }
    peers.print_lengths(record, "ONNX int8 peer")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
