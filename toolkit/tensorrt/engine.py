"""The engine of a chosen candidate: built here where TensorRT-RTX can, left to the device everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.errors import ToolkitError, missing_extra
from toolkit.runner import Finished, Runner
from toolkit.storage import copy_folder, sha256_file
from toolkit.target import Target
from toolkit.tensorrt import builder, preflight
from toolkit.tensorrt import recipe as recipes

ON_DEVICE = (
    "built on the device, by `toolkit build BUNDLE --device ssh://USER@HOST`, or by build_engine.py in the bundle there"
)


@dataclass(frozen=True)
class BuildFiles:
    """What a bundle for TensorRT has beside its ONNX file, and what to say of the engine."""

    target: Target
    recipe: dict[str, Any]
    built: Finished | None
    detail: str

    def write(self, folder: Path) -> None:
        """Write recipe and scripts, and the engine if there is one."""
        recipes.write(folder, self.recipe, self.target)
        if self.built is not None:
            copy_folder(self.built.output, folder)

    def as_dict(self) -> dict[str, Any]:
        """For the report and the manifest."""
        report = self.built.report if self.built else {}
        keys = ("engine_bytes", "engine_sha256", "built_from", "typing")
        return {
            "built": self.built is not None,
            "detail": self.detail,
            "path": f"{recipes.ENGINES}/{report['engine']}" if report else None,
            **{key: report.get(key) for key in keys},
        }


def prepare(
    runner: Runner, source: Finished, artifact: Mapping[str, Any], data_report: Mapping[str, Any], target: Target
) -> BuildFiles:
    """The build recipe of an artifact, and its engine if TensorRT-RTX builds for the target and is installed. That it
    does not is no failure: the device can still build, and the detail says why."""
    recipe = recipes.make(source.output / artifact["path"], artifact, data_report, target)
    if not recipes.builds_offline(target):
        return BuildFiles(target, recipe, None, ON_DEVICE)
    capability = recipe["compute_capability"]
    if not builder.rtx_is_available():
        line = missing_extra(preflight.PACKAGE, "tensorrt", "Building an engine without the GPU")
        return BuildFiles(target, recipe, None, f"not built here: {line}")
    try:
        built = runner.run(
            "build",
            source.output,
            {"recipe": recipe, "script_sha256": sha256_file(recipes.SCRIPT)},
            title=f"build the engine for compute capability {capability}",
            reason="TensorRT-RTX builds it without the GPU; it starts there without a build",
            inputs={"source": source.sha256},
        )
    except ToolkitError as error:
        return BuildFiles(target, recipe, None, f"not built here: {error}")
    by = f"TensorRT-RTX {built.report['built_from']['version']}"
    return BuildFiles(target, recipe, built, f"built here by {by} for compute capability {capability}; it was not run")
