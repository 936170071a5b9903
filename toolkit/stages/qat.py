"""`qat`: a checkpoint fine-tuned with quantization in sight, so that its float weights bear being quantized.

In every forward pass the weights, and what the method quantizes of the activations, are rounded as the artifact will
round them; the gradient passes the rounding as if it were not there (straight-through estimator, Bengio, Léonard and
Courville, 2013; Jacob et al., 2018). The steps are those of quantization after training: weights symmetric, one step
per output channel, or per block in 4 bits; `static-int8` takes its activation ranges from calibration examples before
the first epoch, `dynamic-int8` those of each example. Batch norms keep the statistics that the artifact folds into its
weights; steps per output channel are the same before and after the folding.

The output is a plain Hugging Face folder with float weights, to be exported and quantized like any other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from toolkit import ranges, training
from toolkit.calibration import Source, collect
from toolkit.export.onnx_layers import LEAST_TABLE
from toolkit.stages import Context, distill
from toolkit.tasks.task import Example

VERSION = 3
LIBRARIES = ("torch", "transformers", "accelerate", "tokenizers")
_BATCH = 16


class Parameters(training.Hyperparameters):
    """The loop's hyperparameters, and how the artifact will be quantized."""

    epochs: int = Field(2, ge=1)
    learning_rate: float = Field(1e-5, gt=0)
    method: Literal["dynamic-int8", "static-int8", "weight-int8", "weight-int4"] = "dynamic-int8"
    embeddings: bool = True
    block_size: Literal[32, 64, 128] = 32
    calibration: ranges.Method = "min-max"
    percentile: float = Field(ranges.PERCENTILE, gt=50, le=100)
    examples: Source = Source()
    teaching: list[str] = Field([], description="Output of `teach` to learn from; none: from the labels")
    temperature: float = Field(2.0, gt=0)


def run(source: Path, output: Path, parameters: Parameters, context: Context) -> dict[str, Any]:
    """Train the checkpoint `source` with rounded weights and activations; write the best epoch. Raises InputError."""
    with training.Interrupt() as stop:
        return _run(source, output, parameters, context, stop)


def _run(
    source: Path, output: Path, parameters: Parameters, context: Context, stop: training.Interrupt
) -> dict[str, Any]:
    assert context.data is not None  # noqa: S101 - the runner always prepares data before it trains
    context.progress(0, 1, "loading torch and the checkpoint")
    from toolkit.engines import torch as torch_engine

    task, labels = training.begin(context)
    model = torch_engine.load_for_training(source, task, labels, parameters.encoding)
    names = torch_engine.input_names(model, task)
    encoder = task.encoder(source, parameters.encoding, inputs=names)
    warnings: list[str] = []
    found: dict[str, ranges.Histogram] = {}
    if parameters.method == "static-int8":
        inputs, warnings = collect(parameters.examples, source, task, context.data, context.seed)
        calibrating = training.Examples(task, encoder, [Example(each, None) for each in inputs], names)
        found = activations(model, calibrating)
    round_while_running(model, parameters, found)
    without_noise(model)

    train = training.encode(task, context.data, "train", encoder, names)
    loss = training.from_labels(task)
    if parameters.teaching:
        train, lesson = distill.taught(parameters.teaching, parameters.temperature, train, context)
        loss = distill.answers_loss(lesson, task, parameters.temperature)
    validation = task.read_examples(context.data, "validation")
    said = torch_engine.answers(model.eval(), source, task, validation, parameters.encoding, context)
    before = task.metrics(said, validation, labels)["score"]
    report = training.fit(model, parameters, context, stop, output, labels=labels, train=train, loss=loss, files=source)
    if report["validation_score"] < before:
        torch_engine.load_for_training(source, task, labels, parameters.encoding).save_pretrained(output)
        warnings.append(
            f"Training did not pay: the validation score fell from {before:.4f} to {report['validation_score']:.4f}. "
            "The weights are those from before it; try a lower learning rate."
        )
    return {**report, "method": parameters.method, "validation_score_before": before, "warnings": warnings}


def activations(model: Any, examples: training.Examples) -> dict[str, ranges.Histogram]:
    """The values that every linear layer and convolution reads over calibration examples, padding left out, by its
    name."""
    import torch

    from toolkit.adapters.prompts import Prompted

    layers = _layers(model)
    found = {name: ranges.Histogram() for name in layers}
    mask: Any = None

    def note(name: str, _: Any, given: Any) -> None:
        values = given[0]
        rows = values[mask] if mask is not None and values.shape[:2] == mask.shape else values
        found[name].add(rows.numpy())

    hooks = [module.register_forward_pre_hook(functools.partial(note, name)) for name, module in layers.items()]
    model.eval()
    try:
        ordered = sorted(range(len(examples)), key=lambda i: examples.lengths[i])
        for start in range(0, len(ordered), _BATCH):
            batch = examples.batch(ordered[start : start + _BATCH])
            mask = batch.inputs["attention_mask"].bool() if "attention_mask" in batch.inputs else None
            if isinstance(model, Prompted):
                mask = model.seen(mask)
            with torch.inference_mode():
                model(**batch.inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _layers(model: Any) -> dict[str, Any]:
    import torch

    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def round_while_running(model: Any, parameters: Parameters, found: dict[str, ranges.Histogram]) -> None:
    """Let all linear layers, convolutions and embeddings of a model compute with rounded values, in place. Its weights
    stay float.

    `found` has the activations of each layer, for `static-int8`.
    """
    import torch

    bits, block = (4, parameters.block_size) if parameters.method == "weight-int4" else (8, None)
    layers = _layers(model)
    for name, module in model.named_modules():
        if name in layers:
            reading: Callable[[Any], Any] = _as_it_is
            if parameters.method == "dynamic-int8":
                reading = rounded_by_example
            elif parameters.method == "static-int8":
                low, high = found[name].range(parameters.calibration, parameters.percentile)
                scale, zero = ranges.scale_and_zero(low, high, symmetric=False)
                reading = functools.partial(_rounded_in_range, scale=scale, zero=zero)
            if isinstance(module, torch.nn.Linear):
                module.forward = functools.partial(_linear_forward, module, reading, bits, block)
            else:  # no format has convolutions in 4 bits
                module.forward = functools.partial(_conv_forward, module, reading)
        elif isinstance(module, torch.nn.Embedding) and parameters.embeddings and module.weight.numel() >= LEAST_TABLE:
            module.register_forward_hook(lambda _, __, rows: rounded_weight(rows, 8, None))


def without_noise(model: Any) -> None:
    """Train on what the artifact will compute: rounding is noise enough, and far smaller than that of dropout or of a
    batch's own statistics."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.forward = functools.partial(_norm_forward, module)


def _norm_forward(module: Any, values: Any) -> Any:
    from torch.nn import functional

    return functional.batch_norm(
        values, module.running_mean, module.running_var, module.weight, module.bias, training=False, eps=module.eps
    )


def _as_it_is(values: Any) -> Any:
    return values


def _rounded_in_range(values: Any, *, scale: float, zero: int) -> Any:
    import torch

    return torch.fake_quantize_per_tensor_affine(values.float(), scale, zero, 0, 255)


def _linear_forward(module: Any, reading: Callable[[Any], Any], bits: int, block: int | None, values: Any) -> Any:
    from torch.nn import functional

    return functional.linear(reading(values), rounded_weight(module.weight, bits, block), module.bias)


def _conv_forward(module: Any, reading: Callable[[Any], Any], values: Any) -> Any:
    weight = rounded_weight(module.weight.flatten(1), 8, None).reshape(module.weight.shape)
    return module._conv_forward(reading(values), weight, module.bias)


def _straight_through(values: Any, rounded: Any) -> Any:
    """`rounded`, with the gradient of `values`."""
    return values + (rounded - values).detach()


def rounded_weight(weight: Any, bits: int, block: int | None) -> Any:
    """A weight [..., inputs] rounded symmetrically to `bits`, with one step per row, or per `block` values of it."""
    largest = 2 ** (bits - 1) - 1
    rows = weight.float()
    if block is not None and rows.shape[-1] % block == 0:
        rows = rows.reshape(*rows.shape[:-1], -1, block)
    step = rows.detach().abs().amax(dim=-1, keepdim=True).clamp_min(1e-9) / largest
    rounded = (rows / step).round().clamp(-largest, largest) * step
    return _straight_through(weight, rounded.reshape(weight.shape))


def rounded_by_example(values: Any) -> Any:
    """Activations [examples, ..., channels] rounded to 8 bits over each example's own range, as at run time."""
    import torch

    flat = values.float().reshape(values.shape[0], -1)
    low = flat.detach().amin(dim=1, keepdim=True).clamp_max(0)
    high = flat.detach().amax(dim=1, keepdim=True).clamp_min(0)
    step = ((high - low) / 255).clamp_min(1e-9)
    zero = torch.round(-low / step)
    rounded = (torch.clamp(torch.round(flat / step) + zero, 0, 255) - zero) * step
    return _straight_through(values, rounded.reshape(values.shape))
