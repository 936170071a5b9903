"""`quantize`: a float artifact → the same artifact in fewer bits.

- `dynamic-int8`: weights to int8 ahead of time (per output channel), activations to int8 at run time;
- `static-int8`: activations too by ranges that calibration examples give beforehand (`toolkit.ranges`);
- `integer-int8`: the same for everything, so that no float is left; inputs and outputs are integers;
- `int16-activations`: weights to int8, activations to int16 by such ranges;
- `weight-int8`, `weight-int4`: weights alone, the arithmetic in float; in blocks where the format has them;
- `fp16`, `bf16`: half the bits; where the engine has no such arithmetic, weights are stored so and widened.

Embedding tables go to int8 with a scale per row, whatever the integer method.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from toolkit import export as formats
from toolkit import ranges, tasks
from toolkit.calibration import Source, collect, unstable
from toolkit.engines import Arrays
from toolkit.stages import Context, evaluate
from toolkit.storage import write_json

VERSION = 6
LIBRARIES = (*formats.QUANTIZING, "tokenizers")

Method = Literal[
    "dynamic-int8", "static-int8", "integer-int8", "int16-activations", "weight-int8", "weight-int4", "fp16", "bf16"
]


class Parameters(BaseModel):
    """The method, what of the model it covers, and where its calibration examples come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    embeddings: bool = Field(True, description="Whether embedding tables are quantized")
    keep: list[str] = Field([], description="Layers that stay in float")
    block_size: Literal[32, 64, 128] = Field(32, description="Weights that share a scale, where a format has blocks")
    calibration: ranges.Method = "min-max"
    percentile: float = Field(ranges.PERCENTILE, gt=50, le=100)
    scales: Literal["channel", "tensor"] = Field(
        "channel", description="What shares a scale of the weights of LiteRT's fully connected layers and tables"
    )
    io: Literal["int8", "uint8"] = Field("int8", description="Of `integer-int8`: type of the inputs and outputs")
    examples: Source | None = Field(None, description="Of static methods, and of `fp16` if there are some")


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write the quantized model file beside copies of the artifact's other files. Raises InputError."""
    artifact = json.loads((source / "artifact.json").read_text(encoding="utf-8"))
    inputs, warnings = calibration_inputs(source, artifact, parameters, context)
    context.progress(0, 1, f"quantizing by {parameters.method}")
    quantized, found = formats.get(artifact["format"]).quantize(source, output, artifact, parameters, inputs)
    if "overflow" in found and not inputs:
        warnings.append("Nobody looked whether values overflow in half precision: that takes examples, with --data.")
    if found.get("left_in_float"):
        warnings.append(f"Not quantized: {'; '.join(found['left_in_float'])}.")
    if "activations" in found:
        warnings += unstable(found["activations"]["unstable"])
    formats.copy_rest(source, output, artifact)
    write_json(output / "artifact.json", quantized)
    return {
        "method": parameters.method,
        "size_before_bytes": artifact["size_bytes"],
        "size_after_bytes": quantized["size_bytes"],
        "warnings": warnings,
        **found,
    }


def calibration_inputs(
    source: Path, artifact: Mapping[str, Any], parameters: Parameters, context: Context
) -> tuple[list[Arrays], list[str]]:
    """(calibration examples as the artifact's inputs, warnings); none for a method that takes none.

    Half precision takes them where there are some: they show what overflows.
    """
    looks = parameters.method == "fp16" and artifact["format"] == "onnx" and parameters.examples is not None
    if parameters.method not in formats.STATIC and not looks:
        return [], []
    task = tasks.get(context.task)
    examples = parameters.examples or Source()
    context.progress(0, 1, "choosing calibration examples")
    inputs, warnings = collect(examples, source, task, context.data, context.seed)
    names = evaluate.names_of(artifact)
    encoder = task.encoder(source, examples.encoding, inputs=names, lengths=artifact["lengths"])
    return [encoder(each) for each in inputs], warnings
