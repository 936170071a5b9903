"""`sensitivity`: what each layer of an artifact costs when it alone is quantized, and which should stay in float.

Measured through the artifact's engine on validation and training examples: the evaluation split is what the gates
measure on, so nothing is chosen by it. The score of a few hundred examples moves in steps; the Kullback-Leibler
divergence of the answers from the float artifact's tells layers apart that the score does not.

Output: `sensitivity.json` and `sensitivity.svg`, a row per layer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from toolkit import answers, plot, tasks
from toolkit import export as formats
from toolkit.errors import InputError
from toolkit.gates import score
from toolkit.stages import Context, evaluate, quantize
from toolkit.storage import write_atomic, write_json

VERSION = 2
LIBRARIES = quantize.LIBRARIES


class Parameters(BaseModel):
    """How the layers are quantized, and the score that the combination must reach (None: nothing is chosen)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantize: quantize.Parameters
    engine: str
    encoding: dict[str, Any]
    examples: int = Field(200, ge=1)
    min_score: str | None = None


def ranked(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Layers in the order in which they should go back to float: those first that change the answers the most for
    the bytes that they save."""
    worth = {row["layer"]: row["divergence"] / max(row["bytes_saved"], 1) for row in rows}
    return sorted(worth, key=lambda name: (-worth[name], name))


def choose(order: Sequence[str], floor: float, measure: Callable[[Sequence[str]], float]) -> tuple[list[str], float]:
    """The shortest beginning of `order` that kept in float reaches the score `floor`, and the score that it reaches.

    Every combination is measured by `measure(kept)`: what layers cost together is not the sum of what they cost alone.
    The search doubles the number of layers until the floor is reached, then halves the gap.
    """
    reached: dict[int, float] = {}

    def holds(count: int) -> bool:
        if count not in reached:
            reached[count] = measure(order[:count])
        return reached[count] >= floor

    low, high = -1, 0  # `low` does not hold
    while not holds(high) and high < len(order):
        low, high = high, min(max(1, 2 * high), len(order))
    while high - low > 1 and reached[high] >= floor:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return list(order[:high]), reached[high]


class _Bench:
    """A float artifact, the examples that it is measured on, and its answers to them."""

    def __init__(self, source: Path, parameters: Parameters, context: Context) -> None:
        self.source, self.parameters, self.context = source, parameters, context
        self.artifact = json.loads((source / "artifact.json").read_text(encoding="utf-8"))
        self.format = formats.get(self.artifact["format"])
        self.task = tasks.get(context.task)
        if context.data is None:
            raise InputError("Sensitivity is measured on labelled examples; name some with --data.")
        examples = [e for split in ("validation", "train") for e in self.task.read_examples(context.data, split)]
        if not examples:
            raise InputError("The prepared data is for evaluation only: there is nothing to measure sensitivity on.")
        self.examples = examples[: parameters.examples]
        self.names = json.loads((context.data / "labels.json").read_text(encoding="utf-8"))
        self.inputs, self.warnings = quantize.calibration_inputs(source, self.artifact, parameters.quantize, context)
        self.before = self.answer(source)

    def answer(self, folder: Path) -> NDArray[np.float32]:
        quiet = Context(self.context.task, threads=self.context.threads)
        inputs = [example.input for example in self.examples]
        return evaluate.artifact_answers(folder, self.parameters.engine, inputs, self.parameters.encoding, quiet)

    def score(self, answers: NDArray[Any]) -> float:
        return float(self.task.metrics(answers, self.examples, self.names)["score"])

    def divergence(self, said: NDArray[Any]) -> float:
        """How far answers are from the float artifact's, on average."""
        module = answers.get(self.task.ANSWERS)
        return module.divergence(module.targets(self.before), said)

    def quantized(self, keep: Sequence[str]) -> tuple[NDArray[np.float32], int]:
        """(answers, bytes of the file) with some layers in float."""
        given = self.parameters.quantize.model_copy(update={"keep": list(keep)})
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            formats.copy_rest(self.source, folder, self.artifact)
            made, _ = self.format.quantize(self.source, folder, self.artifact, given, self.inputs)
            write_json(folder / "artifact.json", made)
            return self.answer(folder), int(made["size_bytes"])


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Quantize and measure every layer alone; choose those that stay in float. Raises InputError."""
    bench = _Bench(source, parameters, context)
    listed = list(bench.format.layers(source, bench.artifact))
    fixed = list(parameters.quantize.keep)
    names = [name for name in listed if name not in fixed]
    float_score = bench.score(bench.before)
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        context.progress(index, len(names), f"{name} alone")
        said, size = bench.quantized([other for other in listed if other != name])
        own = bench.score(said)
        rows.append(
            {
                "layer": name,
                "score": own,
                "score_change": own - float_score,
                "divergence": bench.divergence(said),
                "bytes_saved": int(bench.artifact["size_bytes"]) - size,
            }
        )
    rows = [row for row in rows if row["bytes_saved"] > 0]  # tables, where they are left out, and what is too small
    report: dict[str, Any] = {
        "method": parameters.quantize.method,
        "examples": len(bench.examples),
        "float_score": float_score,
        "layers": rows,
        "warnings": bench.warnings,
    }
    if parameters.min_score is not None:
        floor = score.floor(parameters.min_score, float_score)

        def measure(keep: Sequence[str]) -> float:
            context.progress(len(names), len(names), f"{len(keep)} layers in float")
            return bench.score(bench.quantized([*fixed, *keep])[0])

        kept, reached = choose(ranked(rows), floor, measure)
        report |= {"keep": [*fixed, *kept], "floor": floor, "score": reached}
    write_json(output / "sensitivity.json", report)
    write_atomic(output / "sensitivity.svg", _plot(report))
    return report


def _plot(report: dict[str, Any]) -> str:
    rows = sorted(report["layers"], key=lambda row: -row["divergence"])
    legend = (
        f"Bars: divergence of the answers, nats, on {report['examples']} examples. Beside them: change of the score."
    )
    if "keep" in report:
        legend += " Orange: stays in float."
    return plot.bars(
        f"Sensitivity to {report['method']}, one layer at a time",
        [(row["layer"], row["divergence"], f"{row['score_change']:+.3f}") for row in rows],
        legend=legend,
        marked=report.get("keep", ()),
    )
