"""Inferences inside an emulated machine, with a mark between them that the instruction counter sees.

    python -m toolkit.devices.guest_inference REQUEST.json

The request names engine, model, a file of inputs, and how often to run; the answers of each example go to a file.
Imports what an application would: numpy and the engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import engines
from toolkit.engines import Arrays

MARK = 770000  # as in instruction_counter.c
START, STOP = 1, 2


def mark(number: int) -> None:
    """Tell the counter; for the kernel it is a question with no answer."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_get_priority_max(MARK + number)


def save(examples: list[Arrays], path: Path) -> None:
    """Write the arrays of examples to an .npz file."""
    arrays: Any = {f"{number}/{name}": value for number, each in enumerate(examples) for name, value in each.items()}
    with path.open("wb") as stream:
        np.savez(stream, **arrays)


def load(path: Path) -> list[Arrays]:
    """The examples that `save` wrote."""
    examples: dict[int, Arrays] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored:
            number, _, name = key.partition("/")
            examples.setdefault(int(number), {})[name] = stored[key]
    return [examples[number] for number in sorted(examples)]


def main(request_file: str) -> None:
    """Load, run each example `runs` times after one to warm up, write the answers."""
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    engine = engines.get(request["engine"]).load(Path(request["model"]), 1)
    answers = []
    for inputs in load(Path(request["inputs"])):
        engine.run(inputs)
        for _ in range(request["runs"]):
            mark(START)
            said = engine.run(inputs)
            mark(STOP)
        answers.append(said)
    save(answers, Path(request["answers"]))


if __name__ == "__main__":
    main(sys.argv[1])
