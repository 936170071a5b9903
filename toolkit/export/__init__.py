"""Export formats: checkpoint → artifact. One file each, with the same few names.

    METHODS                                                     engine → methods of quantization that it can run
    export(checkpoint, output, parameters, context) -> dict     the float artifact and its description
    adopt(source, output, parameters, context) -> dict          the same of a model that came as a file
    describe(path, precision, engine) -> dict                   the description of a file, from itself alone
    layers(source, artifact) -> dict                            its layers that can be quantized, and their bytes
    quantize(source, output, artifact, parameters, inputs)      the same in fewer bits: its description, and a report

The description is `artifact.json`: format, engine, path, precision, tensor names/dtypes/shapes, input lengths, the
minimum runtime versions, operators. `parameters` are those of the stage, `inputs` calibration examples.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from toolkit import engines
from toolkit.engines import Arrays
from toolkit.errors import InputError


class FormatModule(Protocol):
    """What every file of this folder offers."""

    METHODS: dict[str, tuple[str, ...]]

    def export(self, checkpoint: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]: ...

    def adopt(self, source: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]: ...

    def describe(self, path: Path, precision: str, engine: str) -> dict[str, Any]: ...

    def layers(self, source: Path, artifact: dict[str, Any]) -> dict[str, int]: ...

    def quantize(
        self, source: Path, output: Path, artifact: dict[str, Any], parameters: Any, inputs: Sequence[Arrays]
    ) -> tuple[dict[str, Any], dict[str, Any]]: ...


@dataclass(frozen=True)
class Kind:
    """What is known of a format without importing it."""

    exporting: tuple[str, ...]  # packages whose versions an export depends on
    quantizing: tuple[str, ...]  # and a quantization
    effort: int  # how long an export takes beside the others: the highest begins first
    from_onnx: bool = False  # a model that came as an ONNX file can be written in it
    own_calibration: tuple[str, ...] | None = None  # its quantizer finds the ranges itself, in these ways


# Adding a format: one file in this folder and one entry here.
KINDS: dict[str, Kind] = {
    "onnx": Kind(
        exporting=("torch", "transformers", "onnx", "onnx-ir", "onnxscript"),
        quantizing=("onnx", "onnxruntime"),
        effort=0,
        from_onnx=True,
    ),
    "litert": Kind(
        exporting=("torch", "transformers", "litert-torch", "litert-converter", "ai-edge-litert"),
        quantizing=("ai-edge-quantizer", "ai-edge-litert", "tflite-micro"),
        effort=2,
    ),
    "openvino": Kind(
        exporting=("torch", "transformers", "onnx", "openvino"),
        quantizing=("openvino", "nncf"),
        effort=1,
        from_onnx=True,
        own_calibration=("min-max", "percentile"),
    ),
    "executorch": Kind(
        exporting=("torch", "transformers", "executorch", "torchao"),
        quantizing=("torch", "executorch", "torchao"),
        effort=3,
    ),
}
EXPORTING = tuple(dict.fromkeys(package for kind in KINDS.values() for package in kind.exporting))
QUANTIZING = tuple(dict.fromkeys(package for kind in KINDS.values() for package in kind.quantizing))
OLDEST_OPSET = 13  # of ONNX: the first with a scale per channel, and with the axes of ReduceSum as an input
# Methods whose ranges of activations come from examples beforehand.
STATIC = ("static-int8", "integer-int8", "int16-activations")
INTEGER = "integer-int8"  # the one that leaves no float in a file
NO_INTEGER_TEXTS = (
    "a text encoder masks padding by adding the lowest float there is: a scale of int8 that holds it has no step left "
    "for anything else"
)


def get(name: str) -> FormatModule:
    """The format module called `name`. Raises InputError for an unknown name."""
    if name not in KINDS:
        raise InputError(f"Unknown format '{name}'; known: {', '.join(KINDS)}.")
    return cast(FormatModule, importlib.import_module(f"toolkit.export.{name}"))


def settings(
    engine: str,
    *,
    lengths: Sequence[int] | None = None,
    opset: int | None = None,
    fix: Mapping[str, int] | None = None,
    avoid: Sequence[str] = (),
) -> dict[str, Any]:
    """The parameters of the stage `export` for an engine, of what its format has any use for: the input `lengths` of a
    file of fixed shapes; for an ONNX file the highest `opset`, the sizes of axes to `fix`, operators to `avoid`."""
    form = engines.FORMAT_OF[engine]
    parameters: dict[str, Any] = {"format": form}
    if form == "litert":
        parameters["lengths"] = None if lengths is None else sorted(set(lengths))
    elif form == "onnx":
        parameters |= {"ort_fusions": engine == "onnxruntime", "opset": opset}
        parameters |= {name: given for name, given in (("fix", dict(fix or {})), ("avoid", list(avoid))) if given}
    return parameters


def model_files(artifact: Mapping[str, Any]) -> list[str]:
    """The names of an artifact's files that are the model: one, and where it is too large for one, its weights."""
    return [str(artifact["path"]), *artifact.get("data_files", ())]


def copy_rest(source: Path, output: Path, artifact: Mapping[str, Any]) -> None:
    """Copy what lies beside a model in its artifact folder, from which its encoder is made; not the `source_files`,
    which a format keeps beside a float artifact for what is made of it."""
    for path in source.iterdir():
        if path.name not in (*model_files(artifact), *artifact.get("source_files", ()), "artifact.json"):
            shutil.copy(path, output / path.name)


def check_method(form: str, engine: str, method: str, known: Mapping[str, Sequence[str]]) -> None:
    """Refuse a method that a format has not, or not for this engine. Raises InputError."""
    if method not in known[engine]:
        raise InputError(
            f"{form} files for {engine} cannot be quantized by '{method}'; known: {', '.join(known[engine])}."
        )


def check_calibration(form: str, method: str, calibration: str) -> None:
    """Refuse a way to find ranges that a format's own tool has not. Raises InputError."""
    known = KINDS[form].own_calibration
    if known is not None and method in STATIC and calibration not in known:
        raise InputError(
            f"--calibration {calibration}: the ranges of {form} files are found by its own quantizer, which knows "
            f"{' and '.join(known)}."
        )


def chosen_layers(tables: Mapping[str, bool], parameters: Any) -> set[str]:
    """The names of the layers to quantize: all but those of `parameters.keep`, and the embedding tables only if
    `parameters.embeddings`. `tables` says of every layer whether it is such a table. Raises InputError."""
    unknown = [name for name in parameters.keep if name not in tables]
    if unknown:
        raise InputError(f"There is no layer '{unknown[0]}' to keep in float; the layers are: {', '.join(tables)}.")
    return {
        name for name, table in tables.items() if name not in parameters.keep and (parameters.embeddings or not table)
    }


def check_integer(method: str, inputs: Iterable[str]) -> None:
    """Refuse to quantize a text encoder in full; `inputs` are the names of the model's. Raises InputError."""
    if method == INTEGER and "input_ids" in inputs:
        raise InputError(f"{INTEGER} is for images and tables: {NO_INTEGER_TEXTS}. static-int8 keeps that in float.")
