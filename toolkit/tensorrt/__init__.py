"""TensorRT without its device: what can be checked and built here, and what the device needs to do the rest.

preflight.py        whether NVIDIA's ONNX parser takes a file (`tensorrt` extra)
ask_parser.py       the process that asks it; imports nothing of this toolkit
recipe.py           what an engine is built by; the files that a bundle carries because of it
build_engine.py     the script among them that builds on the device; imports nothing of this toolkit
builder.py          runs that script here
engine.py           the engine of a conversion's chosen candidate
rungs.py            how far a validation reached: L0 to L4
"""
