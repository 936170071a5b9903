"""A model of 3 GB in 6 GB of memory: an ONNX file with its weights beside it, through the verbs that take one.

    python benchmarks/large_model.py [--layers 45] [--memory-gb 6]

Writes 45 square layers 4096 wide with random weights and 30 examples, and runs `convert`, `verify`, `quantize` and
`check` on them, each in a control group with that limit: the kernel ends what needs more. Needs the right to make one
(root, or a container with its own cgroups) and 15 GB of disk. Writes a record to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import child
from toolkit.devices import cgroup
from toolkit.runner import library_versions
from toolkit.storage import write_json

WIDTH = 4096
EXAMPLES = 30


def large_model(folder: Path, layers: int) -> Path:
    """`model.onnx` and `weights.bin`, written layer by layer: [batch, WIDTH] → [batch, WIDTH]."""
    import onnx
    from onnx import TensorProto, helper

    generator = np.random.default_rng(0)
    nodes, weights, size = [], [], 4 * WIDTH * WIDTH
    with (folder / "weights.bin").open("wb") as stream:
        for layer in range(layers):
            values = generator.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(np.sqrt(WIDTH))
            stream.write(values.tobytes())
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", "weights.bin"), ("offset", layer * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            nodes += [
                helper.make_node("MatMul", [f"x{layer}", f"w{layer}"], [f"h{layer}"], f"product{layer}"),
                helper.make_node("Tanh", [f"h{layer}"], [f"t{layer}"], f"tanh{layer}"),
                helper.make_node("Add", [f"t{layer}", f"x{layer}"], [f"x{layer + 1}"], f"add{layer}"),
            ]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(f"x{layers}", TensorProto.FLOAT, ["batch", WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def examples(folder: Path) -> Path:
    """`.npz` files with one input each."""
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(EXAMPLES):
        np.savez(folder / f"{number:02d}.npz", x0=generator.standard_normal((1, WIDTH), dtype=np.float32))
    return folder


def run(name: str, arguments: list[str], memory_bytes: int) -> dict[str, Any]:
    """One verb in a control group: its exit code, what it had at most, and the last line that it said."""
    started = time.monotonic()
    with cgroup.memory(memory_bytes) as group:
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", *arguments],
            env=child.environment(),
            preexec_fn=group.enter(),
            capture_output=True,
            text=True,
        )
        seconds = time.monotonic() - started
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        return {
            "verb": name,
            "exit_code": done.returncode,
            "killed": group.killed,
            "peak_bytes_with_page_cache": group.peak_bytes,
            "seconds": round(seconds, 1),
            "said": "" if done.returncode == 0 else said[-1][:300],
        }


def main() -> None:
    """Make the model, run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=45)
    parser.add_argument("--memory-gb", type=float, default=6)
    parser.add_argument("--folder", type=Path, help="where to work  [default: a temporary folder]")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "large_model.json")
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=given.folder) as work:
        folder = Path(work)
        model, data = str(large_model(folder, given.layers)), str(examples(folder / "data"))
        out = {name: str(folder / name) for name in ("bundle", "int8", "dynamic")}
        cache = ["--cache-dir", str(folder / "cache")]
        verbs = {
            "convert": ["convert", model, "--data", data, "-o", out["bundle"], *cache],
            "verify": ["verify", out["bundle"]],
            "quantize weight-int8": [
                "quantize", model, "--engine", "onnxruntime", "--method", "weight-int8", "-o", out["int8"], *cache
            ],
            "quantize dynamic-int8": [
                "quantize", model, "--engine", "onnxruntime", "--method", "dynamic-int8", "-o", out["dynamic"], *cache
            ],
            "check": ["check", model, out["int8"], "--data", data, "--examples", "2"],
        }  # fmt: skip
        print(f"{'verb':24} {'exit':>4} {'killed':>6} {'GB':>5} {'s':>6}  said")
        for name, arguments in verbs.items():
            row = run(name, arguments, int(given.memory_gb * 1e9))
            peak = row["peak_bytes_with_page_cache"]
            print(
                f"{name:24} {row['exit_code']:4} {row['killed']:6} {(peak or 0) / 1e9:5.2f} {row['seconds']:6} "
                f"{row['said']}"
            )
            rows.append(row)
        size = (folder / "weights.bin").stat().st_size
    write_json(
        given.output,
        {
            "command": "python benchmarks/large_model.py",
            "kind": "measured",
            "weights_bytes": size,
            "memory_limit_bytes": int(given.memory_gb * 1e9),
            "rows": rows,
            "versions": library_versions(("onnx", "onnxruntime")),
        },
    )


if __name__ == "__main__":
    main()
