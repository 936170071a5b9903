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
from toolkit.bench import measure, statistics
from toolkit.stages import Context

VERSION = 4
LIBRARIES = ("torch", "transformers", "onnxruntime", "ai-edge-litert")
EXAMPLES = 30
ROUNDS = 6


class Candidate(BaseModel):
    """An artifact folder and the engine that runs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    engine: str
    folder: str


class Parameters(BaseModel):
    """Who is measured, on how many examples, how often. `baseline` is the float checkpoint's name in the result."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    candidates: list[Candidate]
    max_length: int
    examples: int = EXAMPLES
    rounds: int = ROUNDS
    baseline: str = "torch fp32"


def _build(load: Callable[[], engines.Engine], encoder: Any, texts: list[str]) -> Callable[[], measure.Runner]:
    inputs = [encoder(text) for text in texts]

    def loaded() -> measure.Runner:
        engine = load()
        return measure.Runner(lambda index: engine.run(inputs[index]), engine.close)

    return loaded


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """`source` is the float checkpoint. Writes `times.json`: seconds per candidate, round and example."""
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it measures
    task = tasks.get(context.task)
    examples = task.read_examples(context.data, "eval")
    generator = np.random.default_rng(context.seed)
    chosen = generator.permutation(len(examples))[: parameters.examples]
    texts = sorted((examples[i].text for i in chosen), key=len)

    builds: dict[str, Callable[[], measure.Runner]] = {}
    for candidate in parameters.candidates:
        folder = Path(candidate.folder)
        artifact = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
        encoder = task.encoder(
            folder,
            inputs=[tensor["name"] for tensor in artifact["inputs"]],
            max_length=parameters.max_length,
            lengths=artifact["lengths"],
        )
        load = partial(engines.get(candidate.engine).load, folder / artifact["path"], context.threads)
        builds[candidate.name] = _build(load, encoder, texts)

    from toolkit.engines import torch as torch_engine

    load_baseline = partial(torch_engine.load, source, context.threads)
    config_inputs = torch_engine.input_names(load_baseline().model, task)
    encoder = task.encoder(source, inputs=config_inputs, max_length=parameters.max_length)
    builds[parameters.baseline] = _build(load_baseline, encoder, texts)

    def progress(done: int, total: int) -> None:
        context.progress(done, total, f"timing {len(builds)} builds in turn")

    times = measure.interleave(builds, len(texts), parameters.rounds, context.seed, progress)
    (output / "times.json").write_text(json.dumps(times))
    medians = {name: measure.per_example(values) for name, values in times.items()}
    baseline = times[parameters.baseline]
    return {
        "threads": context.threads,
        "examples": len(texts),
        "rounds": parameters.rounds,
        "latency": {name: statistics.summarize(values) for name, values in medians.items()},
        "against_baseline": {
            name: statistics.compare(values, baseline, context.seed).as_dict()
            for name, values in times.items()
            if name != parameters.baseline
        },
    }
