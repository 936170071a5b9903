"""Which module of the model an operator of a profile came from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.probes import ancestors


def of_operators(artifact: Path, engine: str) -> dict[str, str]:
    """Operator, as the engine's profiler calls it → module; without those that do not say. Raises
    MissingDependencyError where a package to read the file with is not installed."""
    if engine == "onnxruntime":
        return _onnxruntime(artifact)
    if engine == "openvino":
        return _openvino(artifact)
    return {}


def _onnxruntime(artifact: Path) -> dict[str, str]:
    """Of the graph that ONNX Runtime makes of the file, whose nodes are those of its profile."""
    from toolkit import silence

    silence.apply()
    import onnxruntime

    from toolkit.export import onnx_file
    from toolkit.probes import onnx as probe

    with tempfile.TemporaryDirectory(prefix="toolkit-modules-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(optimized)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(artifact), options, providers=["CPUExecutionProvider"])
        model = onnx_file.read(optimized, weights=False)
    # The runtime leaves out what the file says of its nodes. Those that it did not fuse keep their names, and a fused
    # one that has a parameter of a module belongs to that.
    original = onnx_file.read(artifact, weights=False).graph
    said = {node.name: node.metadata_props for node in original.node}
    known = {module: node.metadata_props for node in original.node if (module := probe.scope(node))}
    for node in model.graph.node:
        owners = [module for name in node.input if (module := _owner(name, known))]
        node.metadata_props.extend(said.get(node.name) or (known[owners[0]] if owners else ()))
    return {node.name: module for node, module in zip(model.graph.node, probe.scopes(model), strict=True) if module}


def _owner(parameter: str, modules: Mapping[str, Any]) -> str | None:
    """The innermost of `modules` that has a parameter of this name; None if none has."""
    return next((name for name in ancestors(parameter)[1:] if name in modules), None)


def _openvino(artifact: Path) -> dict[str, str]:
    """By the names of operators: OpenVINO's plugin keeps them, and names what it fused after one of its parts."""
    from toolkit.engines import openvino
    from toolkit.export.openvino_file import module_of

    found = {
        operator.get_friendly_name(): module_of(operator) for operator in openvino.read(artifact).get_ordered_ops()
    }
    return {name: module for name, module in found.items() if module}
