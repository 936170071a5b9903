"""What a task is: everything about a model that depends on what it is for, and nothing else.

The stages know of examples, of inputs as arrays by name, and of answers as rows of numbers. How a text, an image or a
table row becomes inputs, what the rows mean and how good they are is the task's.
"""

from __future__ import annotations

import itertools
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit import data
from toolkit.engines import Arrays
from toolkit.errors import InputError
from toolkit.runtime.encoder import Encoder
from toolkit.storage import read_json, sha256_file, sha256_json, sha256_path
from toolkit.tasks.augmentation import Augmentation, Soft, soft_cross_entropy
from toolkit.tasks.description import ModelDescription, TensorDescription

SPLITS = ("train", "validation", "eval")
_FRACTIONS = (0.72, 0.08, 0.20)


@dataclass(frozen=True)
class Example:
    """What the model is given, as the task's encoder takes it, and what it should answer; None: nobody knows."""

    input: Any
    label: Any


class Preparation(BaseModel):
    """How a data file becomes prepared examples: what all tasks understand. A task's own settings come on top; they
    are what `--option NAME=VALUE` sets."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    data: str
    where: list[tuple[str, str]] = []
    label_names: list[str] | None = None
    drop_missing: bool = False
    evaluate_only: bool = False
    least_to_split: int = 0  # fewer examples are all for evaluation
    calibration: int = 0  # examples, at most a tenth, that are kept out of an evaluation without a training part
    known_labels: list[str] | None = None


class Task(ABC):
    """A task. One file each with a class that fills this in and its one instance, `TASK`."""

    NAME: ClassVar[str]  # as users write it
    SCORE_NAME: ClassVar[str]  # the metric that `score` repeats
    ANSWERS: ClassVar[Literal["classes", "vectors", "tensors"]] = "classes"
    MODEL_CLASS: ClassVar[str]  # the transformers auto class of its checkpoints
    HEAD: ClassVar[str]  # what the architecture of a trained checkpoint is called
    HEAD_WEIGHTS: ClassVar[tuple[str, ...]] = ("classifier.", "score.")  # what the weights of its head begin with
    FILES: ClassVar[tuple[str, ...]]  # of a checkpoint or an artifact: what its encoder is made from, the first a must
    INPUT_NAMES: ClassVar[tuple[str, ...]]
    LAZY: ClassVar[bool] = False  # whether encoded examples are too large to be kept, and all alike in size
    GROUP: ClassVar[int] = 1  # how many examples in a row belong together, in training and in the score
    KEEPS_WIDTH: ClassVar[bool] = False  # whether a smaller model must be as wide
    NETWORKS: ClassVar[Mapping[str, Path]] = {}  # networks that come with the toolkit: name → file with `build`
    Preparation: ClassVar[type[Preparation]] = Preparation
    Augmentation: ClassVar[type[Augmentation]] = Augmentation

    # Data

    def check_data(self, path: Path) -> None:
        """Refuse what can be seen to be no data without reading it. Raises InputError."""
        data.check_readable(path)

    def data_sha256(self, preparation: Mapping[str, Any]) -> str:
        """The hash of everything that `prepare` will read."""
        return sha256_path(Path(preparation["data"]))

    def preparation(self, shared: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of `prepare`: what all tasks understand, and this task's own. Raises InputError for a setting
        that the task has not."""
        known = [name for name in self.Preparation.model_fields if name not in Preparation.model_fields]
        for name in own:
            if name not in known:
                raise InputError(f"The task {self.NAME} has no option '{name}'; it has: {', '.join(known) or 'none'}.")
        try:
            made = self.Preparation.model_validate({**shared, **own})
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"Option '{'.'.join(map(str, first['loc']))}': {first['msg']}.") from error
        return made.model_dump(mode="json")

    @abstractmethod
    def prepare(self, source: Path, output: Path, parameters: Any, context: Any) -> dict[str, Any]:
        """Read the data and write it to `output` with `write_prepared`; what the report says of it.

        `source` is a checkpoint folder, whose encoder measures what has to be measured. The report has `encoding`, the
        settings of the encoder, and `lengths`, the input lengths of an artifact with fixed shapes; None: there is only
        one. Raises InputError for data that cannot be used.
        """

    def write_prepared(
        self, output: Path, parts: Sequence[Sequence[Example]], names: Sequence[str], report: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Write train, validation and evaluation examples, the label names and the report, which is returned."""
        for name, part in zip(SPLITS, parts, strict=True):
            lines = (json.dumps({"input": e.input, "label": e.label}, ensure_ascii=False) for e in part)
            (output / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (output / "labels.json").write_text(json.dumps(list(names), ensure_ascii=False) + "\n", encoding="utf-8")
        full = {**report, "splits": {name: len(part) for name, part in zip(SPLITS, parts, strict=True)}}
        (output / "report.json").write_text(json.dumps(full, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        return full

    def read_examples(self, folder: Path, split: str) -> list[Example]:
        """The prepared examples of one split."""
        with (folder / f"{split}.jsonl").open(encoding="utf-8") as stream:
            return [Example(**json.loads(line)) for line in stream]

    def check_unlabeled(self, path: Path, column: str | None) -> None:
        """Refuse what can be seen to hold no examples by its beginning. Raises InputError."""
        if next(iter(self.unlabeled(path, column)), None) is None:
            raise InputError(f"{path} has no examples.")

    def unlabeled(self, path: Path, column: str | None) -> Iterator[Any]:
        """The inputs of a file without labels, one after the other. Raises InputError."""
        raise InputError(f"The task {self.NAME} learns from no examples without labels; leave out {path}.")

    def examples_of(self, path: Path, most: int) -> list[Any]:
        """At most `most` inputs of a file without labels, as JSON that the runtime reads. Raises InputError."""
        return list(itertools.islice(self.unlabeled(path, None), most))

    # Checkpoints

    def settings_of(self, checkpoint: Any) -> dict[str, Any]:
        """Parameters of `prepare` that follow from a checkpoint (`toolkit.checkpoint.Checkpoint`)."""
        return {}

    def settings_that_keep(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        """Parameters of `prepare` by which other data are encoded as those that a model was trained on, where the files
        of the model do not say it."""
        return {}

    def check_checkpoint(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Refuse a folder that lacks what the encoder is made from. Raises InputError."""
        return

    def labels(self, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[str] | None:
        """Label names in index order if this is a checkpoint that was trained for the task; None otherwise."""
        if config.get("model_type") in ("module", "onnx"):
            names = config.get("id2label") or {}
            return [str(names[key]) for key in sorted(names, key=int)] if config.get("task") == self.NAME else None
        architecture = str((config.get("architectures") or [""])[0])
        if self.HEAD not in architecture or not any(name.startswith(self.HEAD_WEIGHTS) for name in tensors):
            return None
        id2label = config.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
        return [str(id2label[key]) for key in sorted(id2label, key=int)]

    def is_convolutional(self, checkpoint: Any) -> bool:
        """Whether a checkpoint is a network of convolutions. One alone may be no more than how a transformer cuts
        patches."""
        if checkpoint.is_graph:
            operators: dict[str, int] = read_json(checkpoint.folder / "artifact.json")["operators"]
            return operators.get("Conv", 0) > 1
        return sum(len(shape) == 4 for _, shape in checkpoint.tensors.values()) > 1

    def offers(self, encoding: Mapping[str, Any]) -> dict[str, Any]:
        """What a user's function that builds a network may ask for by argument, besides the number of `classes`."""
        return {}

    def fits(self, checkpoint: Any, encoding: Mapping[str, Any], option: str) -> None:
        """Refuse a checkpoint, which `option` names, that cannot take what the encoder gives. Raises InputError."""
        return

    def encoder_sha256(self, folder: Path) -> str:
        """The hash of what the encoder of a folder is made from."""
        return sha256_json({name: sha256_file(folder / name) for name in self.FILES if (folder / name).exists()})

    def copy_files(self, source: Path, output: Path, encoding: Mapping[str, Any]) -> None:
        """Put what the encoder is made from beside other weights."""
        for name in self.FILES:
            if (source / name).is_file():
                shutil.copy(source / name, output / name)

    # Inputs

    def record(self, given: Any, folder: Path, name: str) -> Any:
        """An input as a golden example keeps it: JSON, and files in `folder` that begin with `name` if need be. The
        runtime reads it back (`toolkit.runtime.pipeline.Pipeline.read`)."""
        return given

    @abstractmethod
    def encoder(
        self,
        folder: Path,
        encoding: Mapping[str, Any],
        *,
        inputs: Sequence[str] | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Encoder:
        """The runtime's own encoder with the files of a checkpoint or artifact: training, gates and device share it.

        `inputs` are the tensors that the model takes; None: all of the task's. `lengths` are those of an artifact.
        """

    @abstractmethod
    def preprocessing(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest's section that says how the bundle's encoder is made; `path` is its file."""

    def describe(self, folder: Path, encoding: Mapping[str, Any]) -> ModelDescription:
        """What the file of a model may say of it to other tools; `folder` is its checkpoint."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = config.get("id2label") or {}
        labels = tuple(str(names[key]) for key in sorted(names, key=int)) if self.ANSWERS == "classes" else ()
        said = "Logits, in the order of the labels." if labels else "A vector."
        return ModelDescription(
            name=self.NAME if config.get("model_type") == "module" else str((config.get("architectures") or [""])[0]),
            description=f"A model for {self.NAME.replace('-', ' ')}.",
            output=TensorDescription("logits" if labels else "output", said, labels=labels),
            inputs=self.describe_inputs(folder, encoding),
        )

    def describe_inputs(self, folder: Path, encoding: Mapping[str, Any]) -> dict[str, TensorDescription]:
        """The inputs by the names of the encoder's arrays, for `describe`."""
        return {}

    def lengths(
        self, folder: Path, encoding: Mapping[str, Any], examples: Sequence[Example], most: int
    ) -> list[int] | None:
        """At most `most` input lengths that suit examples, for formats with fixed shapes; None: there is only one."""
        return None

    # Augmentation

    def augmentation(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of `--augment` that change something. Raises InputError for one that the task has not."""
        known = list(self.Augmentation.model_fields)
        for name in own:
            if name not in known:
                has = f"it has: {', '.join(known)}" if known else "it has none"
                raise InputError(f"The task {self.NAME} has no augmentation '{name}'; {has}.")
        try:
            made = self.Augmentation.model_validate(dict(own))
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"--augment {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
        return made.model_dump(mode="json", exclude_defaults=True)

    def augmented(
        self, example: Example, encoder: Encoder, settings: Any, generator: np.random.Generator, names: Sequence[str]
    ) -> tuple[Arrays, NDArray[np.int64]] | None:
        """(the inputs, the labels of its rows) of an example that was changed at random; None: it is left as it is.
        `settings` are the task's `Augmentation`, `names` the labels' names."""
        return None

    def mixed(
        self,
        arrays: Arrays,
        labels: NDArray[np.int64],
        settings: Any,
        generator: np.random.Generator,
        names: Sequence[str],
    ) -> tuple[Arrays, NDArray[np.int64] | Soft]:
        """The inputs and labels of a batch after its examples were mixed with each other: then the labels are soft,
        float32[rows, classes]."""
        return arrays, labels

    # Answers

    @property
    def plain_output(self) -> bool:
        """Whether `output` takes what the forward gives as it is."""
        return type(self).output is Task.output

    def output(self, result: Any, inputs: Mapping[str, Any]) -> Any:
        """The tensor that the artifact gives, from what a model's forward returned: part of the exported graph."""
        return result.logits if hasattr(result, "logits") else result

    def finish_graph(self, model: Any) -> None:
        """Change an ONNX file of somebody's, `onnx.ModelProto`, so that its only output is what `output` gives. Raises
        InputError."""
        return

    def rows(self, output: Any, inputs: Mapping[str, Any]) -> Any:
        """The rows of the answers in an output [examples, ...], a tensor or an array; `inputs` are the encoded examples
        as arrays. Most outputs are the rows."""
        return output

    def truth(self, examples: Sequence[Example]) -> NDArray[np.int64]:
        """The right class of every row, int64[rows]; -1 where nobody knows it."""
        return np.asarray([-1 if e.label is None else e.label for e in examples], dtype=np.int64)

    def captions(self, examples: Sequence[Example]) -> list[str]:
        """What each row is about, in words."""
        return [str(example.input) for example in examples]

    def loss(self, answers: Any, labels: Any, *, weights: Any = None, smoothing: float = 0.0) -> Any:
        """How wrong rows of answers are, a scalar tensor. `labels` are int64[rows], and rows whose label is -1 do not
        count; or float[rows, classes], how much of each class is right, and a row counts as much as is known of it.
        `weights` float[classes] say how much each class counts, `smoothing` is the share of certainty that goes to all
        classes alike."""
        from torch.nn import functional

        if labels.ndim == 2:
            return soft_cross_entropy(answers.float(), labels, weights, smoothing)
        if not bool((labels >= 0).any()):
            return answers.sum() * 0
        return functional.cross_entropy(
            answers.float(), labels, weight=weights, ignore_index=-1, label_smoothing=smoothing
        )

    @abstractmethod
    def metrics(self, answers: NDArray[Any], examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        """How good the answers to examples are; `score`, from 0 to 1, is what gates use. `score_name` names it and
        `examples` counts them."""

    # Calibration

    def read_calibration(
        self, path: Path, options: Mapping[str, Any], names: Sequence[str]
    ) -> tuple[list[Any], list[int] | None]:
        """The inputs of a file of the user's, and their labels if it has any that the task knows. Raises InputError."""
        raise InputError(f"The task {self.NAME} takes calibration examples from its training data; leave out {path}.")

    def sizes(self, inputs: Sequence[Any], folder: Path, encoding: Mapping[str, Any]) -> list[int]:
        """How large each input is, so that small and large ones are taken: 1 where all are alike."""
        return [1] * len(inputs)

    def identity(self, given: Any) -> Any:
        """What two inputs have in common that are the same to the model's reader."""
        return given

    def doubts(self, given: Sequence[Any], real: Sequence[Any], folder: Path, encoding: Mapping[str, Any]) -> list[str]:
        """What is wrong with calibration inputs in words, beside `real` ones. Raises InputError for random data."""
        return []


def split(
    examples: Sequence[Example],
    names: Sequence[str],
    parameters: Preparation,
    seed: int,
    classes: Sequence[int] | None = None,
) -> list[list[Example]]:
    """Train, validation and evaluation part of examples, every class in its proportion; or all for evaluation, but for
    some to calibrate with, as the parameters say. `classes` are those of the examples; None: their labels.

    Raises InputError if a class is too small.
    """
    if parameters.evaluate_only or len(examples) < parameters.least_to_split:
        count = min(parameters.calibration, len(examples) // 10)
        held = set(np.random.default_rng(seed).permutation(len(examples))[:count].tolist())
        return [
            [example for index, example in enumerate(examples) if index in held],
            [],
            [example for index, example in enumerate(examples) if index not in held],
        ]
    labels = [example.label for example in examples] if classes is None else classes
    data.check_class_sizes(labels, names, Path(parameters.data), least=len(SPLITS))
    return [[examples[i] for i in part] for part in data.stratified_split(labels, _FRACTIONS, seed)]


def classification_metrics(logits: NDArray[Any], labels: NDArray[Any], names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1, precision/recall/F1 per class, confusion matrix (rows: truth, columns: prediction).

    `logits` is float[n, classes], `labels` int[n]. `score` is the accuracy.
    """
    count = len(names)
    predicted = logits.argmax(axis=1)
    confusion = np.zeros((count, count), dtype=int)
    np.add.at(confusion, (labels, predicted), 1)
    hits = np.diag(confusion).astype(float)
    precision = hits / np.maximum(confusion.sum(axis=0), 1)
    recall = hits / np.maximum(confusion.sum(axis=1), 1)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    accuracy = float(hits.sum() / max(len(labels), 1))
    return {
        "score": accuracy,
        "score_name": "accuracy",
        "examples": len(labels),
        "accuracy": accuracy,
        "macro_f1": float(f1.mean()),
        "per_class": {
            name: {
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "support": int(confusion[i].sum()),
            }
            for i, name in enumerate(names)
        },
        "confusion": confusion.tolist(),
    }
