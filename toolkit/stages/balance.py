"""`balance`: large values move from activations into weights, so that both fill 8 bits better; the answers in float
stay the same (SmoothQuant, Xiao et al., 2023).

An ONNX artifact is balanced before all of its layers, by one multiplication each (`toolkit.export.onnx_balance`). A
checkpoint has no place for these: it is balanced where the scales fold into weights that are there, between the
attention's values and the layer that reads their mixture. The families that we know normalize behind the residual
connection, so a LayerNorm's output also goes into the next sum, and its weights cannot take up a scale.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from toolkit import architecture, calibration, tasks, training
from toolkit import export as formats
from toolkit.errors import InputError
from toolkit.export import onnx as onnx_format
from toolkit.stages import Context, evaluate
from toolkit.storage import write_json
from toolkit.tasks.task import Example

VERSION = 2
LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "tokenizers")
_BATCH = 16


class Parameters(BaseModel):
    """How much moves, and the examples whose activations are looked at."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: float = Field(0.7, ge=0, le=1, description="0: nothing of the activations' differences moves; 1: all")
    examples: calibration.Source = calibration.Source()


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Balance the checkpoint or the ONNX artifact `source`. Raises InputError."""
    task = tasks.get(context.task)
    inputs, warnings = calibration.collect(parameters.examples, source, task, context.data, context.seed)
    if (source / "artifact.json").is_file():
        count = _artifact(source, output, inputs, parameters, context)
    else:
        count = _checkpoint(source, output, inputs, parameters, context)
    return {"balanced": count, "alpha": parameters.alpha, "examples": len(inputs), "warnings": warnings}


def _artifact(source: Path, output: Path, inputs: list[Any], parameters: Parameters, context: Context) -> int:
    from toolkit.export import onnx_balance, onnx_layers, onnx_quantize

    artifact = json.loads((source / "artifact.json").read_text(encoding="utf-8"))
    if artifact["format"] != "onnx":
        raise InputError(f"A {artifact['format']} file cannot be balanced; balance the checkpoint, then export it.")
    names = evaluate.names_of(artifact)
    encoder = tasks.get(context.task).encoder(source, parameters.examples.encoding, inputs=names)
    context.progress(0, 1, f"activations of {len(inputs)} examples")
    model = onnx_quantize.read(source / artifact["path"], artifact["engine"], "none")
    count = onnx_balance.balance(model, onnx_layers.find(model), [encoder(each) for each in inputs], parameters.alpha)
    onnx_quantize.save(model, output / artifact["path"], source)
    formats.copy_rest(source, output, artifact)
    described = onnx_format.describe(output / artifact["path"], artifact["precision"], artifact["engine"])
    write_json(output / "artifact.json", described)
    return count


def _checkpoint(source: Path, output: Path, inputs: list[Any], parameters: Parameters, context: Context) -> int:
    import torch

    from toolkit.engines.torch import input_names, load_model
    from toolkit.export.onnx_balance import scales

    torch.set_num_threads(context.threads)
    task = tasks.get(context.task)
    model = load_model(source, task)
    architecture.refuse_prompt(vars(model.config))
    family = architecture.family(model.config.model_type)
    values, readers = _modules(model, family.values), _modules(model, family.reads["heads"])
    largest: dict[int, Any] = {}

    def note(layer: int, inputs: Any, mask: Any) -> None:
        top = (inputs.abs() * mask[:, :, None]).amax(dim=(0, 1))
        largest[layer] = torch.maximum(largest[layer], top) if layer in largest else top

    names = input_names(model, task)
    encoder = task.encoder(source, parameters.examples.encoding, inputs=names)
    examples = training.Examples(task, encoder, [Example(each, None) for each in inputs], names)
    order = sorted(range(len(examples)), key=lambda i: examples.lengths[i])
    for start in range(0, len(order), _BATCH):
        batch = examples.batch(order[start : start + _BATCH])
        hooks = [
            module.register_forward_pre_hook(
                lambda _, inputs, layer=layer, mask=batch.inputs["attention_mask"]: note(layer, inputs[0], mask)
            )
            for layer, module in readers.items()
        ]
        with torch.inference_mode():
            model(**batch.inputs)
        for hook in hooks:
            hook.remove()
        context.progress(min(start + _BATCH, len(order)), len(order), "activations")
    with torch.no_grad():
        for layer, reader in readers.items():
            weights = np.abs(reader.weight.numpy()).max(axis=0)
            scale = torch.from_numpy(scales(largest[layer].numpy(), weights, parameters.alpha))
            reader.weight.mul_(scale)
            values[layer].weight.div_(scale[:, None])
            values[layer].bias.div_(scale)
    model.save_pretrained(output)
    task.copy_files(source, output, parameters.examples.encoding)
    return len(readers)


def _modules(model: Any, pattern: str) -> dict[int, Any]:
    """Layer → the module of a pattern."""
    prefix = f"{model.base_model_prefix}."
    found = {}
    for name, module in model.named_modules():
        if match := re.fullmatch(pattern, name.removeprefix(prefix)):
            found[int(match[1])] = module
    return found
