"""One encoder, six ways to run it on this CPU, interleaved in one run.

    python benchmarks/encoder_cpu.py [--output benchmarks/results/encoder_cpu.json]

Fine-tunes MiniLM on Rotten Tomatoes (or takes it from the stage cache), converts it for `x86-avx512`, builds what the
peers' own tools give with their documented calls, and times all of them in turn: batch 1, one thread, over the real
lengths of held-out sentences and at 128 tokens. Every build is scored on the whole held-out split.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import toolkit  # first: it switches telemetry off before onnxruntime is imported
from toolkit import conversion, tasks
from toolkit.bench import measure, statistics
from toolkit.devices import local
from toolkit.runner import Runner, library_versions
from toolkit.storage import write_json

TARGET = "x86-avx512"
OURS = "this toolkit's bundle"
THREADS = 1
LONG = 128
LITERT_PEER = "LiteRT int8, litert-torch, one signature"
ONNX_INT8_PEERS = ("ONNX int8, onnxruntime quantize_dynamic", "ONNX int8, transformers exporter")


def onnx_runner(path: Path) -> Callable[[dict[str, Any]], Any]:
    """A session with one thread; takes int64 arrays of any length."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})[0]


def build_onnx_peers(model: Any, folder: Path) -> dict[str, Callable[[dict[str, Any]], Any]]:
    """fp32 ONNX, its dynamic int8 by onnxruntime, and the exporter's own fused int8."""
    import onnx_ir
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    sample = {name: torch.ones(2, 8, dtype=torch.long) for name in ("input_ids", "attention_mask", "token_type_ids")}
    float_file, int8_file, exporter_file = folder / "fp32.onnx", folder / "int8.onnx", folder / "exporter-int8.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        onnx_ir.save(OnnxExporter().export(model, sample, config=OnnxConfig(dynamic=True)).program, float_file)
        quantizer = OnnxRuntimeQuantizer(
            OnnxRuntimeDynamicConfig(weight_type=QuantType.QInt8, extra_options={"DefaultTensorType": 1})
        )
        config = OnnxConfig(dynamic=True, ort_fusions="cpu", quantizer=quantizer)
        onnx_ir.save(OnnxExporter().export(model, sample, config=config).program, exporter_file)
    import onnx

    proto = onnx.load(str(float_file))
    initializers = {initializer.name for initializer in proto.graph.initializer}
    kept = [info for info in proto.graph.value_info if info.name not in initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(kept)
    quantize_dynamic(proto, str(int8_file), weight_type=QuantType.QInt8, per_channel=True)
    return {
        "ONNX fp32, onnxruntime": onnx_runner(float_file),
        ONNX_INT8_PEERS[0]: onnx_runner(int8_file),
        ONNX_INT8_PEERS[1]: onnx_runner(exporter_file),
    }


def build_litert_peer(model: Any, folder: Path) -> Callable[[dict[str, Any]], Any]:
    """litert-torch with one signature of 128 tokens, then ai-edge-quantizer's dynamic int8."""
    import litert_torch
    import numpy as np
    import torch
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Any) -> Any:
            return self.model(**inputs).logits

    names = ("input_ids", "attention_mask", "token_type_ids")
    sample = {name: torch.ones(1, LONG, dtype=torch.long) for name in names}
    with contextlib.redirect_stdout(io.StringIO()):
        litert_torch.convert(Logits().eval(), sample_kwargs=sample).export(str(folder / "fp32.tflite"))
        worker = quantizer.Quantizer(str(folder / "fp32.tflite"))
        worker.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        worker.quantize().export_model(str(folder / "int8.tflite"))
    runner = Interpreter(model_path=str(folder / "int8.tflite"), num_threads=THREADS).get_signature_runner()

    def run(inputs: dict[str, Any]) -> Any:
        padded = {}
        for name in names:
            padded[name] = np.zeros((1, LONG), dtype=np.int32)
            padded[name][:, : inputs[name].shape[1]] = inputs[name]
        return next(iter(runner(**padded).values()))

    return run


@dataclass
class Bench:
    """Everything that is timed, and what it is timed and scored on."""

    builds: dict[str, Callable[[dict[str, Any]], Any]]  # the peers: from arrays [1, length] to logits [1, classes]
    sizes: dict[str, int]  # bytes
    pipeline: Any  # this toolkit's bundle, loaded
    encoder: Any  # exact lengths, for the peers
    task: Any
    examples: list[Any]
    labels: list[str]
    chosen: str

    def scores(self) -> dict[str, float]:
        """Every build's score on the whole held-out split."""
        import numpy as np

        truth = np.asarray([example.label for example in self.examples])
        logits = {
            name: np.concatenate([run(self.encoder(example.text)) for example in self.examples])
            for name, run in self.builds.items()
        }
        logits[OURS] = np.stack([self.pipeline.logits(example.text) for example in self.examples])
        return {name: self.task.metrics(values, truth, self.labels)["score"] for name, values in logits.items()}

    def times(self, texts: list[str], rounds: int) -> dict[str, list[float]]:
        """Seconds per build and text: all builds in turn, inputs made beforehand."""
        exact = [self.encoder(text) for text in texts]
        own = [self.pipeline.encoder(text) for text in texts]
        runners = {name: (lambda index, run=run: run(exact[index])) for name, run in self.builds.items()}
        runners[OURS] = lambda index: self.pipeline.engine.run(own[index])
        times = measure.interleave(runners, len(texts), rounds)
        return {name: measure.per_example(values) for name, values in times.items()}


def build(folder: Path) -> Bench:
    """Fine-tune or take from the cache, convert, and build the peers in `folder`."""
    from toolkit.engines import torch as torch_engine

    plan = conversion.plan(conversion.Options(model="demo", target=TARGET, output=str(folder / "bundle")))
    runner = Runner(plan.cache, plan.recipe.task, plan.recipe.seed)
    data = conversion.prepare(runner, plan)
    tuned = conversion.finetune(runner, plan, data).output
    bundle = conversion.run(plan)
    task = tasks.get(plan.recipe.task)
    model = torch_engine.load_model(tuned, task.MODEL_CLASS)
    builds = build_onnx_peers(model, folder)
    builds[LITERT_PEER] = build_litert_peer(model, folder)
    eager = torch_engine.load(tuned, THREADS)
    builds["PyTorch fp32 eager"] = lambda inputs: eager.run(inputs)["logits"]
    files = {
        "PyTorch fp32 eager": tuned / "model.safetensors",
        "ONNX fp32, onnxruntime": folder / "fp32.onnx",
        ONNX_INT8_PEERS[0]: folder / "int8.onnx",
        ONNX_INT8_PEERS[1]: folder / "exporter-int8.onnx",
        LITERT_PEER: folder / "int8.tflite",
    }
    sizes = {name: file.stat().st_size for name, file in files.items()}
    return Bench(
        builds=builds,
        sizes={**sizes, OURS: bundle.manifest["artifact"]["size_bytes"]},
        pipeline=toolkit.load(bundle.path),
        encoder=task.encoder(tuned, inputs=["input_ids", "attention_mask", "token_type_ids"], max_length=LONG),
        task=task,
        examples=task.read_examples(data.output, "eval"),
        labels=json.loads((data.output / "labels.json").read_text()),
        chosen=bundle.summary["chosen"],
    )


def compared(times: dict[str, list[float]]) -> dict[str, Any]:
    """Every build's latency, and this toolkit's against each and against the best ONNX int8 peer."""
    best = min(ONNX_INT8_PEERS, key=lambda name: sum(times[name]))
    against = statistics.compare(times[OURS], times[best])
    return {
        "examples": len(times[OURS]),
        "builds": {
            name: {
                **statistics.summarize(values),
                "ours_is_faster_by": 1 / statistics.compare(times[OURS], values).ratio,
            }
            for name, values in times.items()
        },
        "best_onnx_int8_peer": best,
        "faster_than_best_onnx_int8_peer": {
            "ratio": 1 / against.ratio, "low": 1 / against.high, "high": 1 / against.low,
        },
    }  # fmt: skip


def main() -> None:
    """Build, score, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "encoder_cpu.json")
    parser.add_argument("--examples", type=int, default=200, help="held-out sentences that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    import numpy as np

    with tempfile.TemporaryDirectory() as work:
        bench = build(Path(work))
        scores = bench.scores()
        chosen = np.random.default_rng(0).permutation(len(bench.examples))[: arguments.examples]
        real = [bench.examples[int(i)].text for i in chosen]
        words = " ".join(example.text for example in bench.examples[:200]).split()
        long = [" ".join(words[start : start + LONG]) for start in range(0, 40 * 20, 20)]  # all truncated to 128 tokens
        lengths = {
            title: compared(bench.times(texts, arguments.rounds))
            for title, texts in (("real lengths", real), (f"{LONG} tokens", long))
        }
    record: dict[str, Any] = {
        "command": f"python benchmarks/encoder_cpu.py --rounds {arguments.rounds} --examples {arguments.examples}",
        "kind": "measured",
        "protocol": f"batch 1, {THREADS} thread, builds in turn per example in shuffled order, "
        f"median of {arguments.rounds} rounds per example, inputs tokenized beforehand",
        "device": local.describe(),
        "versions": library_versions(
            ("torch", "transformers", "onnx", "onnxruntime", "litert-torch", "ai-edge-litert", "ai-edge-quantizer")
        ),
        "target": TARGET,
        "chosen": bench.chosen,
        "scores": scores,
        "score_examples": len(bench.examples),
        "size_bytes": bench.sizes,
        "lengths": lengths,
    }
    print_record(record)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, record)


def print_record(record: dict[str, Any]) -> None:
    """The tables of a record."""
    device = record["device"]
    print(f"{device['cpu_model']}, {device['cores']} cores; {record['protocol']}")
    for title, part in record["lengths"].items():
        print(f"\n{title} ({part['examples']} sentences)")
        print(f"{'build':44}{'score':>8}{'MB':>8}{'mean ms':>10}{'p50 ms':>9}{'ours is':>9}")
        for name, row in sorted(part["builds"].items(), key=lambda item: -item[1]["mean_ms"]):
            score, size = record["scores"][name], record["size_bytes"][name] / 1e6
            faster = f"{row['ours_is_faster_by']:.2f}x"
            print(f"{name:44}{score:8.4f}{size:8.1f}{row['mean_ms']:10.3f}{row['p50_ms']:9.3f}{faster:>9}")
        ratio = part["faster_than_best_onnx_int8_peer"]
        print(
            f"against the best ONNX int8 peer ({part['best_onnx_int8_peer']}): {ratio['ratio']:.2f}x faster "
            f"(95 % interval {ratio['low']:.2f}-{ratio['high']:.2f})"
        )


if __name__ == "__main__":
    main()
