"""Tensors: a model of which nobody says what it does. Its examples are .npz files of arrays by the names of its inputs.

An .npz file may hold the expected output, too, by the output's name; where none does, what the model as it was given
answers is the truth, and the score says how much of it is left.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import engines
from toolkit.answers.tensors import relative_error, sqnr_db
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime import tensors as runtime
from toolkit.runtime.encoder import SPEC, Encoder
from toolkit.storage import read_json
from toolkit.tasks.task import Example, Preparation, Task, split

_EXAMPLES, _TRUTH = "examples", "truth"


class Tensors(Task):
    """Arrays in, arrays out."""

    NAME = "tensors"
    SCORE_NAME = "fidelity"
    ANSWERS = "tensors"
    MODEL_CLASS = ""
    HEAD = ""
    FILES = (SPEC,)
    INPUT_NAMES = ()

    # Data

    def check_data(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"Data {path} does not exist.")
        if not _files(path):
            raise InputError(f"{path} holds no {runtime.SUFFIX} file; an example is one, with an array per input.")

    def prepare(self, source: Path, output: Path, parameters: Preparation, context: Any) -> dict[str, Any]:
        artifact = read_json(source / "artifact.json")
        encoder = runtime.TensorEncoder(read_json(source / SPEC))
        engine = engines.get(artifact["engine"]).load(source / artifact["path"], context.threads)
        answer = str(artifact["outputs"][0]["name"])
        files = _files(Path(parameters.data))
        (output / _EXAMPLES).mkdir()
        (output / _TRUTH).mkdir()
        examples, known = [], 0
        for number, path in enumerate(files):
            try:
                stored = runtime.read_arrays(path)
                arrays = encoder(stored)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
            known += answer in stored
            truth = stored[answer] if answer in stored else engine.run(arrays)[answer]
            name = f"{number:05d}"
            _write_arrays(output / _EXAMPLES / f"{name}{runtime.SUFFIX}", arrays)
            np.save(output / _TRUTH / f"{name}.npy", np.asarray(truth, dtype=np.float32))
            examples.append(Example(f"{_EXAMPLES}/{name}{runtime.SUFFIX}", [f"{_TRUTH}/{name}.npy", int(truth.size)]))
            context.progress(number + 1, len(files), "reading examples")
        engine.close()
        if 0 < known < len(files):
            raise InputError(
                f"{parameters.data}: {known} of {len(files)} files hold the expected output '{answer}'; give it in all "
                "of them, or in none."
            )
        report = {
            "rows": len(files),
            "used": len(examples),
            "dropped": {},
            "truth": "expected outputs" if known else "the model as it was given",
            "encoding": {},
            "lengths": None,
        }
        return self.write_prepared(
            output, split(examples, ["example"], parameters, context.seed, [0] * len(examples)), [], report
        )

    def read_examples(self, folder: Path, split: str) -> list[Example]:
        return [
            Example(str(folder / each.input), [str(folder / each.label[0]), each.label[1]])
            for each in super().read_examples(folder, split)
        ]

    def unlabeled(self, path: Path, column: str | None) -> Iterator[Any]:
        yield from map(str, _files(path))

    def examples_of(self, path: Path, most: int) -> list[Any]:
        return [{"file": str(each.resolve())} for each in _files(path)[:most]]

    # Checkpoints

    def check_checkpoint(self, folder: Path, config: Mapping[str, Any]) -> None:
        if config.get("model_type") != "onnx":
            raise InputError(f"{folder} is a {config.get('model_type')}; the task {self.NAME} is for ONNX files.")

    # Inputs

    def record(self, given: Any, folder: Path, name: str) -> Any:
        _write_arrays(folder / f"{name}{runtime.SUFFIX}", runtime.read_arrays(Path(given)))
        return {"file": f"{name}{runtime.SUFFIX}"}

    def encoder(
        self,
        folder: Path,
        encoding: Mapping[str, Any],
        *,
        inputs: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Encoder:
        if not (folder / SPEC).is_file():
            raise InputError(f"{folder} says nothing of its tensors.")
        return runtime.TensorEncoder(read_json(folder / SPEC))

    def preprocessing(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, Any]:
        return {"kind": "tensors", "path": SPEC}

    # Answers

    def rows(self, output: Any, inputs: Mapping[str, Any]) -> Any:
        return output.reshape(-1, 1)

    def truth(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        return np.full(sum(example.label[1] for example in examples), -1, dtype=np.int64)

    def captions(self, examples: Sequence[Example]) -> list[str]:
        return [Path(example.input).name for example in examples for _ in range(example.label[1])]

    def metrics(self, answers: NDArray[Any], examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        """`score`, the fidelity, is 1 minus the relative error ‖answer - truth‖ / ‖truth‖, at least 0, on average."""
        ends = np.cumsum([example.label[1] for example in examples])
        errors = [
            relative_error(np.load(example.label[0], allow_pickle=False).reshape(-1, 1), part)
            for example, part in zip(examples, np.split(answers, ends[:-1]), strict=True)
        ]
        mean = float(np.mean(errors))
        return {
            "score": float(np.mean([max(0.0, 1 - error) for error in errors])),
            "score_name": self.SCORE_NAME,
            "examples": len(examples),
            "relative_error": mean if np.isfinite(mean) else None,
            "sqnr_db": sqnr_db(mean),
        }

    # Calibration

    def read_calibration(
        self, path: Path, options: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[list[Any], list[int] | None]:
        self.check_data(path)
        return [str(each) for each in _files(path)], None


def _write_arrays(path: Path, arrays: Arrays) -> None:
    """An .npz file with the same bytes whenever it is written; numpy's own writer keeps some names for itself."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)


def _files(path: Path) -> list[Path]:
    """The .npz files of a path, itself or in it."""
    if path.is_dir():
        return sorted(each for each in path.iterdir() if each.suffix == runtime.SUFFIX)
    return [path] if path.suffix == runtime.SUFFIX and path.is_file() else []


TASK = Tensors()
