"""Asks a LiteRT or TFLite interpreter which operators it has. Imports nothing of this toolkit, so that it runs in an
environment that holds the runtime and numpy alone.

    python probe_litert.py FOLDER     # of one-operator files NAME.VERSION.tflite

Prints a line for each file: its name, and `yes` or `no`. A file that ends the process is the one after the last line.
"""

import sys
from pathlib import Path

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:
    from tflite_runtime.interpreter import Interpreter


# What is said of a version that the runtime lacks, and of an operator that is younger than the runtime.
MISSING = ("Didn't find op for builtin opcode", "Op builtin_code out of range")


def has_operator(path: Path) -> bool:
    """Whether the interpreter finds the operator of a file; what else it says of the file does not matter."""
    try:
        Interpreter(model_path=str(path))
    except (ValueError, RuntimeError) as error:
        return not any(text in str(error) for text in MISSING)
    return True


def main() -> None:
    folder, skip = Path(sys.argv[1]), set(sys.argv[2:])
    for path in sorted(folder.iterdir()):
        if path.name not in skip:
            print(path.name, "yes" if has_operator(path) else "no", flush=True)


if __name__ == "__main__":
    main()
