"""A fault in every layer of two models: how often `toolkit bisect` names the layer, and what it takes.

    python benchmarks/bisect_layers.py --text tuned/ --image mobilenet/ --reviews reviews.csv --images folder/

Exports both checkpoints to ONNX and to LiteRT, adds a tenth of noise to one weight after the other, and looks. Named
means that the first module that differs is the one whose weight was changed, or holds it where the format has made it
one with others. Halving the graph would take log2(modules) runs; this takes two of the changed model and one of the
checkpoint, whatever its depth. Writes a record to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import bisect as bisection
from toolkit import builds, steps
from toolkit.builds import Build
from toolkit.export.flatbuffer import short_names
from toolkit.probes import OUTPUT, Probe
from toolkit.probes import litert as litert_probe
from toolkit.probes import onnx as onnx_probe
from toolkit.runner import library_versions
from toolkit.storage import write_json

EXAMPLES = 4
LEAST = 64  # values of a weight; smaller ones are constants of the arithmetic
LENGTHS = [64]
_LAYERS = ("MatMul", "Gemm", "Conv", "Gather")


def noisy(values: NDArray[Any]) -> NDArray[np.float32]:
    """A tenth of noise: neither shape nor range tells."""
    noise = np.random.default_rng(0).standard_normal(values.shape)
    return np.asarray(values + 0.1 * values.std() * noise, dtype=np.float32)


def onnx_faults(path: Path) -> Iterator[tuple[Probe, list[str]]]:
    """The model of an ONNX file with one weight changed at a time, and the modules that it can be of."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    weights = {t.name: t for t in model.graph.initializer if t.data_type == 1 and math.prod(t.dims) >= LEAST}
    for node, scope in zip(model.graph.node, onnx_probe.scopes(model), strict=True):
        for name in node.input:
            if node.op_type in _LAYERS and name in weights and len(weights[name].dims) > 1:
                before = weights[name].SerializeToString()
                weights[name].CopyFrom(numpy_helper.from_array(noisy(numpy_helper.to_array(weights[name])), name))
                yield onnx_probe.OnnxProbe(model), [scope]
                weights[name].ParseFromString(before)


def litert_faults(path: Path) -> Iterator[tuple[Probe, list[str]]]:
    """The same of a LiteRT file."""
    probe = litert_probe.open_probe(path)
    graph = probe.model.subgraphs[0]
    seen = set()
    for operator in graph.operators:
        for number in operator.inputs[1:2]:
            tensor = graph.tensors[number]
            buffer = probe.model.buffers[tensor.buffer]
            if tensor.type != 0 or buffer.data is None or len(tensor.shape) < 2 or tensor.buffer in seen:
                continue
            if math.prod(tensor.shape) < LEAST:
                continue
            seen.add(tensor.buffer)
            before = buffer.data
            buffer.data = noisy(before.view(np.float32)).view(np.uint8)
            paths = short_names(graph.tensors[operator.outputs[0]].name.decode())
            yield litert_probe.LitertProbe(probe.model), [each.replace("/", ".") for each in paths]
            buffer.data = before


FAULTS: dict[str, Callable[[Path], Iterator[tuple[Probe, list[str]]]]] = {
    "tensorrt": onnx_faults,
    "litert": litert_faults,
}


def is_named(row: bisection.Row | None, wanted: list[str], first: Probe) -> bool:
    """Whether a row says that the fault is in one of the modules `wanted`, called as an exporter calls them."""
    if row is None:
        return False
    # The last layer of a LiteRT file gives the output itself, which is called like that.
    if not any("." in name or name in first.modules for name in wanted):
        return row.module == OUTPUT
    known = bisection.aliases(list(first.modules), wanted)
    names = set(known) | {name for name in wanted if name in first.modules}
    said = {row.module, *row.holds}
    return bool(said & names) or any(row.module.startswith(f"{name}.") for name in names)


def measure(first: Build, folder: Path, engine: str, data: Path) -> dict[str, Any]:
    """One model in one format."""
    second = builds.open_build(folder)
    examples = builds.examples_for(first, first, data, None, EXAMPLES)
    inputs = builds.inputs_for(first, second, examples)
    probe = first.probe()
    sound = bisection.bisect(probe, second.probe(), inputs)
    named, missed = 0, []
    for changed, wanted in FAULTS[engine](second.path):
        found = bisection.bisect(probe, changed, inputs)
        if is_named(found.first, wanted, probe):
            named += 1
        else:
            missed.append({"weight_of": wanted, "said": found.first.module if found.first else None})
    return {
        "layers": named + len(missed),
        "named": named,
        "missed": missed,
        "modules": len(sound.rows),
        "alarm_without_fault": sound.first.module if sound.first else None,
        "runs": sound.runs["first"] + sound.runs["second"],
        "log2_modules": round(math.log2(len(sound.rows)), 1),
    }


def main() -> None:
    """Export, change, look, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--reviews", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "bisect_layers.json")
    arguments = parser.parse_args()
    rows = []
    print(f"{'model':6} {'format':8} {'layers':>6} {'named':>6} {'modules':>8} {'runs':>5} {'log2':>5}")
    with tempfile.TemporaryDirectory() as work:
        for name, checkpoint, data in (
            ("text", arguments.text, arguments.reviews),
            ("image", arguments.image, arguments.images),
        ):
            first = builds.open_build(checkpoint, allow_code=True)
            for engine in FAULTS:
                folder = Path(work) / f"{name}-{engine}"
                steps.export(str(checkpoint), str(folder), engine=engine, lengths=LENGTHS, allow_code=True)
                row = measure(first, folder, engine, data)
                form = "onnx" if engine == "tensorrt" else engine
                print(
                    f"{name:6} {form:8} {row['layers']:6} {row['named']:6} {row['modules']:8} {row['runs']:5} "
                    f"{row['log2_modules']:5}",
                    flush=True,
                )
                rows.append({"model": name, "format": form, **row})
    record = {
        "command": "python benchmarks/bisect_layers.py --text … --image … --reviews … --images …",
        "kind": "measured",
        "versions": library_versions(("torch", "transformers", "onnxruntime", "litert-torch", "ai-edge-litert")),
        "rows": rows,
    }
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
