"""How far estimates are from the truth: models that run here, estimated by a profile's peaks, by a calibration, and
measured.

    python benchmarks/estimates.py --like x86-amx-core --vad silero_vad_16k_op15.onnx --paraphrase paraphrase-L3.onnx

Each model is exported with random weights (speed does not depend on them), in float and in int8, for ONNX Runtime and
LiteRT; the two files are other people's. For each number of threads the machine is calibrated, everything is measured
in rounds that load all models anew in another order, and both estimates are held against the fastest round's median,
for other programs only add time. Writes a record to `benchmarks/results/`. The machine should be otherwise idle.

A CPU with fewer vector extensions is had by hiding some from the engines (x86 with Linux):

    cc -shared -fPIC -O2 -o hide_isa.so benchmarks/hide_isa.c
    LD_PRELOAD=./hide_isa.so HIDE_ISA=avx512 python benchmarks/estimates.py --like x86-avx2 --append ...
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import costs, engines, estimate, steps
from toolkit import target as targets
from toolkit.devices import local
from toolkit.kernels import calibrate
from toolkit.runner import library_versions
from toolkit.storage import write_json

ENGINES = ("onnxruntime", "litert")
TOKENS = (16, 64, 128)
ROUNDS = 5
# Layers, width, heads, width of the feed-forward part: MiniLM-L6 and its shorter relatives, and a BERT-tiny.
ENCODERS = {
    "MiniLM, 6 layers": (6, 384, 12, 1536), "MiniLM, 3 layers": (3, 384, 12, 1536),
    "MiniLM, 1 layer": (1, 384, 12, 1536), "BERT, 2 layers of 128": (2, 128, 2, 512),
}  # fmt: skip
IMAGES = {"MobileNetV2, 224": (224, 3), "MobileNetV2, 96": (96, 3), "small CNN, 24": (24, 3)}
FEATURES = 20
LIBRARIES = ("torch", "transformers", "onnxruntime", "ai-edge-litert", "litert-torch", "ai-edge-quantizer")


@dataclass(frozen=True)
class Case:
    """A file at one size of its inputs. `given`: values that decide which branch is taken."""

    model: str
    precision: targets.Precision
    engine: str
    path: Path
    sizes: dict[str, int]
    inputs: engines.Arrays

    @property
    def name(self) -> str:
        tokens = f", {self.sizes['length']} tokens" if "length" in self.sizes else ""
        return f"{self.model}{tokens} {self.precision} {self.engine}"

    def operations(self) -> list[costs.Operation]:
        if self.engine == "onnxruntime":
            from toolkit.costs import onnx

            return onnx.operations(self.path, self.sizes, self.inputs, rewritten=True)
        return costs.operations(self.path, self.sizes)


def encoder(folder: Path, layers: int, width: int, heads: int, feed_forward: int) -> Path:
    """A classifier with the demo model's tokenizer and random weights."""
    import torch
    import transformers

    from toolkit import demo

    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=feed_forward,
        id2label={0: "negative", 1: "positive"},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(demo.find().model).save_pretrained(folder)
    return folder


def image_network(folder: Path, name: str, side: int, channels: int) -> Path:
    """MobileNetV2, or the small network of the tests, with random weights."""
    import torch

    from tests import networks
    from toolkit import modules, network, tasks

    torch.manual_seed(0)
    folder.mkdir(parents=True)
    spec = {"resize": {"height": side, "width": side}, "channels": channels}
    code = networks.network_file(folder.parent)
    if name.startswith("MobileNet"):
        code = Path(__file__).with_name("mobilenet_v2.py")
    imported = modules.imported(f"{code}:build", None, folder.parent / "imported", False)
    made = network.load(imported, tasks.get("image-classification"), list(networks.CLASSES), spec)
    made.save_pretrained(folder)
    (folder / "preprocessor.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def row_network(folder: Path) -> Path:
    """The toolkit's own network for tables, trained for an epoch on random rows."""
    generator = np.random.default_rng(0)
    names = [f"f{number}" for number in range(FEATURES)]
    lines = [",".join([*names, "label"])]
    for number, row in enumerate(generator.standard_normal((400, FEATURES))):
        lines.append(",".join([*(f"{value:.3f}" for value in row), "ab"[number % 2]]))
    data = folder.with_suffix(".csv")
    data.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options = {"model": "mlp", "data": str(data), "task": "tabular", "epochs": 1}
    steps.finetune(str(folder), {**options, "cache_dir": str(folder.parent / "cache")})
    return folder


def artifact(model: Path, folder: Path, engine: str, method: str | None, data: Path | None = None) -> Path:
    """The file of a model in float, or quantized by a method."""
    cache = str(folder.parent / "cache")
    if method is None:
        steps.export(str(model), str(folder), engine=engine, lengths=list(TOKENS), allow_code=True, cache_dir=cache)
    else:
        options = {"allow_code": True, **({"data": str(data)} if data else {})}
        lengths = None if data else list(TOKENS)
        steps.quantize(
            str(model), str(folder), method=method, engine=engine, options=options, cache_dir=cache, lengths=lengths
        )
    name: str = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))["path"]
    return folder / name


def cases(work: Path, given: argparse.Namespace) -> Iterator[Case]:
    """Everything that is measured; the files are made once in `work`."""
    generator = np.random.default_rng(0)

    def builds(
        model: Path, name: str, method: str, data: Path | None = None
    ) -> Iterator[tuple[str, targets.Precision, Path]]:
        for engine in ENGINES:
            ways: tuple[tuple[targets.Precision, str | None], ...] = (("fp32", None), ("int8", method))
            for precision, how in ways:
                folder = work / f"{name.replace(' ', '-').replace(',', '')}-{engine}-{precision}"
                made = next(folder.glob("model.*"), None)
                yield engine, precision, made or artifact(model, folder, engine, how, data)

    for name, shape in ENCODERS.items():
        model = work / name.replace(" ", "-")
        for engine, precision, path in builds(
            model if model.exists() else encoder(model, *shape), name, "dynamic-int8"
        ):
            for tokens in TOKENS:
                ids = generator.integers(1000, 2000, (1, tokens))
                inputs: engines.Arrays = {
                    "input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids),
                }  # fmt: skip
                yield Case(name, precision, engine, path, {"batch": 1, "length": tokens}, inputs)
    for name, (side, channels) in IMAGES.items():
        model, data = work / name.replace(" ", "-") / "model", work / "images"
        if not data.exists():
            from tests.networks import image_folder

            image_folder(data, 20)
        if not model.exists():
            image_network(model, name, side, channels)
        for engine, precision, path in builds(model, name, "static-int8", data):
            pixels = generator.standard_normal((1, channels, side, side)).astype(np.float32)
            yield Case(name, precision, engine, path, {"batch": 1}, {"pixel_values": pixels})
    rows = work / "rows"
    for engine, precision, path in builds(rows if rows.exists() else row_network(rows), "MLP", "dynamic-int8"):
        values = generator.standard_normal((1, FEATURES)).astype(np.float32)
        yield Case("MLP on rows", precision, engine, path, {"batch": 1}, {"features": values})
    if given.paraphrase:
        for tokens in TOKENS:
            ids = generator.integers(1000, 2000, (1, tokens))
            inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
            sizes = {"batch": 1, "batch_size": 1, "length": tokens, "sequence_length": tokens, "sequence": tokens}
            yield Case("paraphrase-MiniLM-L3 (theirs)", "fp32", "onnxruntime", Path(given.paraphrase), sizes, inputs)
    if given.vad:
        inputs = {
            "input": generator.standard_normal((1, 576)).astype(np.float32) / 10,
            "state": np.zeros((2, 1, 128), np.float32),
            "sr": np.array(16000),
        }
        sizes = {"sequence": 576, "batch": 1, "input[0]": 1, "input[1]": 576, "state[1]": 1, "state[0]": 2}
        yield Case("silero VAD (theirs)", "fp32", "onnxruntime", Path(given.vad), sizes, inputs)


def measured(found: list[Case], threads: int) -> list[list[float]]:
    """Seconds per case and round: the median of an inference that is warm."""
    times: list[list[float]] = [[] for _ in found]
    generator = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for number in generator.permutation(len(found)):
            case = found[int(number)]
            engine = engines.get(case.engine).load(case.path, threads)
            taken = named(case, engine)
            times[int(number)].append(calibrate.median_seconds(engine, taken))
            engine.close()
    return times


def named(case: Case, engine: engines.Engine | None = None) -> engines.Arrays:
    """A case's inputs under the names that a file has for them; `engine` is the file, loaded."""
    said = (engine or engines.get(case.engine).load(case.path)).describe()
    if "inputs" in said:
        names = [tensor["name"] for tensor in said["inputs"]]
    else:
        names = next(iter(said["signatures"].values()))["inputs"]
    if len(case.inputs) == 1:
        return {names[0]: next(iter(case.inputs.values()))}
    return {name: case.inputs[name] for name in names}


def like(name: str, threads: int, calibrations: list[targets.Calibration]) -> targets.Target:
    """The profile `name` for a machine of as many of its cores as there are threads."""
    base = targets.resolve(name)
    assert base.cpu is not None
    factor = threads / base.cpu.cores
    peaks = base.peaks["cpu"].model_dump(exclude_none=True)
    bandwidth = base.memory.bandwidth_gb_per_s
    return base.model_copy(
        update={
            "cpu": base.cpu.model_copy(update={"threads": threads, "cores": threads}),
            "peaks": {"cpu": targets.Peaks.model_validate({key: value * factor for key, value in peaks.items()})},
            "memory": base.memory.model_copy(
                update={"bandwidth_gb_per_s": None if bandwidth is None else bandwidth * factor}
            ),
            "calibration": calibrations,
        }
    )


def compared(case: Case, seconds: list[float], target: targets.Target) -> dict[str, Any]:
    """A case's estimates against its time."""
    engine = target.engine(case.engine)
    operations = case.operations()
    truth = min(seconds) * 1e3
    made: dict[str, Any] = {
        "case": case.name,
        "multiply_adds": sum(each.multiply_adds for each in operations),
        "measured_ms": round(truth, 4),
        "median_round_ms": round(statistics.median(seconds) * 1e3, 4),
    }
    for kind, which in (("peaks", target.model_copy(update={"calibration": []})), ("calibrated", target)):
        found = estimate.latency(which, engine, case.precision, operations)
        assert found is not None and found.low_ms is not None and found.high_ms is not None
        made[kind] = {
            "ms": round(found.ms, 4), "low_ms": round(found.low_ms, 4), "high_ms": round(found.high_ms, 4),
            "estimate_by_measured": round(found.ms / truth, 3), "inside": found.low_ms <= truth <= found.high_ms,
        }  # fmt: skip
    return made


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per way of estimating: how many intervals hold the truth, how wide they are, and how far the value is off."""
    made = {}
    for kind in ("peaks", "calibrated"):
        found = [row[kind] for row in rows]
        off = sorted(max(each["estimate_by_measured"], 1 / each["estimate_by_measured"]) for each in found)
        made[kind] = {
            "cases": len(found),
            "inside": sum(each["inside"] for each in found),
            "interval_high_by_low": round(statistics.median(each["high_ms"] / each["low_ms"] for each in found), 2),
            "median_factor_off": round(statistics.median(off), 3),
            "worst_factor_off": off[-1],
        }
    return made


def device(found: list[Case], threads: int, name: str, seed: int) -> dict[str, Any]:
    """Calibrate, measure and compare with a number of threads."""
    calibrations = [calibrate.measure(engine, threads, seed=seed)[0] for engine in ENGINES]
    target = like(name, threads, calibrations)
    times = measured(found, threads)
    rows = [compared(case, seconds, target) for case, seconds in zip(found, times, strict=True)]
    return {
        "profile": name,
        "hidden": os.environ.get("HIDE_ISA", "nothing"),
        "threads": threads,
        "load_average_1m": os.getloadavg()[0],
        "summary": summary(rows),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", required=True, help="the profile whose peaks are used; that of this machine's CPU")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--vad", help="silero_vad_16k_op15.onnx")
    parser.add_argument("--paraphrase", help="paraphrase-MiniLM-L3-v2.onnx")
    parser.add_argument("--append", action="store_true", help="keep the record's other runs")
    parser.add_argument("--work", help="keep the models here")
    parser.add_argument("-o", "--output", default=str(Path(__file__).parent / "results" / "estimates.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(given.work or folder)
        work.mkdir(exist_ok=True)
        found = list(cases(work, given))
        runs = [device(found, threads, given.like, 0) for threads in given.threads]
    output = Path(given.output)
    if given.append and output.exists():
        new = {(run["hidden"], run["threads"]) for run in runs}
        known = json.loads(output.read_text(encoding="utf-8"))["runs"]
        runs = [run for run in known if (run["hidden"], run["threads"]) not in new] + runs
    record: dict[str, Any] = {"device": local.describe(), "versions": library_versions(LIBRARIES), "runs": runs}
    for run in runs:
        print(f"{run['threads']} thread(s), {run['hidden']} hidden, peaks of {run['profile']}")
        for row in run["rows"]:
            peaks, own = row["peaks"], row["calibrated"]
            print(
                f"  {row['case']:52} {row['measured_ms']:9.3f} ms   "
                f"peaks {peaks['low_ms']:8.3f}-{peaks['high_ms']:8.3f} {'  ' if peaks['inside'] else '* '}"
                f"calibrated {own['ms']:8.3f} ({own['low_ms']:8.3f}-{own['high_ms']:8.3f}) "
                f"x{own['estimate_by_measured']:.2f}{'' if own['inside'] else ' *'}"
            )
        print(json.dumps(run["summary"], indent=2))
    write_json(output, record)


if __name__ == "__main__":
    main()
