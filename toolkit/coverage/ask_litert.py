"""Asks LiteRT's interpreter which operators of a file its XNNPACK delegate takes. Runs in a process of its own, which
a bad file may end; imports nothing of this toolkit.

    python ask_litert.py MODEL.tflite ANSWER.json

The answer is of the first subgraph: `{"version": str, "operators": [{"operator", "inputs", "outputs"}], "delegates":
[{"inputs", "outputs"}]}`, tensors by number; the delegate's parts stand behind the operators that they replace.
"""

import importlib.metadata
import json
import sys
from typing import Any

from ai_edge_litert.interpreter import Interpreter


def described(interpreter: Interpreter) -> list[dict[str, Any]]:
    """Every node of the first subgraph with its tensors."""
    return [
        {
            "operator": node["op_name"],
            "inputs": [int(number) for number in node["inputs"]],
            "outputs": [int(number) for number in node["outputs"]],
        }
        for node in interpreter._get_ops_details()
    ]


def main(model: str, answer: str) -> None:
    """Read, ask, write."""
    interpreter = Interpreter(model_path=model, num_threads=1)
    operators = described(interpreter)
    interpreter.allocate_tensors()  # the delegate takes its nodes now
    delegates = described(interpreter)[len(operators) :]
    version = importlib.metadata.version("ai-edge-litert")
    with open(answer, "w", encoding="utf-8") as stream:  # noqa: PTH123 - nothing but what it is asked for
        json.dump({"version": version, "operators": operators, "delegates": delegates}, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
