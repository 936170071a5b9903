"""`teach`: a teacher's answers to the training examples, to some without labels and to the validation split, computed
once and kept on disk.

Output, in the order of the training split followed by the inputs of `unlabeled.jsonl`:

    answers.npy        float32[rows, width]
    rows.npy           int64[examples + 1]: where each example's rows begin
    validation.npy     float32[rows, width] of the validation split: what students are compared by
    offsets.npy        int64[examples + 1]: where each text's tokens begin in the arrays below
    hidden-L.npy       float16[tokens, width]: what layer L gives (0: the embeddings)
    attention-L.npy    float16[heads, sum of length²]: the attention of layer L, each text's matrix in a row

All are read memory-mapped: they may be larger than the memory.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from pydantic import BaseModel, ConfigDict, Field

from toolkit import data as tables
from toolkit import tasks, training
from toolkit.errors import InputError
from toolkit.stages import Context
from toolkit.tasks.task import SPLITS, Example, Task

VERSION = 3
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets")
_BATCH = 32


class Parameters(BaseModel):
    """Which examples, and what of the teacher besides its answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoding: dict[str, Any]
    hidden_layers: list[int] = []
    attention_layers: list[int] = []
    unlabeled: str | None = None
    unlabeled_column: str | None = None
    unlabeled_limit: int = Field(50_000, ge=1)


def training_examples(teaching: Path, task: Task, data: Path) -> list[Example]:
    """The examples that a `teach` output is about; those that nobody labelled have no label."""
    examples = task.read_examples(data, "train")
    with (teaching / "unlabeled.jsonl").open(encoding="utf-8") as stream:
        return examples + [Example(json.loads(line), None) for line in stream]


def _check_teacher(source: Path, model: Any, names: list[str], parameters: Parameters) -> None:
    theirs = [model.config.id2label[i] for i in sorted(model.config.id2label)]
    if names and theirs != names:
        raise InputError(
            f"{source}: the teacher knows the labels {', '.join(theirs)}; the data has {', '.join(names)}."
        )
    wanted = [*parameters.hidden_layers, *parameters.attention_layers]
    if wanted and max(wanted) > model.config.num_hidden_layers:
        raise InputError(
            f"{source}: the teacher has {model.config.num_hidden_layers} layers; layer {max(wanted)} was asked for."
        )


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Run the teacher `source` over the training split and the unlabeled examples. Raises InputError."""
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it teaches
    context.progress(0, 1, "loading torch and the teacher")
    import torch

    from toolkit.engines import torch as torch_engine

    torch.set_num_threads(context.threads)
    task = tasks.get(context.task)
    labels: list[str] = json.loads((context.data / "labels.json").read_text(encoding="utf-8"))
    options = {"attn_implementation": "eager"} if parameters.attention_layers else {}
    model = torch_engine.load_model(source, task, **options)
    _check_teacher(source, model, labels, parameters)

    unlabeled, found = _unlabeled(task, parameters, context)
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in unlabeled)
    (output / "unlabeled.jsonl").write_text(lines, encoding="utf-8")
    names = torch_engine.input_names(model, task)
    encoder = task.encoder(source, parameters.encoding, inputs=names)
    examples = training.Examples(task, encoder, training_examples(output, task, context.data), names)
    notes = _Notes(output, model, parameters, examples)
    order = np.argsort(examples.lengths, kind="stable")
    for start in range(0, len(order), _BATCH):
        batch = examples.batch(order[start : start + _BATCH].tolist())
        with torch.inference_mode():
            rows, result = training.answer(task, model, batch, **notes.looks)
        notes.add(batch.indices, examples.rows(rows.numpy(), batch.indices), result)
        context.progress(min(start + _BATCH, len(order)), len(order), "the teacher's answers")
    notes.close()
    validation = task.read_examples(context.data, "validation")
    answers = torch_engine.answers(model, source, task, validation, parameters.encoding, context)
    np.save(output / "validation.npy", answers)
    return {
        "examples": len(examples),
        "unlabeled": len(unlabeled),
        "unlabeled_found": found,
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
        "tokens": sum(examples.lengths),
        "validation_score": task.metrics(answers, validation, labels)["score"],
    }


class _Notes:
    """The files that a teacher's answers are written to, whatever the order of the batches."""

    def __init__(self, output: Path, model: Any, parameters: Parameters, examples: training.Examples) -> None:
        self.output = output
        self.rows = np.concatenate([[0], np.cumsum([len(labels) for labels in examples.labels])]).astype(np.int64)
        self.lengths = np.asarray(examples.lengths, dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.squares = np.concatenate([[0], np.cumsum(self.lengths**2)])
        np.save(output / "rows.npy", self.rows)
        np.save(output / "offsets.npy", self.offsets)
        self.answers: Any = None  # made when their width is known
        self.looks: dict[str, Any] = {}
        self.hidden, self.attention = {}, {}
        if parameters.hidden_layers:
            self.looks["output_hidden_states"] = True
            shape = (int(self.offsets[-1]), model.config.hidden_size)
            self.hidden = {layer: self._new(f"hidden-{layer}", np.float16, shape) for layer in parameters.hidden_layers}
        if parameters.attention_layers:
            self.looks["output_attentions"] = True
            shape = (model.config.num_attention_heads, int(self.squares[-1]))
            self.attention = {
                layer: self._new(f"attention-{layer}", np.float16, shape) for layer in parameters.attention_layers
            }

    def _new(self, name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        return open_memmap(self.output / f"{name}.npy", mode="w+", dtype=dtype, shape=shape)

    def add(self, indices: list[int], answers: list[Any], result: Any) -> None:
        """Note what was said to some examples."""
        if self.answers is None:
            self.answers = self._new("answers", np.float32, (int(self.rows[-1]), answers[0].shape[1]))
        for place, index in enumerate(indices):
            length = int(self.lengths[index])
            self.answers[self.rows[index] : self.rows[index + 1]] = answers[place]
            for layer, array in self.hidden.items():
                states = result.hidden_states[layer][place, :length]
                array[self.offsets[index] : self.offsets[index + 1]] = states.numpy()
            for layer, array in self.attention.items():
                matrix = result.attentions[layer - 1][place, :, :length, :length]
                array[:, self.squares[index] : self.squares[index + 1]] = matrix.reshape(len(array), -1).numpy()

    def close(self) -> None:
        """Write everything to disk."""
        for array in (self.answers, *self.hidden.values(), *self.attention.values()):
            array.flush()


def _unlabeled(task: Task, parameters: Parameters, context: Context) -> tuple[list[Any], int]:
    """The inputs without labels that are used, and how many there were."""
    if parameters.unlabeled is None:
        return [], 0
    assert context.data is not None  # noqa: S101
    known = [e.input for split in SPLITS for e in task.read_examples(context.data, split)]
    stream = task.unlabeled(Path(parameters.unlabeled), parameters.unlabeled_column)
    return tables.sample(stream, parameters.unlabeled_limit, known, context.seed)
