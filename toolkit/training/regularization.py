"""Regularization by what a model says to the same batch twice: what each kind needs of the model."""

from __future__ import annotations

from typing import Any

from toolkit.errors import InputError
from toolkit.training.examples import Batch
from toolkit.training.losses import Loss


def adversarial(loss: Loss, embeddings: Any, epsilon: float) -> Loss:
    """`loss` and, added to it, the same loss where every example's embeddings are moved by a vector of the length
    `epsilon`, in the direction in which the loss grows fastest (Miyato, Dai and Goodfellow, 2017).

    `embeddings` is the module of the model that gives them, float[examples, ...]. They need not learn: the gradient is
    taken at what the module gives. It costs a second forward pass and two more backward ones.
    """

    def total(model: Any, batch: Batch) -> Any:
        import torch
        from accelerate.utils import extract_model_from_parallel

        given: list[Any] = []

        def note(_: Any, __: Any, output: Any) -> Any:
            given.append(output if output.requires_grad else output.detach().requires_grad_())
            return given[-1]

        with embeddings.register_forward_hook(note):
            clean = loss(model, batch)
        if not given:
            raise InputError("--training adversarial: the model does not read its input embeddings. Leave it out.")
        with torch.autocast(clean.device.type, enabled=False):  # a gradient is of the type that its forward had
            gradients = torch.autograd.grad(clean, given, retain_graph=True)
        steps = iter([_of_length(gradient, epsilon) for gradient in gradients])
        # Not through the wrapper for several devices: it counts on one forward pass for each backward one.
        with embeddings.register_forward_hook(lambda _, __, output: output + next(steps).to(output.dtype)):
            worse = loss(extract_model_from_parallel(model), batch)
        return clean + worse

    return total


def _of_length(gradient: Any, length: float) -> Any:
    """A gradient [examples, ...], each example's scaled to one length; zeros stay."""
    flat = gradient.float().flatten(1)
    return (length * flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).reshape(gradient.shape)


def input_embeddings(model: Any) -> Any:
    """The module that gives a model's input embeddings. Raises InputError if there is none."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError) as error:
        raise InputError(
            "--training adversarial moves input embeddings, and this model has none. Leave it out."
        ) from error


def check_dropout(model: Any, batch: Batch) -> None:
    """Refuse R-Drop for a model that answers the same twice, because it has no dropout. Raises InputError.

    One that has draws random numbers in its forward pass. Model and generator are left as they were.
    """
    import torch

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # norms count what passes by
    before, training = torch.get_rng_state(), model.training
    model.train()
    with torch.no_grad():
        model(**batch.inputs)
    drawn = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    model.train(training)
    if not drawn:
        raise InputError("--training r_drop compares two dropouts, and this model has none. Leave it out.")
