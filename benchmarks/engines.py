"""Engines for RTX GPUs, built without one: MiniLM in fp16 and MobileNetV2 in int8, for four compute capabilities.

    python benchmarks/engines.py --text tuned-minilm --images tuned-mobilenet --data t10k-images-idx3-ubyte.gz

Takes two trained checkpoints, makes the typed ONNX of each, holds it against the rule tables of every TensorRT that a
Jetson has and against NVIDIA's parser, and builds its engines. At last what onnxruntime's quantizer makes of the same
MobileNetV2 with its defaults: the parser must refuse it, and the record says by which rule. Writes a record to
`benchmarks/results/`. The engines are not run: that takes the GPU.

    python benchmarks/engines.py --runtimes --text … --images … --data … --texts reviews.csv

Instead the runtimes of a CPU, with the same two models in fp32 and int8, timed in turn on one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import builds, engines, rules, steps
from toolkit import target as targets
from toolkit.bench import loops, statistics
from toolkit.devices import local
from toolkit.rules import onnx_graph
from toolkit.runner import library_versions
from toolkit.storage import write_json
from toolkit.tensorrt import builder, preflight
from toolkit.tensorrt import recipe as recipes

CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
TABLES = ("tensorrt-10.3", "tensorrt-10.13", "tensorrt-10.16", "tensorrt-11")  # JetPack 6.1 and later
LENGTHS = {"encoding": {"max_length": 128}, "tokens": {"p90": 44}}  # of the demo's sentences
REFUSED = "MobileNetV2 by onnxruntime's quantize_static with its defaults"
LIBRARIES = ("onnx", "onnxruntime", preflight.PACKAGE)
# Runtimes that run here: engine → the package that it is. The first is what the others are held against.
RUNTIMES = {"litert": "ai-edge-litert", "executorch": "executorch"}
INT8 = {"text": "dynamic-int8", "images": "static-int8"}
INPUT_LENGTHS = [16, 32, 64, 128]  # of formats that have one graph for each
EXAMPLES, ROUNDS = 24, 10


def checked(onnx: Path) -> dict[str, Any]:
    """What the tables and the parser say of a file."""
    found = {name: onnx_graph.check(onnx, rules.load(name)) for name in TABLES}
    return {
        "nodes": next(iter(found.values())).nodes,
        "refused_by_table": {name: sorted({f.rule for f in each.refused}) for name, each in found.items()},
        "parser": preflight.ask(onnx).as_dict(),
    }


def built(artifact: Path, folder: Path) -> dict[str, Any]:
    """An artifact's engines: bytes, seconds and peak memory of the builder."""
    described = json.loads((artifact / "artifact.json").read_text(encoding="utf-8"))
    target = targets.resolve("a10")
    folder.mkdir()
    onnx = Path(shutil.copy(artifact / described["path"], folder / described["path"]))
    recipes.write(folder, recipes.make(onnx, described, LENGTHS, target), target)
    engines = {}
    for capability in CAPABILITIES:
        known = builder.run(folder, ["--runtime", "tensorrt_rtx", "--compute-capability", capability])
        engines[capability] = {key: known[key] for key in ("engine_bytes", "seconds", "peak_rss_bytes", "typing")}
    return {"precision": described["precision"], "onnx_bytes": onnx.stat().st_size, **checked(onnx), "engines": engines}


def quantized_by_onnxruntime(source: Path, output: Path) -> Path:
    """A float ONNX file through onnxruntime's quantizer, as it comes."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    tensor = onnx.load(str(source)).graph.input[0]
    shape = [size.dim_value or 1 for size in tensor.type.tensor_type.shape.dim]
    noise = np.random.default_rng(0).random((4, *shape), dtype=np.float32)

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types here
        def __init__(self) -> None:
            self.batches: Iterator[Any] = iter(noise)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {tensor.name: batch}

    quantize_static(str(source), str(output), Reader())
    return output


def loaded(artifact: Path, data: Path, examples: int) -> tuple[Callable[[], loops.Runner], int]:
    """What loads an artifact with examples of a data file, sorted by their lengths as the model is given them, and the
    bytes of its file."""
    build = builds.open_build(artifact)
    raw = list(itertools.islice(build.task.unlabeled(data, None), examples))
    inputs = sorted((build.encoder(each) for each in raw), key=build.encoder.length)
    path, engine = build.path, json.loads((artifact / "artifact.json").read_text(encoding="utf-8"))["engine"]
    build.close()

    def load() -> loops.Runner:
        made = engines.get(engine).load(path)
        return loops.Runner(lambda index: made.run(inputs[index]), made.close)

    return load, path.stat().st_size


def runtimes(checkpoint: str, kind: str, calibration: str, data: Path, folder: Path) -> dict[str, Any]:
    """A model in every runtime and precision: bytes, milliseconds, and its time against the first runtime's."""
    runners: dict[str, Callable[[], loops.Runner]] = {}
    found: dict[str, dict[str, Any]] = {}
    for engine in RUNTIMES:
        for method in (None, INT8[kind]):
            name = f"{engine} {'fp32' if method is None else 'int8'}"
            artifact = folder / name.replace(" ", "-")
            if method is None:
                steps.export(checkpoint, str(artifact), engine=engine, lengths=INPUT_LENGTHS, allow_code=True)
            else:
                given = {"data": calibration, "allow_code": True} if method == "static-int8" else {}
                steps.quantize(str(folder / f"{engine}-fp32"), str(artifact), method=method, options=given)
            runners[name], size = loaded(artifact, data, EXAMPLES)
            found[name] = {"bytes": size}
    times = loops.interleave(runners, EXAMPLES, ROUNDS)
    first = next(iter(RUNTIMES))
    for name, seconds in times.items():
        found[name] |= {"ms": statistics.summarize(loops.per_example(seconds))["mean_ms"]}
        against = f"{first} {name.split()[1]}"
        if name != against:
            found[name] |= {"against": against, **statistics.compare(seconds, times[against]).as_dict()}
    return found


def time_runtimes(given: argparse.Namespace, folder: Path) -> None:
    """Time both models, print what came out, and write the record."""
    record: dict[str, Any] = {
        "models": {
            "MiniLM": runtimes(given.text, "text", "", given.texts, folder / "text"),
            "MobileNetV2": runtimes(given.images, "images", given.data, Path(given.data), folder / "images"),
        },
        "libraries": library_versions(tuple(RUNTIMES.values())),
        "device": local.describe(),
    }
    write_json(given.output or Path(__file__).parent / "results" / "runtimes.json", record)
    for model, found in record["models"].items():
        for name, each in found.items():
            said = f"{model} {name}: {each['bytes'] / 1e6:.1f} MB, {each['ms']:.2f} ms"
            if "ratio" in each:
                said += f", {each['ratio']:.2f} ({each['low']:.2f}-{each['high']:.2f}) of {each['against']}'s time"
            print(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", required=True, help="a trained checkpoint of MiniLM")
    parser.add_argument("--images", required=True, help="a trained checkpoint of MobileNetV2")
    parser.add_argument("--data", required=True, help="images to calibrate it with")
    parser.add_argument("--runtimes", action="store_true", help="time the runtimes of a CPU instead")
    parser.add_argument("--texts", type=Path, help="of --runtimes: texts to time MiniLM on")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.runtimes:
            time_runtimes(given, folder)
            return
        steps.quantize(given.text, str(folder / "text"), method="fp16", engine="tensorrt")
        options = {"data": given.data, "allow_code": True}
        steps.quantize(given.images, str(folder / "images"), method="static-int8", engine="tensorrt", options=options)
        steps.export(given.images, str(folder / "float"), engine="tensorrt", lengths=[1], allow_code=True)
        refused = quantized_by_onnxruntime(folder / "float" / "model.onnx", folder / "defaults.onnx")
        record = {
            "models": {
                "MiniLM": built(folder / "text", folder / "text-engines"),
                "MobileNetV2": built(folder / "images", folder / "image-engines"),
            },
            REFUSED: checked(refused),
            "libraries": library_versions(LIBRARIES),
            "device": local.describe(),
        }
    write_json(given.output or Path(__file__).parent / "results" / "engines.json", record)
    for model, found in record["models"].items():
        said = ", ".join(
            f"{capability} {each['engine_bytes'] / 1e6:.1f} MB in {each['seconds']:.1f} s"
            for capability, each in found["engines"].items()
        )
        print(f"{model} {found['precision']} ({found['parser']['status']}): {said}")
    answer = record[REFUSED]["parser"]
    print(f"{REFUSED}: {answer['status']}, rules {', '.join(answer['rules'])}")


if __name__ == "__main__":
    main()
