"""Asks TensorRT-RTX's ONNX parser which operators it has. Imports nothing of this toolkit, so that it runs in an
environment that holds the package alone; it needs no GPU.

    python probe_tensorrt_rtx.py NAME …     # prints "NAME yes" or "NAME no", a line each
"""

import sys

import tensorrt_rtx


def main() -> None:
    logger = tensorrt_rtx.Logger(tensorrt_rtx.Logger.ERROR)
    builder = tensorrt_rtx.Builder(logger)
    network = builder.create_network(0)
    parser = tensorrt_rtx.OnnxParser(network, logger)
    for name in sys.argv[1:]:
        print(name, "yes" if parser.supports_operator(name) else "no", flush=True)


if __name__ == "__main__":
    main()
