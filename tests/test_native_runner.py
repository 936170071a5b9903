"""The program for devices without Python, built for this machine: what it gives and what it refuses. How it does on an
Arm CPU is in test_emulator.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit import engines, kernels
from toolkit.bench import assembly
from toolkit.devices import native_runner
from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError
from toolkit.export import flatbuffer
from toolkit.kernels import Kernel

PACKAGES = Path(np.__file__).parent.parent
KERNELS = {
    "onnxruntime fp32": Kernel("gemm", "MatMul", "fp32", (4, 8, 16), 2),
    "onnxruntime int8": Kernel("gemm", "DynamicQuantizeMatMul", "int8", (4, 8, 16), 2),
    "litert fp32": Kernel("gemm", "FULLY_CONNECTED", "fp32", (4, 8, 16), 2),
    "litert int8": Kernel("pointwise", "CONV_2D", "int8", (8, 6), 2),  # with inputs and outputs in int8
}
MEMORY = {"rss_bytes", "peak_rss_bytes", "pss_bytes", "private_dirty_bytes"}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("this machine has no g++")
    path = tmp_path_factory.mktemp("program") / "native_runner"
    return native_runner.build(path, "g++", ["-O0", "-Wall", "-Wextra", "-Werror"])


Case = tuple[str, Path, list[Arrays]]  # an engine, a file for it and three examples


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    made: dict[str, Case] = {}
    for name, kernel in KERNELS.items():
        engine = name.split()[0]
        module = kernels.get(engine)
        path = tmp_path_factory.mktemp("kernel") / f"model{module.SUFFIX}"
        first = module.write(kernel, path, 0)
        made[name] = engine, path, [first, *({k: np.roll(v, shift) for k, v in first.items()} for shift in (1, 2))]
    return made


@pytest.fixture(params=KERNELS)
def case(request: Any, cases: dict[str, Case]) -> Case:
    return cases[request.param]


def call(program: Path, step: dict[str, Any], case: Case, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    engine, model, examples = case
    if not (folder / "inputs").exists():
        native_runner.write_inputs(folder / "inputs", engine, model, examples)
    (folder / "answers").mkdir(exist_ok=True)
    arguments = native_runner.arguments(
        step, engine=engine, library=str(native_runner.library(PACKAGES, engine)), model=str(model),
        inputs=str(folder / "inputs"), threads=1, answers=str(folder / "answers"),
    )  # fmt: skip
    return subprocess.run([str(program), *arguments, *more], capture_output=True, text=True, timeout=60, check=False)


def result(*arguments: Any) -> Any:
    done = call(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_answers_are_those_of_the_engine(program: Path, case: Case, tmp_path: Path) -> None:
    engine, model, examples = case
    assert result(program, {"what": "answers"}, case, tmp_path)["examples"] == len(examples)
    loaded = engines.get(engine).load(model)
    said = native_runner.read_answers(tmp_path / "answers", engine, model)
    for found, expected in zip(said, map(loaded.run, examples), strict=True):
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            assert found[name].dtype == values.dtype
            np.testing.assert_array_equal(found[name], values)
    assert not np.array_equal(next(iter(said[0].values())), next(iter(said[1].values())))


def test_a_start_has_the_shape_of_one_in_python(program: Path, case: Case, tmp_path: Path) -> None:
    spawned = time.time()
    found = result(program, {"what": "start"}, case, tmp_path, "--spawned", f"{spawned:.6f}")
    assert 0 < found["process_s"] < time.time() - spawned
    assert (found["load_s"] > 0, found["first_inference_s"] > 0) == (True, True)
    memory = found["memory"]
    for moment in ("before_load", "after_load", "after_first_inference", "running"):
        assert set(memory[moment]) == MEMORY
    assert memory["before_load"]["rss_bytes"] < memory["after_load"]["rss_bytes"] <= memory["peak_rss_bytes"]
    assert (found["engine"]["engine"], found["engine"]["threads"]) == (case[0], 1)
    assert assembly.start_of([found]).load_ms > 0
    assert assembly.memory_of([found]).model_delta_bytes > 0
    # Without the moment from outside the kernel says when the process began.
    assert 0 <= result(program, {"what": "start"}, case, tmp_path)["process_s"] < 60


def test_times_are_of_rounds(program: Path, case: Case, tmp_path: Path) -> None:
    step = {"what": "times", "rounds": 3, "seconds": 0.01, "queries": 31, "seed": 5}
    found = result(program, step, case, tmp_path)
    assert len(found["rounds"]) == len(found["warm_up_runs"]) == 3
    assert all(len(each["inference"]) >= 31 / 3 and min(each["inference"]) > 0 for each in found["rounds"])
    assert isinstance(found["stable"], bool)
    # Three examples, two windows of eight or nine runs at the least to see that times are stable.
    assert min(found["warm_up_runs"]) >= 3 + 3 * 6


def test_files_with_a_signature_for_each_length(program: Path, tmp_path: Path) -> None:
    kernel = KERNELS["litert fp32"]
    model = two_lengths(tmp_path, kernel)
    inputs = [{"x0": np.random.default_rng(0).normal(size=(4, length)).astype(np.float32)} for length in (8, 12, 8)]
    case = ("litert", model, inputs)
    result(program, {"what": "answers"}, case, tmp_path)
    loaded = engines.get("litert").load(model)
    for found, given in zip(native_runner.read_answers(tmp_path / "answers", "litert", model), inputs, strict=True):
        for name, values in loaded.run(given).items():
            np.testing.assert_array_equal(found[name], values)


def two_lengths(folder: Path, kernel: Kernel) -> Path:
    """Kernels for rows of 8 and of 12 values in one file, each with its signature."""
    models = []
    for length in (8, 12):
        path = folder / f"{length}.tflite"
        kernels.get("litert").write(Kernel(kernel.work, kernel.kind, kernel.dtype, (4, length, 16), 2), path, length)
        models.append(flatbuffer.read(path))
    first, second = models
    for tensor in second.subgraphs[0].tensors:
        tensor.buffer += len(first.buffers)
    second.signatureDefs[0].subgraphIndex = 1
    first.buffers += second.buffers
    first.subgraphs += second.subgraphs
    first.signatureDefs += second.signatureDefs
    for entry, length in zip(first.signatureDefs, (8, 12), strict=True):
        entry.signatureKey = f"length_{length}".encode()
    flatbuffer.write(folder / "both.tflite", first)
    return folder / "both.tflite"


@pytest.mark.parametrize("engine", native_runner.ENGINES)
def test_what_is_wrong_is_one_line(engine: str, program: Path, cases: dict[str, Case], tmp_path: Path) -> None:
    case = cases[f"{engine} fp32"]

    def said(*more: str, step: str = "answers") -> str:
        done = call(program, {"what": step}, case, tmp_path, *more)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        return line

    assert "the step is start, times or answers, not 'count'" in said(step="count")
    assert "there is no option --speed" in said("--speed", "9")
    assert "'many' is no value of --threads" in said("--threads", "many")
    assert "--engine is onnxruntime or litert, not 'torch'" in said("--engine", "torch")
    assert "the runtime cannot be loaded" in said("--library", str(tmp_path / "none.so"))
    assert "the runtime has no " in said("--library", "libm.so.6")
    assert "cannot run on the cores 999" in said("--cores", "999")
    (tmp_path / "broken").write_bytes(b"no model")
    assert engine in said("--model", str(tmp_path / "broken"))
    assert "holds no examples" in said("--inputs", str(tmp_path))
    assert "cannot be written" in said("--answers", str(tmp_path / "none"))
    file = tmp_path / "inputs" / "0-0.npy"
    np.save(file, np.zeros((1, 1), np.float32))
    assert re.search("another type or shape|onnxruntime .*invalid dimensions", said())
    file.write_bytes(file.read_bytes()[:-2])
    assert "ends too early" in said()


def test_a_time_limit_ends_it(program: Path, cases: dict[str, Case], tmp_path: Path) -> None:
    step = {"what": "times", "rounds": 1, "seconds": 600, "timeout_seconds": 1}
    assert call(program, step, cases["litert fp32"], tmp_path).returncode == -14  # SIGALRM


def test_progress_is_told(program: Path, cases: dict[str, Case], tmp_path: Path) -> None:
    done = call(program, {"what": "times", "rounds": 2, "seconds": 0.01}, cases["litert fp32"], tmp_path)
    told = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert (told[-1]["done"], told[-1]["total"], told[-1]["text"]) == (2, 2, "done")


def test_it_is_built_by_compilers_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match="There is no compiler no-such-compiler"):
        native_runner.build(tmp_path / "out", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependencyError, match=r"apt-get install g\+\+-aarch64-linux-gnu"):
        native_runner.build(tmp_path / "out")


def test_engines_that_it_does_not_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="onnxruntime, litert can be measured, and not openvino"):
        native_runner.library(tmp_path, "openvino")
    with pytest.raises(MissingDependencyError, match="holds no litert"):
        native_runner.library(tmp_path, "litert")
