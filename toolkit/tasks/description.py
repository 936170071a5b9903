"""What a model's file may say of its inputs and its output, to people and to other tools. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TensorDescription:
    """An input or the output of a model.

    Of an image: `channels`, and `mean` and `std` per channel, by which a pixel from 0 to 255 becomes what the model
    takes, (pixel - mean) / std; `low` and `high` are the least and the greatest that this gives. `labels`: what each
    number of the last axis is, a class or a feature, written to `labels_file`.
    """

    name: str
    description: str = ""
    channels: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    labels_file: str = "labels.txt"


@dataclass(frozen=True)
class ModelDescription:
    """A model: `inputs` by the names of the encoder's arrays; `vocabulary`: the tokens of a text encoder by their
    numbers, if it is a WordPiece tokenizer's, which knows no more."""

    name: str
    description: str
    output: TensorDescription
    inputs: dict[str, TensorDescription] = field(default_factory=dict)
    vocabulary: tuple[str, ...] = ()
