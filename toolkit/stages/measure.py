"""`measure`: all candidates and the float checkpoint against each other, interleaved, over real examples.

Inputs are tokenized beforehand: this compares engines. Every round loads all of them anew. Latencies are per example
at batch 1, the median of the rounds; a ratio comes with its interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from toolkit import engines, tasks
from toolkit.bench import loops, statistics
from toolkit.stages import Context, evaluate

VERSION = 7
LIBRARIES = engines.DISTRIBUTIONS
EXAMPLES = 30
ROUNDS = 6


class Candidate(BaseModel):
    """An artifact folder and the engine that runs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    engine: str
    folder: str


class Parameters(BaseModel):
    """Who is measured, on how many examples, how often. `baseline` is the float checkpoint's name in the result;
    None: it is not measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: list[Candidate]
    encoding: dict[str, Any]
    examples: int = EXAMPLES
    rounds: int = ROUNDS
    baseline: str | None = "torch fp32"


def _build(
    load: Callable[[], engines.Engine], encode: Callable[[engines.Engine], list[engines.Arrays]]
) -> Callable[[], loops.Runner]:
    """Loads a build; its inputs are encoded once, for it knows which it takes."""
    inputs: list[engines.Arrays] = []

    def loaded() -> loops.Runner:
        engine = load()
        if not inputs:
            inputs.extend(encode(engine))
        return loops.Runner(lambda index: engine.run(inputs[index]), engine.close)

    return loaded


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """`source` is the float checkpoint, or the folder of an ONNX file. Writes `times.json`: seconds per candidate,
    round and example."""
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it measures
    task = tasks.get(context.task)
    examples = task.read_examples(context.data, "eval")
    generator = np.random.default_rng(context.seed)
    drawn = [examples[i].input for i in generator.permutation(len(examples))[: parameters.examples]]
    sizes = task.sizes(drawn, source, parameters.encoding)
    chosen = [drawn[i] for i in sorted(range(len(drawn)), key=lambda i: sizes[i])]

    def artifact(folder: Path, engine: str | None) -> Callable[[], loops.Runner]:
        described = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        load = partial(engines.get(engine or described["engine"]).load, folder / described["path"], context.threads)
        return _build(load, partial(encode, folder, described["lengths"], evaluate.names_of(described)))

    def encode(folder: Path, lengths: list[int] | None, names: list[str], engine: Any) -> list[engines.Arrays]:
        encoder = task.encoder(folder, parameters.encoding, inputs=names or engine.input_names, lengths=lengths)
        return [encoder(each) for each in chosen]

    builds: dict[str, Callable[[], loops.Runner]] = {}
    for candidate in parameters.candidates:
        builds[candidate.name] = artifact(Path(candidate.folder), candidate.engine)
    if parameters.baseline is None:
        pass
    elif (source / "artifact.json").is_file():
        builds[parameters.baseline] = artifact(source, None)
    else:
        from toolkit.engines.torch import TorchEngine

        load_baseline = partial(TorchEngine, source, task, context.threads)
        builds[parameters.baseline] = _build(load_baseline, partial(encode, source, None, []))

    def progress(done: int, total: int) -> None:
        context.progress(done, total, f"timing {len(builds)} builds in turn")

    times = loops.interleave(builds, len(chosen), parameters.rounds, context.seed, progress)
    (output / "times.json").write_text(json.dumps(times))
    medians = {name: loops.per_example(values) for name, values in times.items()}
    return {
        "threads": context.threads,
        "examples": len(chosen),
        "rounds": parameters.rounds,
        "baseline": parameters.baseline,
        "latency": {name: statistics.summarize(values) for name, values in medians.items()},
        "against_baseline": {
            name: statistics.compare(values, times[parameters.baseline], context.seed).as_dict()
            for name, values in times.items()
            if parameters.baseline is not None and name != parameters.baseline
        },
    }
