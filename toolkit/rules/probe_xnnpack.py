"""Asks LiteRT's interpreter whether its XNNPACK delegate takes small files whole. Imports nothing of this toolkit.

    python probe_xnnpack.py FOLDER     # of files that end in .tflite

Prints a line for each file: its name, and `yes` or `no`. A file that ends the process is the one after the last line.
"""

import sys
from pathlib import Path

from ai_edge_litert.interpreter import Interpreter


def is_taken(path: Path) -> bool:
    """Whether all of a file's operators are the delegate's; False for one that the interpreter refuses."""
    try:
        interpreter = Interpreter(model_path=str(path), num_threads=1)
        before = interpreter._get_ops_details()
        interpreter.allocate_tensors()
        delegates = interpreter._get_ops_details()[len(before) :]
    except (ValueError, RuntimeError):
        return False
    given = {int(number) for node in delegates for number in node["outputs"]}
    return bool(delegates) and {int(number) for number in before[-1]["outputs"]} <= given


def main() -> None:
    folder, skip = Path(sys.argv[1]), set(sys.argv[2:])
    for path in sorted(folder.iterdir()):
        if path.name not in skip:
            print(path.name, "yes" if is_taken(path) else "no", flush=True)


if __name__ == "__main__":
    main()
