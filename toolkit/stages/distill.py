"""`distill`: a small student learns a teacher's answers, and if wanted its hidden states and attention.

Losses, each with a weight of its own:

- answers: Kullback-Leibler divergence to the teacher's softened distribution, times the temperature squared (Hinton,
  Vinyals and Dean, 2015); of several teachers, the mean distribution counts;
- labels: cross entropy, on the texts that have one;
- hidden states: mean squared difference, layer by layer; attention: Kullback-Leibler divergence, layer by layer
  (TinyBERT, Jiao et al., 2020). Both take the first teacher. The hidden states of a student of another width are mapped
  to its teacher's by one matrix for all layers, which learns along and is thrown away; attention needs as many heads.

The student has some of the source's layers, and those heads and that share of its width which matter most on training
examples; or the shape of a config, and random weights.

The teachers' outputs come from disk (`teach`), so they are computed once, however long the student trains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from toolkit import answers, architecture, importance, training
from toolkit.errors import InputError
from toolkit.importance import Method
from toolkit.stages import Context, teach
from toolkit.tasks.task import Task

VERSION = 4
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers")
_MULTIPLE = 32  # what the feed-forward width of a narrower student is rounded to


class Parameters(training.Hyperparameters):
    """The loop's hyperparameters, the student and the losses."""

    epochs: int = Field(4, ge=1)
    # The learning rate falls to zero in the last epoch, which is mostly the best one.
    patience: int | None = Field(None, ge=1)
    teaching: list[str] = Field(min_length=1, description="Outputs of `teach`, one per teacher")
    layers: list[int] | None = Field(None, description="Layers of the source that the student starts from; all if none")
    width: int | None = Field(None, ge=1, description="How wide the student is: heads and units go in proportion")
    importance: Method = "taylor"
    importance_examples: int = Field(512, ge=1)
    config: dict[str, Any] | None = Field(None, description="The student's config, to begin from random weights")
    temperature: float = Field(2.0, gt=0)
    answers_weight: float = Field(1.0, ge=0)
    labels_weight: float = Field(0.0, ge=0)
    hidden_weight: float = Field(0.0, ge=0)
    attention_weight: float = Field(0.0, ge=0)
    layer_map: dict[int, int] = Field(default={}, description="Student layer → teacher layer, from 1; 0: embeddings")


class Lesson:
    """What the teachers say to each training example, read from disk as it is needed.

    Raises InputError if the teachers answered other examples than each other, or not those with so many `rows`.
    """

    def __init__(self, teaching: Sequence[str], task: Task, temperature: float, rows: int) -> None:
        self.folders = [Path(folder) for folder in teaching]
        self.answers_module = answers.get(task.ANSWERS)
        given = [np.load(folder / "answers.npy", mmap_mode="r") for folder in self.folders]
        if any(array.shape != (rows, given[0].shape[1]) for array in given):
            raise InputError("The teachers answered other examples than those of this run.")
        targets = self.answers_module.targets
        self.targets = np.mean([targets(array, temperature) for array in given], axis=0).astype(np.float32)
        self.validation = np.mean([targets(np.load(folder / "validation.npy")) for folder in self.folders], axis=0)
        self.rows = np.load(self.folders[0] / "rows.npy")
        self.offsets = np.load(self.folders[0] / "offsets.npy")
        self.squares = np.concatenate([[0], np.cumsum(np.diff(self.offsets) ** 2)])
        self.hidden: dict[int, Any] = {}
        self.attention: dict[int, Any] = {}

    def of(self, indices: Sequence[int]) -> Any:
        """The targets of some examples, float32[rows, width]."""
        return np.concatenate([self.targets[self.rows[i] : self.rows[i + 1]] for i in indices])

    def divergence(self, said: Any) -> float:
        """How far a student's answers to the validation split are from the teachers'. It tells epochs apart that a few
        hundred labels cannot."""
        return self.answers_module.divergence(self.validation, said)

    def open_layers(self, parameters: Parameters) -> None:
        """Open what the losses between layers need."""
        mapped = sorted(set(parameters.layer_map.values()))
        if parameters.hidden_weight:
            self.hidden = self._open(self.folders[0], "hidden", mapped)
        if parameters.attention_weight:
            self.attention = self._open(self.folders[0], "attention", [layer for layer in mapped if layer > 0])

    @staticmethod
    def _open(folder: Path, kind: str, layers: list[int]) -> dict[int, Any]:
        return {layer: np.load(folder / f"{kind}-{layer}.npy", mmap_mode="r") for layer in layers}

    def hidden_of(self, layer: int, indices: Sequence[int], length: int) -> Any:
        """float32[n, length, width]; zero behind each text's end."""
        array = self.hidden[layer]
        out = np.zeros((len(indices), length, array.shape[1]), dtype=np.float32)
        for row, i in enumerate(indices):
            part = array[self.offsets[i] : self.offsets[i + 1]]
            out[row, : len(part)] = part
        return out

    def attention_of(self, layer: int, indices: Sequence[int], length: int) -> Any:
        """float32[n, heads, length, length]; zero behind each text's end."""
        array = self.attention[layer]
        out = np.zeros((len(indices), array.shape[0], length, length), dtype=np.float32)
        for row, i in enumerate(indices):
            size = int(self.offsets[i + 1] - self.offsets[i])
            part = array[:, self.squares[i] : self.squares[i + 1]]
            out[row, :, :size, :size] = part.reshape(-1, size, size)
        return out


def _to_answers(lesson: Lesson, temperature: float) -> Callable[[Any, training.Batch], Any]:
    import torch

    def to_answers(said: Any, batch: training.Batch) -> Any:
        wanted = torch.from_numpy(lesson.of(batch.indices)).to(said.device)
        return lesson.answers_module.imitation(said, wanted, temperature)

    return to_answers


def taught(
    teaching: Sequence[str], temperature: float, train: training.Examples, context: Context
) -> tuple[training.Examples, Lesson]:
    """The examples that teachers answered, encoded like those of `train`, and what was said to them."""
    assert context.data is not None  # noqa: S101
    examples = teach.training_examples(Path(teaching[0]), train.task, context.data)
    encoded = training.Examples(train.task, train.encoder, examples, train.names)
    return encoded, Lesson(teaching, train.task, temperature, sum(len(labels) for labels in encoded.labels))


def answers_loss(lesson: Lesson, task: Task, temperature: float) -> training.Loss:
    """The loss to the teachers' answers alone."""
    to_answers = _to_answers(lesson, temperature)
    return lambda model, batch: to_answers(training.answer(task, model, batch)[0], batch)


def _projection(model: Any, lesson: Lesson) -> Any:
    """A matrix from the student's width to its teacher's, if hidden states are learned and the widths differ."""
    import torch

    for array in lesson.hidden.values():
        if array.shape[1] != model.config.hidden_size:
            return torch.nn.Linear(model.config.hidden_size, array.shape[1], bias=False)
    return None


def _loss(lesson: Lesson, task: Task, parameters: Parameters, projection: Any) -> training.Loss:
    """The weighted sum of the losses that have a weight."""
    import torch

    to_answers = _to_answers(lesson, parameters.temperature)

    def hidden(result: Any, batch: training.Batch) -> Any:
        mask = batch.inputs["attention_mask"][:, :, None].float()
        parts = []
        for mine, theirs in parameters.layer_map.items():
            said = result.hidden_states[mine]
            said = (said if projection is None else projection(said)).float()
            wanted = torch.from_numpy(lesson.hidden_of(theirs, batch.indices, said.shape[1])).to(said.device)
            parts.append((((said - wanted) ** 2) * mask).sum() / (mask.sum() * said.shape[2]))
        return torch.stack(parts).mean()

    def attention(result: Any, batch: training.Batch) -> Any:
        rows = batch.inputs["attention_mask"][:, None, :].float()
        parts = []
        for mine, theirs in parameters.layer_map.items():
            if mine == 0 or theirs == 0:
                continue
            said = result.attentions[mine - 1].float()
            wanted = torch.from_numpy(lesson.attention_of(theirs, batch.indices, said.shape[-1])).to(said.device)
            difference = wanted * (wanted.clamp_min(1e-6).log() - said.clamp_min(1e-6).log())
            parts.append((difference.sum(-1) * rows).sum() / (rows.sum() * said.shape[1]))
        return torch.stack(parts).mean()

    looks: dict[str, bool] = {}
    if parameters.hidden_weight:
        looks["output_hidden_states"] = True
    if parameters.attention_weight:
        looks["output_attentions"] = True

    def total(model: Any, batch: training.Batch) -> Any:
        said, result = training.answer(task, model, batch, **looks)
        parts = []
        if parameters.answers_weight:
            parts.append(parameters.answers_weight * to_answers(said, batch))
        if parameters.labels_weight:
            parts.append(parameters.labels_weight * task.loss(said, batch.labels))
        if parameters.hidden_weight:
            parts.append(parameters.hidden_weight * hidden(result, batch))
        if parameters.attention_weight:
            parts.append(parameters.attention_weight * attention(result, batch))
        return sum(parts)

    return total


def _check(model: Any, lesson: Lesson, parameters: Parameters, source: Path) -> None:
    """Refuse losses that cannot be taken."""
    if not (
        parameters.answers_weight or parameters.labels_weight or parameters.hidden_weight or parameters.attention_weight
    ):
        raise InputError("All losses of the distillation have the weight 0.")
    deepest = max(parameters.layer_map, default=0)
    if deepest and deepest > model.config.num_hidden_layers:
        raise InputError(
            f"{source}: the student has {model.config.num_hidden_layers} layers; the layer map names {deepest}."
        )
    if (parameters.hidden_weight or parameters.attention_weight) and not parameters.layer_map:
        raise InputError("Hidden states and attention need a layer map: which student layer learns from which.")
    for array in lesson.attention.values():
        check_heads(model.config.num_attention_heads, array.shape[0])


def check_heads(student: int, teacher: int) -> None:
    """Refuse to compare attention where student and teacher have other numbers of heads. Raises InputError."""
    if student != teacher:
        raise InputError(
            f"The student has {student} heads, its teacher {teacher}; attention can be compared only with as many. "
            "Leave out --attention-weight; hidden states can be learned at any width."
        )


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Train the student that `source` and `parameters.layers` describe; write the best epoch to `output`."""
    with training.Interrupt() as stop:
        return _run(source, output, parameters, context, stop)


def _run(
    source: Path, output: Path, parameters: Parameters, context: Context, stop: training.Interrupt
) -> dict[str, Any]:
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it trains
    context.progress(0, 1, "loading torch and the student")
    from toolkit.engines.torch import input_names, load_for_training

    task, labels = training.begin(context)
    # Only the plain implementation of attention gives its weights.
    options = {"attn_implementation": "eager"} if parameters.attention_weight else {}
    folder = source
    if parameters.config is None:
        model = load_for_training(source, task, labels, parameters.encoding, **options)
    else:
        model = architecture.fresh(parameters.config, task.MODEL_CLASS, labels, **options)
        task.copy_files(source, output, parameters.encoding)
        model.config.save_pretrained(output)  # the task's encoder reads it; training writes the one that holds
        folder = output
    if parameters.layers is not None:
        model = architecture.cut(model, architecture.Cut(layers=parameters.layers))
    names = input_names(model, task)
    encoder = task.encoder(folder, parameters.encoding, inputs=names)
    labelled = training.encode(task, context.data, "train", encoder, names)
    train, lesson = taught(parameters.teaching, parameters.temperature, labelled, context)
    lesson.open_layers(parameters)
    if parameters.width is not None:
        model = _narrow(model, labelled, parameters, context)
    _check(model, lesson, parameters, source)
    if (lesson.hidden or lesson.attention) and train.lengths != np.diff(lesson.offsets).tolist():
        raise InputError(f"{source}: the student's tokenizer is not its teacher's. Distil the answers alone.")
    projection = _projection(model, lesson)
    report = training.fit(
        model, parameters, context, stop, output,
        labels=labels, train=train, loss=_loss(lesson, task, parameters, projection), beside=projection,
        divergence=lesson.divergence, files=source if folder is source else None,
    )  # fmt: skip
    return {**report, "parameters": sum(p.numel() for p in model.parameters())}


def _narrow(model: Any, train: training.Examples, parameters: Parameters, context: Context) -> Any:
    """The student as wide as was asked for, with as large a share of the heads and of the feed-forward units."""
    assert parameters.width is not None  # noqa: S101
    sizes = architecture.shape(model.config)
    heads = architecture.heads_of(sizes, parameters.width)
    batches = training.sampled(train, parameters.importance_examples, context)
    return importance.narrowed(
        model,
        importance.measure(model, parameters.importance, batches, training.from_labels(train.task)),
        ffn=importance.rounded(sizes["ffn"], 1 - parameters.width / sizes["width"], _MULTIPLE),
        heads=heads,
    )
