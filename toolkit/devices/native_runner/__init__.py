"""A program that runs an artifact on a device without Python and tells how long it took: how it is built, what it is
given, what it gives.

    native_runner STEP --engine onnxruntime|litert --library FILE --model FILE --inputs FOLDER [options]

Its source is in this folder; the comment at the head of runner.cc describes the command line in full. It needs the
runtime's shared library, `library` of a folder of Python wheels or libonnxruntime.so and libLiteRt.so of the Android
archives. For a device:

    build(Path("native_runner"), "aarch64-linux-gnu-g++")   or any C++17 compiler, for Android the NDK's clang++
    write_inputs(folder, engine, model, examples)           the encoded examples, to be brought there with the model
    arguments(step, …)                                      what the program is called with for a step of a benchmark
    read_answers(folder, engine, model)                     what it wrote for the step `answers`, brought back

The results of `start` and `times` have the shape of those of `toolkit.bench.measure`, with the inference alone:
examples are encoded here (`toolkit.bench.encoding`). Inputs are written in the types of the file's own inputs, and
answers converted here, so that neither is a part of the times.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import engines
from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError

SOURCES = Path(__file__).parent
ENGINES = ("onnxruntime", "litert")  # that it runs
STEPS = ("start", "times")  # of a benchmark, that it can do
COMPILER = "aarch64-linux-gnu-g++"
_FLAGS = ("-std=c++17", "-O2", "-static-libstdc++", "-static-libgcc")
_LIST = "examples.txt"
_LIBRARIES = {"onnxruntime": "onnxruntime/capi/libonnxruntime.so*", "litert": "ai_edge_litert/libLiteRt.so"}
_TAKEN = ("rounds", "seconds", "queries", "seed")  # of a step


def build(output: Path, compiler: str = COMPILER, flags: Sequence[str] = ()) -> Path:
    """Compile the program. Raises MissingDependencyError if there is no such compiler, InputError if it cannot."""
    command = [compiler, *_FLAGS, *flags, "-o", str(output), *map(str, sorted(SOURCES.glob("*.cc"))), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        hint = " On Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu" if compiler == COMPILER else ""
        raise MissingDependencyError(f"There is no compiler {compiler} for the program of a device.{hint}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[-1:]
        raise InputError(f"{compiler} cannot build the program of a device: {(said or ['it gives no reason'])[0]}")
    return output


def library(packages: Path, engine: str) -> Path:
    """The runtime's library in a folder of installed wheels. Raises MissingDependencyError."""
    found = sorted(packages.glob(_LIBRARIES[_known(engine)]))
    if not found:
        raise MissingDependencyError(f"{packages} holds no {engine}.")
    return found[-1]


def write_inputs(folder: Path, engine: str, model: Path, examples: Sequence[Arrays]) -> None:
    """Write encoded examples into a new folder, as `model` takes them. Raises InputError for examples that it does not
    take."""
    loaded: Any = engines.get(_known(engine)).load(model, 1)
    fed = [loaded.feeds(example) for example in examples]
    loaded.close()
    folder.mkdir()
    lines = []
    for number, (signature, arrays) in enumerate(fed):
        lines.append(f"example\t{signature}")
        for place, (name, array) in enumerate(arrays.items()):
            file = f"{number}-{place}.npy"
            np.save(folder / file, array, allow_pickle=False)
            lines.append(f"tensor\t{name}\t{file}")
    (folder / _LIST).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_answers(folder: Path, engine: str, model: Path) -> list[Arrays]:
    """The answers of the step `answers`, as this toolkit's engine gives them, in the order of the examples."""
    loaded: Any = engines.get(_known(engine)).load(model, 1)
    answers = [loaded.answers(signature, values) for signature, values in _read(folder)]
    loaded.close()
    return answers


def _read(folder: Path) -> Iterator[tuple[str, Arrays]]:
    signature: str | None = None
    values: Arrays = {}
    for line in (folder / _LIST).read_text(encoding="utf-8").splitlines():
        kind, _, rest = line.partition("\t")
        if kind == "example":
            if signature is not None:
                yield signature, values
            signature, values = rest, {}
        else:
            name, _, file = rest.partition("\t")
            values[name] = np.load(folder / file, allow_pickle=False)
    if signature is not None:
        yield signature, values


def arguments(
    step: Mapping[str, Any],
    *,
    engine: str,
    library: str,
    model: str,
    inputs: str,
    threads: int,
    cores: Sequence[int] = (),
    answers: str | None = None,
) -> list[str]:
    """What the program is called with for a step as `toolkit.bench.measure` takes it, or for `{"what": "answers"}`.
    Paths are the device's."""
    made = [step["what"], "--engine", _known(engine), "--library", library, "--model", model, "--inputs", inputs]
    made += ["--threads", str(threads)]
    made += [part for name in _TAKEN if step.get(name) is not None for part in (f"--{name}", str(step[name]))]
    if cores:
        made += ["--cores", ",".join(map(str, cores))]
    if step.get("timeout_seconds"):
        made += ["--timeout", str(max(1, round(step["timeout_seconds"])))]
    return [*made, "--answers", answers] if answers else made


def _known(engine: str) -> str:
    if engine not in ENGINES:
        raise InputError(f"On a device without Python {', '.join(ENGINES)} can be measured, and not {engine}.")
    return engine
