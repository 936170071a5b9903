"""Make rule tables anew: `python -m toolkit.rules.observe NAME …`.

    python -m toolkit.rules.observe onnxruntime                       # what is installed here
    python -m toolkit.rules.observe litert
    python -m toolkit.rules.observe xnnpack
    python -m toolkit.rules.observe tflite-runtime --python VENV/bin/python
    python -m toolkit.rules.observe tensorrt-rtx --python VENV/bin/python
    python -m toolkit.rules.observe onnx-tensorrt --file operators.md --version 8.6

The first five ask a runtime, the last reads the list of operators that NVIDIA's parser for ONNX publishes with each
release. Each prints the operators of a table as YAML, one a line, or puts them into a table with `--into FILE`: what
stands above `operators:` in that file is written by hand and stays.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from toolkit.errors import ToolkitError
from toolkit.rules import observe_litert, observe_onnxruntime, observe_tensorrt_rtx, observe_xnnpack, read_onnx_tensorrt

Operators = dict[str, dict[str, Any]]


def to_yaml(operators: Operators) -> str:
    """Operators as YAML, one a line, by name."""
    lines = []
    for name, rule in sorted(operators.items()):
        text = yaml.safe_dump(rule, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True).strip()
        lines.append(f"  {yaml.safe_dump(name).splitlines()[0] if ':' in name else name}: {text}\n")
    return "operators:\n" + "".join(lines)


def put_into(path: Path, operators: Operators) -> None:
    """Replace the operators of a table and keep what is above them."""
    head = path.read_text(encoding="utf-8").partition("operators:\n")[0]
    path.write_text(head + to_yaml(operators), encoding="utf-8")


def observe(given: argparse.Namespace) -> Operators:
    """The operators that the named runtime has. Raises ToolkitError if it is not there."""
    if given.name == "onnxruntime":
        return observe_onnxruntime.operators()
    if given.name == "litert":
        return observe_litert.operators(sys.executable)
    if given.name == "xnnpack":
        return observe_xnnpack.operators(sys.executable)
    if given.name == "tflite-runtime":
        return observe_litert.operators(given.python)
    if given.name == "tensorrt-rtx":
        return observe_tensorrt_rtx.operators(given.python)
    return read_onnx_tensorrt.operators(given.file.read_text(encoding="utf-8"), given.version)


def main() -> int:
    """Parse, observe, print. Exit codes as of the command line."""
    parser = argparse.ArgumentParser(prog="python -m toolkit.rules.observe", description=__doc__.splitlines()[0])
    choices = ["onnxruntime", "litert", "xnnpack", "tflite-runtime", "tensorrt-rtx", "onnx-tensorrt"]
    parser.add_argument("name", choices=choices)
    parser.add_argument("--python", help="interpreter of the environment that has the runtime")
    parser.add_argument("--file", type=Path, help="operators.md of onnx-tensorrt")
    parser.add_argument("--version", help="release that the file is of")
    parser.add_argument("--into", type=Path, metavar="FILE", help="put them into this table")
    given = parser.parse_args()
    if given.name in ("tflite-runtime", "tensorrt-rtx") and not given.python:
        parser.error(f"{given.name} needs --python: it lives in an environment of its own")
    if given.name == "onnx-tensorrt" and not (given.file and given.version):
        parser.error("onnx-tensorrt needs --file and --version")
    try:
        operators = observe(given)
    except ToolkitError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    if given.into:
        put_into(given.into, operators)
        print(f"{len(operators)} operators put into {given.into}")
    else:
        print(to_yaml(operators), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
