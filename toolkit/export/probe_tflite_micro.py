"""Runs a file in TensorFlow Lite Micro: once with zeros, or on given inputs. Imports nothing of this toolkit.

    python probe_tflite_micro.py FILE [INPUTS.npz OUTPUTS ANSWERS.npz]

The inputs are called `EXAMPLE/PLACE`, as the answers are; OUTPUTS is how many of these an inference has. The
interpreter says on standard error how much of its arena it needed.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from tflite_micro.python.tflite_micro import runtime


def main() -> None:
    file = Path(sys.argv[1])
    # More than any file needs that fits such a device; the default follows from the size of the file.
    interpreter = runtime.Interpreter.from_file(str(file), arena_size=max(64_000_000, 10 * file.stat().st_size))
    if len(sys.argv) > 2:
        answer(interpreter, sys.argv[2], int(sys.argv[3]), sys.argv[4])
    else:
        details = interpreter.get_input_details(0)
        interpreter.set_input(np.zeros(details["shape"], details["dtype"]), 0)
        interpreter.invoke()
    interpreter.print_allocations()


def answer(interpreter: runtime.Interpreter, inputs: str, outputs: int, answers: str) -> None:
    examples: dict[str, dict[int, np.ndarray]] = {}
    with np.load(inputs, allow_pickle=False) as stored:
        for key in stored:
            example, place = key.split("/")
            examples.setdefault(example, {})[int(place)] = stored[key]
    said: Any = {}
    for example, arrays in examples.items():
        for place, array in arrays.items():
            interpreter.set_input(array, place)
        interpreter.invoke()
        said |= {f"{example}/{place}": interpreter.get_output(place) for place in range(outputs)}
    np.savez(answers, **said)


if __name__ == "__main__":
    main()
