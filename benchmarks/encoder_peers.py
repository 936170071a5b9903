"""What the peers' own tools make of a fine-tuned encoder, with their documented calls, and how each is run.

Every builder writes its files to a folder and gives, by the name of the build, a function that loads it: what it
returns goes from the arrays of one example (`input_ids`, `attention_mask`, `token_type_ids`, each int64 [1, length])
to the logits float[1, classes].
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import toolkit
from toolkit.bench import loops, statistics
from toolkit.engines import torch as torch_engine

Run = Callable[[dict[str, Any]], Any]
Load = Callable[[], Run]

THREADS = 1
LONG = 128
NAMES = ("input_ids", "attention_mask", "token_type_ids")
LITERT = "LiteRT int8, litert-torch, one signature"
ONNX_FLOAT = "ONNX fp32, onnxruntime"
ONNX_INT8 = ("ONNX int8, onnxruntime quantize_dynamic", "ONNX int8, transformers exporter")
OPENVINO_INT8 = "OpenVINO int8, NNCF static"
OPENVINO_BF16 = "OpenVINO int8, NNCF static, bf16 hint"
EAGER = "PyTorch fp32 eager"
# File names, for the sizes.
FILES = {
    ONNX_FLOAT: "fp32.onnx",
    ONNX_INT8[0]: "int8.onnx",
    ONNX_INT8[1]: "exporter-int8.onnx",
    LITERT: "int8.tflite",
    OPENVINO_INT8: "int8.bin",
    OPENVINO_BF16: "int8.bin",
}


def load_onnx(path: Path) -> Run:
    """A session with one thread; takes int64 arrays of any length."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda inputs: session.run(None, {name: inputs[name] for name in names})[0]


def build_onnx_peers(model: Any, folder: Path) -> dict[str, Load]:
    """fp32 ONNX, its dynamic int8 by onnxruntime, and the exporter's own fused int8."""
    import onnx_ir
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    sample = {name: torch.ones(2, 8, dtype=torch.long) for name in NAMES}
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
        ONNX_FLOAT: partial(load_onnx, float_file),
        ONNX_INT8[0]: partial(load_onnx, int8_file),
        ONNX_INT8[1]: partial(load_onnx, exporter_file),
    }


def load_litert(path: Path) -> Run:
    """The signature of 128 tokens; takes int64 arrays of up to that length."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path), num_threads=THREADS).get_signature_runner()

    def run(inputs: dict[str, Any]) -> Any:
        padded = {}
        for name in NAMES:
            padded[name] = np.zeros((1, LONG), dtype=np.int32)
            padded[name][:, : inputs[name].shape[1]] = inputs[name]
        return next(iter(runner(**padded).values()))

    return run


def build_litert_peer(model: Any, folder: Path) -> Load:
    """litert-torch with one signature of 128 tokens, then ai-edge-quantizer's dynamic int8."""
    import litert_torch
    import torch
    from ai_edge_quantizer import quantizer, recipe

    class Logits(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, **inputs: Any) -> Any:
            return self.model(**inputs).logits

    sample = {name: torch.ones(1, LONG, dtype=torch.long) for name in NAMES}
    with contextlib.redirect_stdout(io.StringIO()):
        litert_torch.convert(Logits().eval(), sample_kwargs=sample).export(str(folder / "fp32.tflite"))
        worker = quantizer.Quantizer(str(folder / "fp32.tflite"))
        worker.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        worker.quantize().export_model(str(folder / "int8.tflite"))
    return partial(load_litert, folder / "int8.tflite")


def build_openvino_peers(folder: Path, calibration: Sequence[dict[str, Any]]) -> dict[str, Load]:
    """NNCF's static int8 of the float ONNX, calibrated on real examples, with OpenVINO's own precision and with the
    bf16 hint. Takes `fp32.onnx` in `folder`; any length."""
    os.environ["NNCF_CI"] = "1"  # no telemetry
    import nncf
    import openvino

    core = openvino.Core()
    model = core.read_model(folder / FILES[ONNX_FLOAT])
    names = [port.any_name for port in model.inputs]
    with contextlib.redirect_stdout(io.StringIO()):
        quantized = nncf.quantize(
            model,
            nncf.Dataset([{name: arrays[name] for name in names} for arrays in calibration]),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(calibration),
        )
    openvino.save_model(quantized, folder / "int8.xml")

    def load(**hints: str) -> Run:
        options = {"INFERENCE_NUM_THREADS": THREADS, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY", **hints}
        request = core.compile_model(folder / "int8.xml", "CPU", options).create_infer_request()
        return lambda inputs: request.infer({name: inputs[name] for name in names})[0]

    return {OPENVINO_INT8: load, OPENVINO_BF16: partial(load, INFERENCE_PRECISION_HINT="bf16")}


def load_eager(checkpoint: Path) -> Run:
    """PyTorch as it is."""
    engine = torch_engine.load(checkpoint, THREADS)
    return lambda inputs: engine.run(inputs)["logits"]


@dataclass
class Bench:
    """Everything that is timed, and what it is timed and scored on."""

    builds: dict[str, Load]  # of the peers
    bundles: dict[str, Path]  # of this toolkit
    encoder: Any  # exact lengths, for the peers
    task: Any
    examples: list[Any]
    labels: list[str]

    def scores(self) -> dict[str, float]:
        """Every build's score on the whole held-out split."""
        logits = {}
        for name, load in self.builds.items():
            run = load()
            logits[name] = np.concatenate([run(self.encoder(example.input)) for example in self.examples])
        for name, bundle in self.bundles.items():
            pipeline = toolkit.load(bundle)
            logits[name] = np.concatenate([pipeline.answers(example.input) for example in self.examples])
        return {name: self.task.metrics(values, self.examples, self.labels)["score"] for name, values in logits.items()}

    def times(self, texts: list[str], rounds: int) -> dict[str, list[list[float]]]:
        """Seconds per build, round and text: all builds in turn, inputs made beforehand."""
        exact = [self.encoder(text) for text in texts]

        def peer(load: Load) -> loops.Runner:
            run = load()
            return loops.Runner(lambda index: run(exact[index]))

        def own(bundle: Path, inputs: list[dict[str, Any]]) -> loops.Runner:
            engine = toolkit.load(bundle).engine
            return loops.Runner(lambda index: engine.run(inputs[index]), engine.close)

        builds = {name: partial(peer, load) for name, load in self.builds.items()}
        for name, bundle in self.bundles.items():
            encoder = toolkit.load(bundle).encoder
            builds[name] = partial(own, bundle, [encoder(text) for text in texts])
        return loops.interleave(builds, len(texts), rounds)

    def real_texts(self, count: int) -> list[str]:
        """Held-out sentences, drawn at random from seed 0, the shortest first."""
        chosen = np.random.default_rng(0).permutation(len(self.examples))[:count]
        return sorted((self.examples[i].input for i in chosen), key=len)

    def long_texts(self) -> list[str]:
        """Forty texts that are truncated to `LONG` tokens."""
        words = " ".join(example.input for example in self.examples[:200]).split()
        return [" ".join(words[start : start + LONG]) for start in range(0, 40 * 20, 20)]


def compared(times: dict[str, list[list[float]]], ours: str, rivals: Sequence[str]) -> dict[str, Any]:
    """Every build's latency, and `ours` against each of them and against the fastest of `rivals`."""
    medians = {name: loops.per_example(values) for name, values in times.items()}
    best = min(rivals, key=lambda name: sum(medians[name]))
    against = statistics.compare(times[ours], times[best])
    return {
        "examples": len(medians[ours]),
        "builds": {
            name: {
                **statistics.summarize(values),
                "ours_is_faster_by": 1 / statistics.compare(times[ours], times[name]).ratio,
            }
            for name, values in medians.items()
        },
        "best_rival": best,
        "faster_than_best_rival": {"ratio": 1 / against.ratio, "low": 1 / against.high, "high": 1 / against.low},
    }


def protocol(rounds: int) -> str:
    """How `Bench.times` measures, in words."""
    return (
        f"batch 1, {THREADS} thread, builds in turn per example in shuffled order, {rounds} rounds that load every "
        "build anew, median per example, inputs tokenized beforehand"
    )


def print_lengths(record: dict[str, Any], rivals: str) -> None:
    """A table per choice of lengths, and how the toolkit's bundle stands against the best of the rivals."""
    device = record["device"]
    print(f"{device['cpu_model']}, {device['cores']} cores; {record['protocol']}")
    for title, part in record["lengths"].items():
        print(f"\n{title} ({part['examples']} sentences)")
        print(f"{'build':44}{'score':>8}{'MB':>8}{'mean ms':>10}{'p50 ms':>9}{'ours is':>9}")
        for name, row in sorted(part["builds"].items(), key=lambda item: -item[1]["mean_ms"]):
            score, size = record["scores"][name], record["size_bytes"][name] / 1e6
            faster = f"{row['ours_is_faster_by']:.2f}x"
            print(f"{name:44}{score:8.4f}{size:8.1f}{row['mean_ms']:10.3f}{row['p50_ms']:9.3f}{faster:>9}")
        ratio = part["faster_than_best_rival"]
        print(
            f"against the best {rivals} ({part['best_rival']}): {ratio['ratio']:.2f}x faster "
            f"(95 % interval {ratio['low']:.2f}-{ratio['high']:.2f})"
        )
