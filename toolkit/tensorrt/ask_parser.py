"""Asks TensorRT-RTX's ONNX parser whether it takes a file. Runs in a process of its own, because the parser may crash;
imports nothing of this toolkit and needs no GPU.

    python ask_parser.py MODEL.onnx ANSWER.json

The answer: `{"accepted": bool, "version": str, "errors": [{"node", "operator", "said"}], "parts": [[int]]}`; the parts
are the places of nodes that it would take together.
"""

import json
import sys

import tensorrt_rtx


class Silent(tensorrt_rtx.ILogger):  # type: ignore[misc]
    """What the parser refuses comes back as its errors; the log repeats it."""

    def __init__(self) -> None:
        tensorrt_rtx.ILogger.__init__(self)

    def log(self, severity: object, message: str) -> None:
        """Drop a message."""


def main(model: str, answer: str) -> None:
    logger = Silent()
    builder = tensorrt_rtx.Builder(logger)
    typed = 1 << int(tensorrt_rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)  # the parser keeps no hold of it, and crashes without
    parser = tensorrt_rtx.OnnxParser(network, logger)
    with open(model, "rb") as stream:  # noqa: PTH123 - nothing but what it is asked for
        data = stream.read()
    accepted = parser.supports_model_v2(data, model)
    errors = []
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        errors.append({"node": error.node_name(), "operator": error.node_operator(), "said": error.desc()})
    parts = [[int(place) for place in parser.get_subgraph_nodes(part)] for part in range(parser.num_subgraphs)]
    with open(answer, "w", encoding="utf-8") as stream:  # noqa: PTH123
        said = {"accepted": accepted, "version": tensorrt_rtx.__version__, "errors": errors, "parts": parts}
        json.dump(said, stream)


if __name__ == "__main__":
    main(*sys.argv[1:])
