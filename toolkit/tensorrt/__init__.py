"""TensorRT without its device: what can be checked and built here, and what the device needs to do the rest.

preflight.py        whether NVIDIA's ONNX parser takes a file (`tensorrt` extra)
ask_parser.py       the process that asks it; imports nothing of this toolkit
rungs.py            how far a validation reached: L0 to L4
"""
