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


def main() -> None:
    """Build, score, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "encoder_cpu.json")
    parser.add_argument("--examples", type=int, default=200, help="held-out sentences that are timed")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    import numpy as np

    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        plan = conversion.plan(conversion.Options(model="demo", target=TARGET, output=str(folder / "bundle")))
        runner = Runner(plan.cache, plan.recipe.task, plan.recipe.seed)
        data = conversion.prepare(runner, plan)
        tuned = conversion.finetune(runner, plan, data).output
        bundle = conversion.run(plan)

        from toolkit.engines import torch as torch_engine

        task = tasks.get(plan.recipe.task)
        model = torch_engine.load_model(tuned, task.MODEL_CLASS)
        builds: dict[str, Callable[[dict[str, Any]], Any]] = build_onnx_peers(model, folder)
        builds["LiteRT int8, litert-torch, one signature"] = build_litert_peer(model, folder)
        eager = torch_engine.load(tuned, THREADS)
        builds["PyTorch fp32 eager"] = lambda inputs: eager.run(inputs)["logits"]
        names = ["input_ids", "attention_mask", "token_type_ids"]
        exact = task.encoder(tuned, inputs=names, max_length=LONG)
        pipeline = toolkit.load(bundle.path)
        output_name = bundle.manifest["artifact"]["outputs"][0]["name"]

        examples = task.read_examples(data.output, "eval")
        truth = np.asarray([example.label for example in examples])
        label_names = json.loads((data.output / "labels.json").read_text())
        sizes = {
            "PyTorch fp32 eager": (tuned / "model.safetensors").stat().st_size,
            "ONNX fp32, onnxruntime": (folder / "fp32.onnx").stat().st_size,
            ONNX_INT8_PEERS[0]: (folder / "int8.onnx").stat().st_size,
            ONNX_INT8_PEERS[1]: (folder / "exporter-int8.onnx").stat().st_size,
            "LiteRT int8, litert-torch, one signature": (folder / "int8.tflite").stat().st_size,
            OURS: bundle.manifest["artifact"]["size_bytes"],
        }
        scores = {}
        for name, run in builds.items():
            logits = np.concatenate([run(exact(example.text)) for example in examples])
            scores[name] = task.metrics(logits, truth, label_names)["score"]
        ours = np.concatenate([pipeline.logits(example.text)[None] for example in examples])
        scores[OURS] = task.metrics(ours, truth, label_names)["score"]

        def timed(texts: list[str]) -> dict[str, list[float]]:
            exact_inputs = [exact(text) for text in texts]
            own_inputs = [pipeline.encoder(text) for text in texts]
            runners = {name: (lambda index, run=run: run(exact_inputs[index])) for name, run in builds.items()}
            runners[OURS] = lambda index: pipeline.engine.run(own_inputs[index])[output_name]
            times = measure.interleave(runners, len(texts), arguments.rounds)
            return {name: measure.per_example(values) for name, values in times.items()}

        generator = np.random.default_rng(0)
        chosen = generator.permutation(len(examples))[: arguments.examples]
        real = [examples[int(i)].text for i in chosen]
        words = " ".join(example.text for example in examples[:200]).split()
        long = [" ".join(words[start : start + LONG]) for start in range(0, 40 * 20, 20)]  # all truncated to 128 tokens
        results = {"real lengths": timed(real), f"{LONG} tokens": timed(long)}

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
        "chosen": bundle.summary["chosen"],
        "scores": scores,
        "score_examples": len(examples),
        "size_bytes": sizes,
        "lengths": {},
    }
    for title, times in results.items():
        best = min(ONNX_INT8_PEERS, key=lambda name: sum(times[name]))
        rows = {
            name: {
                **statistics.summarize(values),
                "ours_is_faster_by": 1 / statistics.compare(times[OURS], values).ratio,
            }
            for name, values in times.items()
        }
        against = statistics.compare(times[OURS], times[best])
        record["lengths"][title] = {
            "examples": len(times[OURS]),
            "builds": rows,
            "best_onnx_int8_peer": best,
            "faster_than_best_onnx_int8_peer": {
                "ratio": 1 / against.ratio, "low": 1 / against.high, "high": 1 / against.low,
            },
        }  # fmt: skip
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
