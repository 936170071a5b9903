"""Which module of the model an operator of a profile came from."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from toolkit.probes import ancestors

_WRAPPER = re.compile(r"^Named(\.model)?(\.|$)")  # what toolkit.export.traceable puts around a model
# What XNNPACK makes of operators of LiteRT: how the names of its operators begin → theirs. What is in none of these it
# does not tell under a name that says where it came from.
_XNNPACK: dict[tuple[str, ...], tuple[str, ...]] = {
    ("Fully Connected", "Convolution", "Deconvolution"): (
        "FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV",
    ),
    ("Batch Matrix Multiply",): ("BATCH_MATMUL",),
    ("Mean", "Sum"): ("MEAN", "SUM"),
    ("Add",): ("ADD",),
    ("Subtract",): ("SUB",),
    ("Multiply",): ("MUL",),
    ("Divide",): ("DIV",),
    ("Squared Difference",): ("SQUARED_DIFFERENCE",),
    ("Reciprocal Square Root",): ("RSQRT",),
    ("Square Root",): ("SQRT",),
    ("Softmax",): ("SOFTMAX",),
    ("GELU", "Approx GELU"): ("GELU",),
    ("TanH",): ("TANH",),
    ("Sigmoid",): ("LOGISTIC",),
    ("HardSwish",): ("HARD_SWISH",),
    ("Max Pooling",): ("MAX_POOL_2D",),
    ("Average Pooling",): ("AVERAGE_POOL_2D",),
    ("Transpose",): ("TRANSPOSE",),
    ("Slice", "Strided Slice"): ("SLICE", "STRIDED_SLICE"),
    ("Constant Pad",): ("PAD", "PADV2"),
}  # fmt: skip


def of_operators(artifact: Path, engine: str, names: Sequence[str] = ()) -> dict[str, str]:
    """Operator, as the engine's profiler calls it → module; without those that do not say. `names` are all operators of
    a profile in their order. Raises MissingDependencyError where a package to read the file with is not installed."""
    if engine == "litert":
        return _litert(artifact, names)
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


def _litert(artifact: Path, names: Sequence[str]) -> dict[str, str]:
    """By the tensors that operators give, whose names begin with the module. XNNPACK does not say which nodes of the
    graph its operators are, but runs them in the graph's order: where there are as many of a kind as in the graph, they
    are those. That holds only if all of them together are in the graph's order."""
    from toolkit.probes import litert as probe
    from toolkit.profilers import litert

    nodes = probe.open_probe(artifact).nodes()
    known = {litert.node_name(number, kind): number for number, (kind, _) in enumerate(nodes)}
    told = {name: known[name] for name in names if name in known}
    kinds = {name: kind for name in names if (kind := litert.kind_of_delegate(name))}
    taken = set(told.values())
    found: dict[str, int] = {}
    for begins, of_file in _XNNPACK.items():
        theirs = [name for name, kind in kinds.items() if _begins(kind, begins)]
        ours = [number for number, (kind, _) in enumerate(nodes) if kind in of_file and number not in taken]
        if len(theirs) == len(ours):
            found |= dict(zip(theirs, ours, strict=True))
    order = [found[name] for name in names if name in found]
    if order != sorted(order):
        found = {}
    modules = {name: _WRAPPER.sub("", nodes[number][1]) for name, number in (told | found).items()}
    return {name: module for name, module in modules.items() if module}


def _begins(kind: str, words: Sequence[str]) -> bool:
    """Whether the name of an operator of XNNPACK begins with some of these, before its layouts and types."""
    return kind.partition(" (")[0] in words
