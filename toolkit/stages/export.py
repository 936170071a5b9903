"""`export`: a checkpoint → a float artifact for one engine's format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from toolkit import export as formats
from toolkit import tasks
from toolkit.stages import Context
from toolkit.storage import write_json
from toolkit.tasks import lengths as input_lengths
from toolkit.tasks.task import SPLITS

VERSION = 10
LIBRARIES = formats.EXPORTING


class Parameters(BaseModel):
    """The format and what it depends on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str  # one of toolkit/export
    lengths: list[int] | None = None  # input lengths of a fixed-shape format; None: chosen from the data
    most_lengths: int = input_lengths.MOST_BUCKETS  # how many may be chosen
    encoding: dict[str, Any] = {}  # settings of the encoder, from which shapes and lengths follow
    opset: int | None = None  # highest ONNX opset that the engine takes
    avoid: list[str] = []  # ONNX operators that it has not, although its opset does
    fix: dict[str, int] = {}  # sizes of open axes of an ONNX file, by name
    ort_fusions: bool = False  # contrib operators that only ONNX Runtime has


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write the model file, `artifact.json` and what the encoder is made from to `output`. Raises InputError."""
    if parameters.format == "litert" and parameters.lengths is None:
        parameters = parameters.model_copy(update={"lengths": _lengths(source, parameters, context)})
    form = formats.get(parameters.format)
    if (source / "artifact.json").is_file():  # a model that came as a file of this or another format
        artifact = form.adopt(source, output, parameters, context)
    else:
        artifact = form.export(source, output, parameters, context)
    write_json(output / "artifact.json", artifact)
    shutil.copy(source / "config.json", output / "config.json")
    tasks.get(context.task).copy_files(source, output, parameters.encoding)
    return {
        key: artifact[key] for key in ("precision", "size_bytes", "operators", "slimmed", "raised") if key in artifact
    }


def _lengths(source: Path, parameters: Parameters, context: Context) -> list[int] | None:
    """The input lengths that waste least padding on the prepared examples, by the checkpoint's own tokenizer."""
    if context.data is None:
        return None
    task = tasks.get(context.task)
    examples = [each for split in SPLITS for each in task.read_examples(context.data, split)]
    return task.lengths(source, parameters.encoding, examples, parameters.most_lengths)
