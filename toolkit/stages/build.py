"""`build`: a typed ONNX file → an engine for an RTX GPU, by TensorRT-RTX, without that GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from toolkit.export import model_files
from toolkit.stages import Context
from toolkit.storage import write_json
from toolkit.tensorrt import builder, preflight
from toolkit.tensorrt import recipe as recipes

VERSION = 2
LIBRARIES = (preflight.PACKAGE,)
_SAID = ("engine", "engine_bytes", "engine_sha256", "built_from", "typing", "on_device", "peak_rss_bytes")


class Parameters(BaseModel):
    """The build recipe (`toolkit.tensorrt.recipe`), and the hash of the script that carries it out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: dict[str, Any]
    script_sha256: str


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Write `engines/KEY.engine` and `KEY.json`, which says what it was built from. Raises RefusedError if TensorRT-RTX
    refuses the model or the GPU."""
    artifact = json.loads((source / "artifact.json").read_text(encoding="utf-8"))
    for name in model_files(artifact):
        shutil.copy(source / name, output / name)
    write_json(output / recipes.FILE_NAME, parameters.recipe)

    def on_line(line: str) -> None:
        context.progress(0, 1, line.partition("build: ")[2])

    known = builder.run(output, ["--runtime", "tensorrt_rtx"], on_line=on_line)
    for name in (*model_files(artifact), recipes.FILE_NAME, f"{recipes.ENGINES}/.lock"):
        (output / name).unlink()
    return {key: known[key] for key in _SAID}
