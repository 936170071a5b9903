"""Whether the harness tells the times that native programs tell, of the same files in the same run.

    python benchmarks/native_agreement.py BUNDLE... [--rounds 16] [--seconds 1]

For every bundle these programs take turns, a fresh process each, in an order that is turned around from round to round:

- the harness: `toolkit.bench.measure`, as `toolkit bench` runs it, the inference alone at a fixed size;
- the loop in C++ of `toolkit/devices/native_runner` on the library inside the engine's wheel, with the same inputs,
  built here with g++: for ONNX what onnxruntime_perf_test does, for LiteRT a CompiledModel;
- for LiteRT its own benchmark (ai_edge_litert/tools/benchmark_litert_model.py), which makes up inputs and times a
  CompiledModel without copying them or reading outputs; not where it fails on what it makes up.

What is compared is the median of a process, by its ratio to that of another in the same round, with Student's t over
pairs of rounds. At last what the harness takes itself: a query of an engine that does nothing, and a graph with next to
nothing to compute. Writes a record to `benchmarks/results/`.

The bundles of the record: `toolkit convert demo` and a fine-tuned MobileNetV2, each for profiles of this machine that
name one engine in one precision, and paraphrase-MiniLM-L3 as its authors give it (`toolkit convert FILE.onnx --data`).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import toolkit
from toolkit import engines, kernels, silence
from toolkit.bench import encoding, measure, statistics
from toolkit.bench import run as benches
from toolkit.devices import local, native_runner
from toolkit.engines import litert
from toolkit.runner import library_versions
from toolkit.storage import write_json

HARNESS, LOOP, OWN = "harness", "C++ loop", "LiteRT's own"
LENGTH = 64  # of texts, or the next that the bundle's file has
PACKAGES = Path(np.__file__).parent.parent
LIBRARIES = ("numpy", "onnxruntime", "ai-edge-litert")
IDLE_QUERIES = 20_000

Way = Callable[[], float]  # the median of a fresh process in seconds


class ProgramError(Exception):
    """One of the programs failed."""


class Case:
    """A bundle at a fixed size, and the programs that run it."""

    def __init__(self, bundle: Path, program: Path, work: Path, seconds: float, threads: int) -> None:
        manifest = benches.read_bundle(bundle)
        examples, _ = benches.examples_of(manifest, None)
        artifact = manifest.data["artifact"]
        self.engine, self.name = manifest.engine, bundle.name
        self.precision = str(artifact["precision"])
        lengths = artifact.get("lengths")
        self.sizes: dict[str, int] = {"batch": 1}
        if manifest.task != "tensors" and "input_ids" in {each["name"] for each in artifact["inputs"]}:
            self.sizes["length"] = min(lengths or [LENGTH], key=lambda length: abs(length - LENGTH))
        self._step = {
            "what": "times", "bundle": str(bundle), "examples": examples, "threads": threads, "sizes": self.sizes,
            "seed": 0, "rounds": 1, "seconds": seconds, "queries": 20,
        }  # fmt: skip
        self._program, self._work, self._seconds, self._threads = program, work, seconds, threads
        self._artifact = manifest.artifact
        inputs = encoding.encoded(bundle, examples, self.sizes)[1]
        native_runner.write_inputs(work / "inputs", self.engine, self._artifact, inputs)
        self.loop_seconds = 0.01  # what the loop told last, by which a number of runs is chosen
        self.ways: dict[str, Way] = {HARNESS: self.harness, LOOP: self.loop}
        if self.engine == litert.NAME:
            self._signature = litert.signature_name(self.sizes.get("length"))
            self.ways[OWN] = self.own

    def harness(self) -> float:
        result = self._work / "result.json"
        write_json(self._work / "step.json", {**self._step, "parent": os.getpid(), "result": str(result)})
        _run([sys.executable, "-P", "-m", "toolkit.bench.measure", str(self._work / "step.json")])
        return _median(json.loads(result.read_text()))

    def loop(self) -> float:
        arguments = native_runner.arguments(
            self._step, engine=self.engine, library=str(native_runner.library(PACKAGES, self.engine)),
            model=str(self._artifact), inputs=str(self._work / "inputs"), threads=self._threads,
        )  # fmt: skip
        return _median(json.loads(_run([str(self._program), *arguments])))

    def own(self) -> float:
        result = self._work / "own.json"
        runs = max(20, int(self._seconds / self.loop_seconds))
        command = [sys.executable, "-m", "ai_edge_litert.tools.benchmark_litert_model", f"--model={self._artifact}"]
        command += [f"--signature={self._signature}", f"--num_threads={self._threads}", f"--result_json={result}"]
        _run([*command, f"--num_runs={runs}", f"--warmup_runs={max(20, runs // 4)}"])
        return float(json.loads(result.read_text())["latency"]["median_ms"]) / 1e3


def _run(command: list[str]) -> str:
    environ = dict(os.environ)
    silence.apply(environ)
    environ["PYTHONPATH"] = str(Path(toolkit.__file__).parent.parent)
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise ProgramError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def _median(result: dict[str, Any]) -> float:
    return float(np.median(result["rounds"][0]["inference"]))


def timed(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds per way and round."""
    case.loop_seconds = case.loop()
    found: dict[str, list[float]] = {name: [] for name in case.ways}
    order = list(case.ways)
    for _ in range(rounds):
        for name in order:
            found[name].append(case.ways[name]())
        order.reverse()
    return found


def compared(found: dict[str, list[float]]) -> dict[str, Any]:
    """The harness's median, and those of the others with its ratio to each."""
    columns = {name: [[each] for each in seconds] for name, seconds in found.items()}
    made: dict[str, Any] = {}
    for name, seconds in found.items():
        made[name] = {"p50_ms": round(float(np.median(seconds)) * 1e3, 5)}
        if name != HARNESS:
            made[name]["harness_of_it"] = statistics.compare(columns[HARNESS], columns[name]).as_dict()
    return made


def agreement(case: Case, rounds: int) -> dict[str, Any]:
    """The row of a bundle, without LiteRT's own benchmark if that fails."""
    failed = None
    try:
        found = timed(case, rounds)
    except ProgramError as error:
        if OWN not in case.ways:
            raise
        failed = str(error)
        del case.ways[OWN]
        found = timed(case, rounds)
    return {
        "bundle": case.name, "engine": case.engine, "precision": case.precision, "sizes": case.sizes,
        "programs": compared(found), f"{OWN} failed": failed,
    }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    print(f"{row['bundle']} ({row['engine']} {row['precision']}), {row['sizes']}")
    for name, told in row["programs"].items():
        ratio = told.get("harness_of_it")
        text = f"harness {ratio['ratio']:.4f} of it ({ratio['low']:.4f}-{ratio['high']:.4f})" if ratio else ""
        print(f"    {name:16}{told['p50_ms']:9.4f} ms  {text}")
    if row[f"{OWN} failed"]:
        print(f"    {OWN} failed: {row[f'{OWN} failed']}")


def idle(bundle: Path) -> dict[str, float]:
    """Microseconds of a query of an engine that does nothing: what is told as its inference, and all of the loop."""
    examples, _ = benches.examples_of(benches.read_bundle(bundle), None)
    queries = measure.Queries({"bundle": str(bundle), "examples": examples[:1], "sizes": {"batch": 1}})
    queries.pipeline.watch(lambda encoder: encoder, lambda engine: measure._Timed(lambda inputs: {}, engine))
    told: list[float] = []
    began = time.perf_counter()
    for _ in range(IDLE_QUERIES):
        told.append(queries.run(0)[1])
    whole = time.perf_counter() - began
    return {"inference_us": float(np.median(told)) * 1e6, "query_us": whole / IDLE_QUERIES * 1e6}


def nothing_to_compute(program: Path, folder: Path, engine: str, rounds: int) -> dict[str, Any]:
    """Microseconds of a few additions of eight numbers, in Python's engine and in the loop."""
    module = kernels.get(engine)
    model = folder / f"{engine}{module.SUFFIX}"
    inputs = module.write(kernels.launches(engine)[1], model, 0)
    native_runner.write_inputs(folder / engine, engine, model, [inputs])
    step = {"what": "times", "rounds": 1, "seconds": 0.2, "queries": 20}
    arguments = native_runner.arguments(
        step, engine=engine, library=str(native_runner.library(PACKAGES, engine)), model=str(model),
        inputs=str(folder / engine), threads=1,
    )  # fmt: skip
    python, loop = [], []
    for _ in range(rounds):
        loaded = engines.get(engine).load(model)
        taken = []
        for _ in range(IDLE_QUERIES // 10):
            began = time.perf_counter()
            loaded.run(inputs)
            taken.append(time.perf_counter() - began)
        loaded.close()
        python.append(float(np.median(taken)) * 1e6)
        loop.append(_median(json.loads(_run([str(program), *arguments]))) * 1e6)
    return {"python_us": float(np.median(python)), "loop_us": float(np.median(loop)), "inputs": len(inputs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    parser.add_argument("--rounds", type=int, default=16, help="an even number from 4")
    parser.add_argument("--seconds", type=float, default=1.0, help="of every program in every round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "native_agreement.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        program = native_runner.build(Path(work) / "native_runner", "g++")
        rows = []
        for number, bundle in enumerate(given.bundles):
            folder = Path(work) / str(number)
            folder.mkdir()
            rows.append(agreement(Case(bundle, program, folder, given.seconds, given.threads), given.rounds))
            show(rows[-1])
        overhead = {
            "engine that does nothing": idle(given.bundles[0]),
            "nothing to compute": {
                engine: nothing_to_compute(program, Path(work), engine, 5) for engine in native_runner.ENGINES
            },
        }
    print(json.dumps(overhead, indent=1))
    options = f"--rounds {given.rounds} --seconds {given.seconds:g} --threads {given.threads}"
    record = {
        "command": f"python benchmarks/native_agreement.py BUNDLE... {options}",
        "kind": "measured",
        "device": local.describe(),
        "versions": library_versions(LIBRARIES),
        "protocol": f"batch 1, {given.threads} thread, {given.rounds} rounds of a fresh process of each program, of "
        f"{given.seconds:g} s each, in an order that is turned around every round; ratios of the processes' medians",
        "rows": rows,
        "overhead": overhead,
    }
    write_json(given.output, record)


if __name__ == "__main__":
    main()
