"""The compression chain on a 6-layer MiniLM, beside what the peers' own tools make of the same teacher.

    python benchmarks/compress_encoder.py                          # Rotten Tomatoes, with all peers
    python benchmarks/compress_encoder.py --data-set text-kinds    # four classes, the chain alone
    python benchmarks/compress_encoder.py --max-size 6 --min-score 97%    # as far as a budget asks, the chain alone
    python benchmarks/compress_encoder.py --max-size 0.5           # an impossible budget: refused, with what is nearest

Fine-tunes the teacher (or takes it from the stage cache), lets `toolkit convert --compress` distill, prune and quantize
it for `x86-avx512`, builds int8 artifacts of the teacher with the tools of ONNX Runtime, LiteRT and OpenVINO, and times
all of them in turn: batch 1, one thread, over the real lengths of held-out sentences. Every build is scored on the
whole held-out split. Writes a record and a plot of score over latency to `benchmarks/results/`.

The peers need `pip install openvino nncf` besides the extra `demo`. Sentences without labels for the distillation are
cut from the other half of the package that has the labelled ones. The data set `text-kinds` is made from the package
vaderSentiment's source archive: sentences of film reviews, product reviews, editorials and tweets.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import subprocess
import sys
import tarfile
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import encoder_peers as peers

from toolkit import conversion, demo, planning, plot, report, tasks
from toolkit.devices import local
from toolkit.errors import RefusedError
from toolkit.runner import Runner, library_versions
from toolkit.storage import write_atomic, write_json

TARGET = "x86-avx512"
COMPRESSED = "this toolkit, compressed"
PLAIN = "this toolkit, int8 without the chain"
RIVALS = (*peers.ONNX_INT8, peers.LITERT, peers.OPENVINO_INT8, peers.OPENVINO_BF16)
CALIBRATION_EXAMPLES = 300
LIBRARIES = (
    "torch", "transformers", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer", "openvino",
    "nncf",
)  # fmt: skip
KINDS = {
    "movieReviewSnippets_GroundTruth.txt": "film review",
    "amazonReviewSnippets_GroundTruth.txt": "product review",
    "nytEditorialSnippets_GroundTruth.txt": "editorial",
    "tweets_GroundTruth.txt": "tweet",
}


def film_sentences(path: Path) -> Path:
    """Sentences of 6 to 45 words from the long reviews that the demo does not use, one per line."""
    found = []
    with demo.find().data.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            if row["source"] != "rotten_tomatoes":
                for part in re.split(r"(?<=[.!?])\s+", re.sub(r"<[^>]+>", " ", row["text"])):
                    sentence = " ".join(part.lower().split())
                    if 6 <= len(sentence.split()) <= 45:
                        found.append(sentence)
    random.Random(0).shuffle(found)
    path.write_text("\n".join(found) + "\n", encoding="utf-8")
    return path


def text_kinds(folder: Path) -> Path:
    """A CSV of sentences and the kind of text that each is from."""
    options = ("--quiet", "--no-deps", "--no-binary", ":all:", "--dest", str(folder))
    subprocess.run([sys.executable, "-m", "pip", "download", *options, "vaderSentiment==3.3.2"], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        inner = next(name for name in archive.getnames() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        content = archive.extractfile(inner)
        assert content is not None
        texts = tarfile.open(fileobj=io.BytesIO(content.read()))  # noqa: SIM115 - in memory
    path = folder / "kinds.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for name in sorted(texts.getnames()):
            kind = KINDS.get(Path(name).name)
            member = texts.extractfile(name) if kind else None
            for line in member.read().decode("utf-8", "replace").splitlines() if member else []:
                writer.writerow([line.split("\t", 2)[2], kind])
    return path


def convert(data_set: str, folder: Path, compress: bool, max_size_mb: float | None, min_score: str) -> Any:
    """The plan, and the bundle of a data set that it led to, accepted or not."""
    options: dict[str, Any] = {"model": "demo", "target": TARGET, "output": str(folder / f"bundle-{compress}")}
    if data_set == "rotten-tomatoes":
        unlabeled = str(film_sentences(folder / "sentences.txt")) if compress else None
    else:
        kinds = folder / "kinds.csv"
        data = kinds if kinds.exists() else text_kinds(folder)
        options |= {"model": str(demo.find().model), "data": str(data)}
        unlabeled = None
    plan = planning.plan(
        planning.Options(
            **options, compress=compress, unlabeled=unlabeled, min_score=min_score, max_size_mb=max_size_mb
        )
    )
    with_bars = sys.stderr.isatty()
    from toolkit.cli.convert import run_with_progress

    try:
        return plan, run_with_progress(plan, quiet=not with_bars)
    except RefusedError as error:
        return plan, error.bundle


def against_peers(plan: Any, compressed: Any, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Scores, sizes and latencies of the compressed bundle, the plain one and the peers' builds of the teacher."""
    from toolkit.engines import torch as torch_engine

    runner = Runner(plan.cache, plan.recipe.task, plan.recipe.seed)
    data = conversion.prepare(runner, plan)
    tuned = conversion.finetune(runner, plan, data).output
    _, plain = convert("rotten-tomatoes", folder, False, None, "99%")
    task = tasks.get(plan.recipe.task)
    encoder = task.encoder(tuned, {"max_length": peers.LONG}, inputs=peers.NAMES)
    model = torch_engine.load_model(tuned, task)
    builds = peers.build_onnx_peers(model, folder)
    builds[peers.LITERT] = peers.build_litert_peer(model, folder)
    train = task.read_examples(data.output, "train")[:CALIBRATION_EXAMPLES]
    builds |= peers.build_openvino_peers(folder, [encoder(example.input) for example in train])
    builds[peers.EAGER] = partial(peers.load_eager, tuned)
    sizes = {name: (folder / peers.FILES[name]).stat().st_size for name in builds if name in peers.FILES}
    sizes[peers.EAGER] = (tuned / "model.safetensors").stat().st_size
    bundles = {COMPRESSED: compressed, PLAIN: plain}
    sizes |= {name: bundle.manifest["artifact"]["size_bytes"] for name, bundle in bundles.items()}
    bench = peers.Bench(
        builds=builds,
        bundles={name: bundle.path for name, bundle in bundles.items()},
        encoder=encoder,
        task=task,
        examples=task.read_examples(data.output, "eval"),
        labels=json.loads((data.output / "labels.json").read_text()),
    )
    times = bench.times(bench.real_texts(arguments.examples), arguments.rounds)
    return {
        "protocol": peers.protocol(arguments.rounds),
        "scores": bench.scores(),
        "score_examples": len(bench.examples),
        "size_bytes": sizes,
        "lengths": {"real lengths": peers.compared(times, COMPRESSED, RIVALS)},
    }


def draw(record: dict[str, Any]) -> str:
    """Score over latency of every build."""
    builds = record["lengths"]["real lengths"]["builds"]
    ours = [name for name in (PLAIN, COMPRESSED) if name in builds]
    names = ours + [name for name in builds if name not in ours]
    dots = [plot.Dot(name, builds[name]["mean_ms"], record["scores"][name], name in ours) for name in names]
    floor = 0.99 * record["summary"]["score"]["before"]
    return plot.scatter(dots, "milliseconds per sentence, log scale", record["summary"]["score"]["name"], floor)


def print_record(record: dict[str, Any]) -> None:
    """The chain's stages, what came out, and the peers."""
    summary = record["summary"]
    found = summary["compression"]
    for row in [report.CHAIN_HEAD, *report.chain_rows(found)]:
        print("  ".join(f"{cell:{width}}" for cell, width in zip(row, (50, 9, 9, 7, 22, 0), strict=True)))
    print(found["outcome"])
    if record["refused"]:
        print(f"refused: {record['refused']}")
    score, size = summary["score"], summary["size"]
    print(
        f"{score['name']} {score['before']:.4f} → {score['after']:.4f} ({score['after'] / score['before']:.2%}), "
        f"{size['before_bytes'] / 1e6:.1f} → {size['after_bytes'] / 1e6:.2f} MB; {summary['chosen']}"
    )
    print(summary["behaviour"]["sentence"])
    if "lengths" in record:
        peers.print_lengths(record, "int8 peer")


def main() -> None:
    """Convert, build the peers, score, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-set", choices=("rotten-tomatoes", "text-kinds"), default="rotten-tomatoes")
    parser.add_argument("--max-size", type=float, help="megabytes; the chain goes as far as it takes")
    parser.add_argument("--min-score", default="99%")
    parser.add_argument("--examples", type=int, default=200, help="held-out sentences that are timed")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/compress_encoder*.json")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        plan, bundle = convert(arguments.data_set, Path(work), True, arguments.max_size, arguments.min_score)
        record: dict[str, Any] = {
            "command": f"python benchmarks/compress_encoder.py --data-set {arguments.data_set}"
            + (f" --max-size {arguments.max_size:g}" if arguments.max_size else "")
            + ("" if arguments.min_score == "99%" else f" --min-score {arguments.min_score}"),
            "kind": "measured",
            "device": local.describe(),
            "versions": library_versions(LIBRARIES),
            "target": TARGET,
            "refused": "; ".join(bundle.manifest["refusals"]) or None,
            "recipe": plan.recipe.compress.model_dump(exclude={"unlabeled"}),
            "summary": {
                key: bundle.summary[key]
                for key in ("chosen", "accepted", "score", "size", "latency", "behaviour", "compression", "seconds")
            },
        }
        record["summary"]["behaviour"].pop("worst")  # sentences of the data set
        if arguments.data_set == "rotten-tomatoes" and not arguments.max_size:
            record |= against_peers(plan, bundle, Path(work), arguments)
    print_record(record)
    suffix = "" if arguments.data_set == "rotten-tomatoes" else f"_{arguments.data_set.replace('-', '_')}"
    suffix += f"_{arguments.max_size:g}mb" if arguments.max_size else ""
    output = arguments.output or Path(__file__).parent / "results" / f"compress_encoder{suffix}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, record)
    if "lengths" in record:
        write_atomic(output.with_suffix(".svg"), draw(record))


if __name__ == "__main__":
    main()
