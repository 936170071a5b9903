"""The seeded faults of `faults.py` before the checks that other exporters make of what they write.

    python benchmarks/fault_peers.py --text tuned/ --image mobilenet/ --reviews reviews.csv --images folder/ \\
        --optimum OTHER_ENVIRONMENT/bin/python

- `checker`: `onnx.checker.check_model` with shapes, which exporters run;
- `loads`: ONNX Runtime loads the file;
- `optimum`: `validate_model_outputs` of optimum-onnx, which `optimum-cli export onnx` runs on made-up inputs, in an
  environment of its own (`pip install optimum-onnx[onnxruntime]`): the text classifier;
- `random`: the same by hand for both models: made-up inputs through the checkpoint and the file, 1e-3 apart at most.

A fault outside the file (preprocessing, labels) is before none of them. Writes a record to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import faults
import numpy as np

from toolkit import builds
from toolkit.engines import onnxruntime as engine
from toolkit.errors import ToolkitError
from toolkit.runner import library_versions
from toolkit.storage import write_json

ATOL = 1e-3
SOUND = "(none: the sound file)"
_VALIDATE = """
import json, sys
from pathlib import Path
from optimum.exporters.onnx import validate_model_outputs
from optimum.exporters.tasks import TasksManager
from transformers import AutoModelForSequenceClassification

checkpoint, files = sys.argv[1], sys.argv[2:]
model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
make = TasksManager.get_exporter_config_constructor("onnx", model, task="text-classification")
config = make(model.config)
said = {}
for file in files:
    try:
        validate_model_outputs(config, model, Path(file), list(config.outputs), atol=None, use_subprocess=False)
        said[file] = None
    except Exception as error:
        said[file] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
print(json.dumps(said))
"""


def checker(path: Path) -> str | None:
    """What `onnx.checker` finds; None if nothing."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:
        return str(error).strip().splitlines()[0][:150]
    return None


def loads(path: Path) -> str | None:
    """Why ONNX Runtime does not load a file; None if it does."""
    try:
        engine.load(path).close()
    except ToolkitError as error:
        return str(error)[:150]
    return None


def random(first: builds.Build, made: builds.Build) -> str | None:
    """How far a file is from its checkpoint on made-up inputs; None if within the tolerance."""
    generator = np.random.default_rng(0)
    inputs = {
        name: generator.standard_normal(array.shape).astype(np.float32)
        if array.dtype.kind == "f"
        else np.ones_like(array) if name != "input_ids" else generator.integers(0, 1000, array.shape)
        for name, array in first.encoder.sample(2, 16).items()
    }  # fmt: skip
    if "token_type_ids" in inputs:
        inputs["token_type_ids"][:] = 0
    try:
        with warnings.catch_warnings(action="ignore"):
            found, wanted = made.output(inputs), first.output(inputs)
    except Exception as error:
        return str(error).splitlines()[0][:150]
    worst = float(np.abs(found - wanted).max()) if found.shape == wanted.shape else float("inf")
    return None if worst <= ATOL else f"largest difference {worst:.3g}"


def optimum(python: str, checkpoint: Path, files: list[Path]) -> dict[str, str | None]:
    """What optimum's own validation says of files."""
    command = [python, "-c", _VALIDATE, str(checkpoint), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=1800)
    found: dict[str, str | None] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def as_named(path: Path, copy: Path) -> Path:
    """A copy with the names that optimum gives to axes and outputs: it refuses any others without looking further."""
    import onnx

    model = onnx.load(str(path))
    names = {"batch": "batch_size", "length": "sequence_length"}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in names:
                dim.dim_param = names[dim.dim_param]
    before = model.graph.output[0].name
    if before != "logits":
        for node in model.graph.node:
            for place, name in enumerate(node.output):
                node.output[place] = {"logits": "logits.before", before: "logits"}.get(name, name)
            for place, name in enumerate(node.input):
                node.input[place] = {"logits": "logits.before"}.get(name, name)
        model.graph.output[0].name = "logits"
    onnx.save(model, str(copy))
    return copy


def rows_of(name: str, case: faults.Case, listed: list[faults.Fault], arguments: argparse.Namespace) -> list[Any]:
    """Every fault before every check."""
    rows, files = [], {}
    for number, fault in enumerate(listed):
        made = fault.make(case)
        inside = fault.step == "model"
        row: dict[str, Any] = {"model": name, "fault": fault.name, "in_the_file": inside}
        if inside:
            path = made.path
            if name == "text" and arguments.optimum and path.suffix == ".onnx":
                files[str(as_named(path, Path(case.work) / f"{number}.onnx"))] = number
            row |= {"checker": checker(path), "loads": loads(path), "random": random(case.first, made)}
        rows.append(row)
    if files:
        for file, said in optimum(arguments.optimum, arguments.text, [Path(file) for file in files]).items():
            rows[files[file]]["optimum"] = said
    return rows


def main() -> None:
    """Ask all checks, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("text", "image", "reviews", "images"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--optimum", help="Python of an environment with optimum-onnx.")
    arguments = parser.parse_args()
    rows: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, checkpoint, data in (
            ("text", arguments.text, arguments.reviews), ("image", arguments.image, arguments.images),
        ):  # fmt: skip
            work = Path(folder) / name
            work.mkdir()
            first = builds.open_build(checkpoint, allow_code=True)
            examples = builds.examples_for(first, first, data, None, 8)
            made = faults.sound_builds(checkpoint, {"tensorrt": (None,)}, work, {"data": str(data), "allow_code": True})
            case = faults.Case(first, made["tensorrt fp32"], examples, work)
            listed = (
                faults.text_faults(layer=2)
                if name == "text"
                else faults.image_faults(
                    first, "net.features.6.conv.1.1", "net.classifier.1", faults.pictures_in(Path(folder))
                )
            )
            listed = [faults.Fault(SOUND, "model", lambda case: case.sound()), *listed]
            rows += rows_of(name, case, listed, arguments)
    peers = ("checker", "loads", "random", "optimum")
    print(f"{'fault':40} {'model':6} " + " ".join(f"{peer:8}" for peer in peers))
    for row in rows:
        said = ["-" if peer not in row else "caught" if row[peer] else "passes" for peer in peers]
        print(f"{row['fault']:40} {row['model']:6} " + " ".join(f"{each:8}" for each in said))
    faulty = [row for row in rows if row["fault"] != SOUND]
    caught = {peer: sum(bool(row.get(peer)) for row in faulty) for peer in peers}
    print(f"Of {len(faulty)} faults, {sum(row['in_the_file'] for row in faulty)} of them in the file: {caught}")
    write_json(
        Path(__file__).parent / "results" / "fault_peers.json",
        {
            "command": "python benchmarks/fault_peers.py --text … --image … --reviews … --images … --optimum …",
            "kind": "measured",
            "versions": library_versions(("torch", "transformers", "onnx", "onnxruntime")),
            "faults": rows,
            "caught": caught,
        },
    )


if __name__ == "__main__":
    main()
