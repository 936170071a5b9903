"""`teach`: a teacher's answers on the training texts, on texts without labels and on the validation split, computed
once and kept on disk.

Output, in the order of the training split followed by the texts of `unlabeled.jsonl`:

    logits.npy         float32[texts, classes]
    validation.npy     float32[validation examples, classes]: what students are compared by
    offsets.npy        int64[texts + 1]: where each text's tokens begin in the arrays below
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
from toolkit import tasks
from toolkit.errors import InputError
from toolkit.stages import Context

VERSION = 2
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets")
_BATCH = 32


class Parameters(BaseModel):
    """Which texts, and what of the teacher besides its logits."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_length: int
    hidden_layers: list[int] = []
    attention_layers: list[int] = []
    unlabeled: str | None = None
    unlabeled_column: str | None = None
    unlabeled_limit: int = Field(50_000, ge=1)


def training_texts(teaching: Path, task: Any, data: Path) -> tuple[list[str], list[int]]:
    """The texts that a `teach` output is about, and their labels: -1 where there is none."""
    examples = task.read_examples(data, "train")
    texts = [example.text for example in examples]
    labels = [example.label for example in examples]
    with (teaching / "unlabeled.jsonl").open(encoding="utf-8") as stream:
        more = [json.loads(line) for line in stream]
    return texts + more, labels + [-1] * len(more)


def _check_teacher(source: Path, model: Any, names: list[str], parameters: Parameters) -> None:
    theirs = [model.config.id2label[i] for i in sorted(model.config.id2label)]
    if theirs != names:
        raise InputError(
            f"{source}: the teacher knows the labels {', '.join(theirs)}; the data has {', '.join(names)}."
        )
    layers = model.config.num_hidden_layers
    wanted = [*parameters.hidden_layers, *parameters.attention_layers]
    if wanted and max(wanted) > layers:
        raise InputError(f"{source}: the teacher has {layers} layers; layer {max(wanted)} was asked for.")


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Run the teacher `source` over the training split and the unlabeled texts. Raises InputError."""
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it teaches
    context.progress(0, 1, "loading torch and the teacher")
    import torch

    from toolkit.engines import torch as torch_engine
    from toolkit.engines.torch import input_names, load_model, pad_batch

    torch.set_num_threads(context.threads)
    task = tasks.get(context.task)
    names: list[str] = json.loads((context.data / "labels.json").read_text(encoding="utf-8"))
    options = {"attn_implementation": "eager"} if parameters.attention_layers else {}
    model = load_model(source, task.MODEL_CLASS, **options)
    _check_teacher(source, model, names, parameters)

    unlabeled, found = _unlabeled(task, parameters, context)
    lines = "".join(json.dumps(text, ensure_ascii=False) + "\n" for text in unlabeled)
    (output / "unlabeled.jsonl").write_text(lines, encoding="utf-8")
    texts, _ = training_texts(output, task, context.data)

    encoder = task.encoder(source, inputs=input_names(model, task), max_length=parameters.max_length)
    encoded = [encoder(text) for text in texts]
    lengths = np.asarray([arrays["input_ids"].shape[1] for arrays in encoded])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    squares = np.concatenate([[0], np.cumsum(lengths**2)])
    np.save(output / "offsets.npy", offsets.astype(np.int64))
    logits = open_memmap(output / "logits.npy", mode="w+", dtype=np.float32, shape=(len(texts), len(names)))
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    hidden = {
        layer: open_memmap(output / f"hidden-{layer}.npy", mode="w+", dtype=np.float16, shape=(int(offsets[-1]), width))
        for layer in parameters.hidden_layers
    }
    attention = {
        layer: open_memmap(
            output / f"attention-{layer}.npy", mode="w+", dtype=np.float16, shape=(heads, int(squares[-1]))
        )
        for layer in parameters.attention_layers
    }
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), _BATCH):
        chosen = order[start : start + _BATCH].tolist()
        batch = pad_batch([encoded[i] for i in chosen], encoder.padding)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        with torch.inference_mode():
            answer = model(**tensors, output_hidden_states=bool(hidden), output_attentions=bool(attention))
        for row, index in enumerate(chosen):
            length = int(lengths[index])
            logits[index] = answer.logits[row].numpy()
            for layer, array in hidden.items():
                array[offsets[index] : offsets[index + 1]] = answer.hidden_states[layer][row, :length].numpy()
            for layer, array in attention.items():
                matrix = answer.attentions[layer - 1][row, :, :length, :length]
                array[:, squares[index] : squares[index + 1]] = matrix.reshape(heads, -1).numpy()
        context.progress(min(start + _BATCH, len(order)), len(order), "the teacher's answers")
    for array in (logits, *hidden.values(), *attention.values()):
        array.flush()
    validation = task.read_examples(context.data, "validation")
    answers = torch_engine.logits(model, source, task, validation, parameters.max_length, context)
    np.save(output / "validation.npy", answers)
    return {
        "texts": len(texts),
        "unlabeled": len(unlabeled),
        "unlabeled_found": found,
        "bytes": sum(path.stat().st_size for path in output.iterdir()),
        "tokens": int(offsets[-1]),
        "validation_score": task.metrics(answers, np.asarray([e.label for e in validation]), names)["score"],
    }


def _unlabeled(task: Any, parameters: Parameters, context: Context) -> tuple[list[str], int]:
    """The texts without labels that are used, and how many there were."""
    if parameters.unlabeled is None:
        return [], 0
    assert context.data is not None  # noqa: S101
    known = {e.text for split in ("train", "validation", "eval") for e in task.read_examples(context.data, split)}
    stream = tables.stream_texts(Path(parameters.unlabeled), parameters.unlabeled_column)
    return tables.sample_texts(stream, parameters.unlabeled_limit, known, context.seed)
