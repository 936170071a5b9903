"""`finetune`: all weights of a checkpoint on the task's own data, by the loop of `toolkit.training`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import training
from toolkit.errors import InputError
from toolkit.stages import Context

VERSION = 2
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers")


class Parameters(training.Hyperparameters):
    """Hyperparameters of the loop; fine-tuning has none of its own."""


def _check_loaded(source: Path, model: Any, loading: dict[str, Any]) -> None:
    """Refuse weights that were silently made anew: only the new task's head may be."""
    body = f"{model.base_model_prefix}."
    names = [*loading["missing_keys"], *(str(key[0]) for key in loading["mismatched_keys"])]
    # Poolers come from pre-training objectives that many checkpoints dropped.
    lost = sorted(name for name in names if name.startswith(body) and ".pooler." not in name)
    if lost:
        raise InputError(
            f"{source}: {len(lost)} of the model's weights are missing or have another shape than its config.json "
            f"says, for example {lost[0]}."
        )


def load(source: Path, model_class: str, labels: list[str], **options: Any) -> Any:
    """The checkpoint as a model with a head for `labels`, a new one where it has none. Raises InputError."""
    import torch
    import transformers

    try:
        model, loading = getattr(transformers, model_class).from_pretrained(
            source,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={name: index for index, name in enumerate(labels)},
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{source} cannot be loaded for fine-tuning: {first}") from error
    _check_loaded(source, model, loading)
    return model


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Fine-tune the checkpoint `source`; write the best epoch as a Hugging Face folder to `output`."""
    with training.Interrupt() as stop:
        return _run(source, output, parameters, context, stop)


def _run(
    source: Path, output: Path, parameters: Parameters, context: Context, stop: training.Interrupt
) -> dict[str, Any]:
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it trains
    context.progress(0, 1, "loading torch and the checkpoint")
    from toolkit.engines.torch import input_names

    task, labels = training.begin(context)
    model = load(source, task.MODEL_CLASS, labels)
    encoder = task.encoder(source, inputs=input_names(model, task), max_length=parameters.max_length)
    train = training.encode(task, context.data, "train", encoder)
    return training.fit(
        model, parameters, context, stop, output,
        labels=labels, encoder=encoder, train=train, loss=training.from_labels, tokenizer=source,
    )  # fmt: skip
