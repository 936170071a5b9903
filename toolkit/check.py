"""Whether two builds of a model do the same, step by step from the raw example to the label: `toolkit check`.

The first step that differs is named. Every step behind it starts from what the first build gives, so that one fault is
not counted again further on: the model is run on the first build's tensors, and its answers are read by both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import answers
from toolkit.bisect import FLOOR_DB, Difference, difference
from toolkit.builds import MASK, Build, borrowed, check_tasks
from toolkit.engines import Arrays
from toolkit.errors import InputError

INPUTS, MODEL, LABELS, ANSWERS = "inputs", "model", "labels", "answers"
_TOLERANCE = 1e-5  # of float32 inputs that two machines compute
# Answers of a quantized build that may change, as a share: the gates bound what that may cost.
MOST_CHANGED = {"fp32": 0.0, "fp16": 0.01, "bf16": 0.03, "int8": 0.05, "int4": 0.1}


@dataclass
class Step:
    """One step of the way, over all examples."""

    name: str
    examples: int = 0
    differ: int = 0
    first: int | None = None  # the first example that differs, from 0
    what: str = ""

    def add(self, number: int, what: str | None) -> None:
        """Count an example; `what` says how it differs, None that it does not."""
        self.examples += 1
        if what is not None:
            self.differ += 1
            if self.first is None:
                self.first, self.what = number, what


@dataclass
class Checked:
    """What was found."""

    steps: list[Step]
    model: Difference | None  # of the outputs on the same tensors
    changed: int  # answers that differ from end to end
    examples: int

    @property
    def first(self) -> Step | None:
        """The first step that differs."""
        return next((step for step in self.steps if step.differ), None)

    def as_dict(self) -> dict[str, Any]:
        return {
            "first": self.first.name if self.first else None,
            "steps": [asdict(step) for step in self.steps],
            "model": asdict(self.model) if self.model else None,
            "answers_changed": self.changed,
            "examples": self.examples,
        }


def check(
    first: Build,
    second: Build,
    examples: Sequence[Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Checked:
    """Run raw examples through both builds. Raises InputError if they are not for one task."""
    if not examples:
        raise InputError("There are no examples to compare the builds on.")
    check_tasks(first, second)
    steps: dict[str, Step] = {}
    pairs: list[tuple[Arrays, Arrays]] = []
    for number, example in enumerate(examples):
        for name, (mine, other) in _steps(first, second, example).items():
            steps.setdefault(name, Step(name)).add(number, _value_difference(mine, other))
        arrays = (first.encoder(example), second.encoder(example))
        what = _input_difference(*arrays)
        steps.setdefault(INPUTS, Step(INPUTS)).add(number, what)
        pairs.append(arrays)
        progress(number + 1, 2 * len(examples))
    ordered = [*(step for name, step in steps.items() if name != INPUTS), steps[INPUTS]]
    model = Step(MODEL)
    outputs: list[tuple[NDArray[Any], NDArray[Any]]] = []
    changed = 0
    kind = answers.get(first.task.ANSWERS)
    decides = first.task.ANSWERS != "tensors"  # numbers of any meaning: an answer is all of an example's
    for number, (mine, other) in enumerate(pairs):
        expected = first.rows(first.output(mine), mine)
        # Where the inputs differ the second build's own would carry that difference into the model. What was cut
        # off for the second is no input of it: then both get its own.
        given, wanted = other, expected
        if steps[INPUTS].differ and not _is_longer(mine, other):
            given = borrowed(mine, other, second.encoder.padding)
        elif steps[INPUTS].differ:
            wanted = first.rows(first.output({**mine, **other}), other)
        found, why = _answers(second, given)
        if found is None:
            model.add(number, why)
            continue
        own = found if given is other else _answers(second, other)[0]
        if wanted.shape != found.shape:
            model.add(number, f"answers of shape {list(found.shape)} instead of {list(wanted.shape)}")
            continue
        outputs.append((wanted, found))
        if own is None or own.shape != expected.shape:
            changed += 1
        else:
            others = kind.changed(expected, own)
            changed += int(others.sum() if decides else others.any())
        progress(len(examples) + number + 1, 2 * len(examples))
    measured = None
    if outputs:
        measured = _judge_model(model, outputs, second.precision, kind if decides else None)
    model.examples = len(pairs)
    ordered.append(model)
    labels = Step(LABELS)
    labels.add(0, _label_difference(first.labels, second.labels))
    ordered.append(labels)
    return Checked(ordered, measured, changed, len(examples))


def _is_longer(mine: Arrays, other: Arrays) -> bool:
    """Whether one build's rows hold more than another takes."""
    return any(mine[n].ndim == 2 and mine[n].shape[1] > other[n].shape[1] for n in mine if n in other)


def _answers(build: Build, arrays: Arrays) -> tuple[NDArray[np.float32] | None, str]:
    """A build's answers to encoded inputs, or None and why it gives none."""
    try:
        return build.rows(build.output(arrays), arrays), ""
    except Exception as error:
        return None, f"it does not run: {str(error).splitlines()[0]}"


def _steps(first: Build, second: Build, example: Any) -> dict[str, tuple[Any, Any]]:
    """The steps of the preprocessing that both builds have."""
    mine, other = first.encoder.steps(example), second.encoder.steps(example)
    return {name: (mine[name], other[name]) for name in mine if name in other}


def _value_difference(mine: NDArray[Any], other: NDArray[Any]) -> str | None:
    """How two values differ, in words; None if they do not."""
    if mine.shape != other.shape:
        return f"shape {list(other.shape)} instead of {list(mine.shape)}"
    if mine.dtype.kind != "f":
        wrong = mine != other
        if not wrong.any():
            return None
        largest = int(np.abs(mine.astype(np.int64) - other.astype(np.int64)).max())
        return f"{int(wrong.sum())} of {wrong.size} values differ, by up to {largest}"
    if np.allclose(mine, other, rtol=_TOLERANCE, atol=_TOLERANCE):
        return None
    return f"values differ by up to {float(np.abs(mine - other).max()):.3g}{_relation(mine, other)}"


def _relation(mine: NDArray[Any], other: NDArray[Any]) -> str:
    """What turns one tensor of an image into the other, if it is one of the usual mistakes."""
    if mine.ndim != 4 or mine.shape[1] not in (1, 3):
        return ""
    if mine.shape[1] == 3 and np.allclose(mine[:, ::-1], other, rtol=1e-3, atol=1e-3):
        return ": the channels are in the other order (RGB, BGR)"
    slopes, offsets = [], []
    for channel in range(mine.shape[1]):
        a, b = mine[0, channel].ravel().astype(np.float64), other[0, channel].ravel().astype(np.float64)
        if a.std() < 1e-6:
            return ""
        slope, offset = np.polyfit(a, b, 1)
        if np.abs(slope * a + offset - b).max() > 1e-2 * max(1.0, float(np.abs(b).max())):
            return ""
        slopes.append(round(float(slope), 4))
        offsets.append(round(float(offset), 4))
    return f": by channel, the second is the first times {slopes} plus {offsets} (scale, mean or std)"


def _input_difference(mine: Arrays, other: Arrays) -> str | None:
    """How encoded inputs differ, padding left aside; None if they do not."""
    for name in mine:
        if name not in other:
            # An input that is the same everywhere may have become part of the graph.
            if name != MASK and np.unique(mine[name]).size == 1:
                continue
            return f"the second takes no '{name}'"
    extra = [name for name in other if name not in mine]
    if extra:
        return f"the second takes '{extra[0]}', which the first has not"
    for name, array in other.items():
        wanted = mine[name]
        if array.shape != wanted.shape and array.ndim == 2 == wanted.ndim and MASK in other:
            length = min(array.shape[1], wanted.shape[1])
            if other[MASK][:, length:].any():
                side = "at the end of" if not other[MASK][:, :1].any() else "further along"
                return f"'{name}' has the tokens {side} the row, where the first pads (padding side)"
            array, wanted = array[:, :length], wanted[:, :length]
        what = _value_difference(wanted, array)
        if what is not None:
            return f"'{name}': {what}"
    return None


def _judge_model(
    step: Step, outputs: Sequence[tuple[NDArray[Any], NDArray[Any]]], precision: str, kind: Any
) -> Difference:
    """Decide from the answers on equal tensors whether the models are one. `kind` is that of the answers (module of
    `toolkit.answers`); None: they are no decisions."""
    measured = difference([{"": a} for a, _ in outputs], [{"": b} for _, b in outputs], "", "")
    flipped = [kind is not None and bool(kind.changed(a, b).any()) for a, b in outputs]
    if not measured.is_finite:
        step.differ, step.first = len(outputs), 0
        step.what = "answers that are no numbers (NaN or infinite)"
    elif measured.sqnr_db < FLOOR_DB[precision] or _is_more(sum(flipped), len(flipped), MOST_CHANGED[precision]):
        step.differ = sum(flipped) or len(outputs)
        step.first = flipped.index(True) if any(flipped) else 0
        decisions = f", {sum(flipped)} of {len(flipped)} decisions change" if kind is not None else ""
        step.what = (
            f"answers on the same tensors differ by up to {measured.max_abs:.3g} ({measured.sqnr_db:.0f} dB; "
            f"{precision} should have {FLOOR_DB[precision]:.0f}){decisions}{_shape_of_answers(outputs)}"
        )
    return measured


def _is_more(count: int, of: int, share: float) -> bool:
    """Whether `count` of so many say that the share is larger: by chance it would come to that in less than 5 %."""
    chance = sum(math.comb(of, k) * share**k * (1 - share) ** (of - k) for k in range(count, of + 1))
    return count > 0 and chance < 0.05


def _shape_of_answers(outputs: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> str:
    """Whether one side gives probabilities where the other gives logits."""
    sums = [np.stack([side[i].sum(axis=-1).mean() for side in outputs]) for i in (0, 1)]
    if np.allclose(sums[1], 1, atol=1e-3) and not np.allclose(sums[0], 1, atol=1e-3):
        return ": the second gives probabilities (a softmax too many)"
    return ""


def _label_difference(mine: Sequence[str], other: Sequence[str]) -> str | None:
    if list(mine) == list(other):
        return None
    if sorted(mine) == sorted(other):
        place = next(i for i, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
        return f"the same labels in another order: number {place} is '{other[place]}' instead of '{mine[place]}'"
    return f"labels {', '.join(other)} instead of {', '.join(mine)}"
