"""Runs a file once in TensorFlow Lite Micro. Imports nothing of this toolkit.

    python probe_tflite_micro.py FILE

The interpreter says on standard error how much of its arena it needed.
"""

import sys
from pathlib import Path

import numpy as np
from tflite_micro.python.tflite_micro import runtime


def main() -> None:
    file = Path(sys.argv[1])
    # More than any file needs that fits such a device; the default follows from the size of the file.
    interpreter = runtime.Interpreter.from_file(str(file), arena_size=max(64_000_000, 10 * file.stat().st_size))
    details = interpreter.get_input_details(0)
    interpreter.set_input(np.zeros(details["shape"], details["dtype"]), 0)
    interpreter.invoke()
    interpreter.print_allocations()


if __name__ == "__main__":
    main()
