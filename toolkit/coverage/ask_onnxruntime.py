"""Asks ONNX Runtime's CPU provider which nodes of a file it runs in another number format than the file says. Runs in
a process of its own, which a bad file may end.

    python ask_onnxruntime.py MODEL.onnx ANSWER.json

Every node gets a name that says its place, and the graph that the runtime optimizes tells what became of it: it reads
what DequantizeLinear makes, or what a Cast of fp16 to fp32 makes that the runtime put in. A node that is gone became
part of the one that its output leads to. The answer: `{"version": str, "nodes": int, "changed": [int]}`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from toolkit.rules.observe_onnxruntime_qdq import optimized

NO_DATA = (
    "Cast",
    "Constant",
    "ConstantOfShape",
    "Shape",
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
)
INSERTED = "InsertedPrecisionFreeCast_"


def half_tensors(model: Any) -> set[str]:
    """Tensors that are fp16 in a file."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except Exception:  # what the file itself says is left
        inferred = model
    values = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    found = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16}
    return found | {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT16}


def changed(model: Any, made: Any) -> list[int]:
    """Places of the nodes that run in another format, given the model that was handed over and the optimized one."""
    half = half_tensors(model)
    before = {name: node for node in model.graph.node for name in node.output}
    constants = {t.name for t in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    by_name: dict[str, Any] = {}
    for node in made.graph.node:
        by_name.setdefault(node.name.split("/")[0], node)
    producers = {name: node for node in made.graph.node for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def kept(node: Any) -> Any:
        """What a node became: itself, or the first node behind it that is left."""
        seen: set[str] = set()
        waiting = [node]
        while waiting:
            each = waiting.pop(0)
            if each.name in by_name:
                return by_name[each.name]
            seen.add(each.name)
            behind = [reader for name in each.output for reader in readers.get(name, [])]
            waiting += [reader for reader in behind if reader.name not in seen]
        return None

    def is_cast(node: Any) -> bool:
        """Whether it works in fp32 where fp16 is written: the runtime put casts around it, whose fp32 side it reads or
        writes."""
        return any(name.startswith(INSERTED) for name in (*node.input, *node.output))

    found = []
    for place, node in enumerate(model.graph.node):
        if node.op_type in NO_DATA:
            continue
        sources = [before[name] for name in node.input if name in before]
        paired = any(s.op_type == "DequantizeLinear" and s.input[0] not in constants for s in sources)
        became = by_name.get(node.name)
        if paired:
            if became is None:
                continue  # part of a kernel in integers: what stays in float keeps its name
            source = [producers.get(name) for name in became.input[:2]]
            if any(s is not None and s.op_type == "DequantizeLinear" and s.input[0] in producers for s in source):
                found.append(place)
        elif any(name in half for name in (*node.input, *node.output)):
            target = became or kept(node)
            if target is not None and is_cast(target):
                found.append(place)
    return found


def main(path: str, answer: str) -> None:
    """Read, ask, write."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    for place, node in enumerate(model.graph.node):
        node.name = f"node{place}"
    with tempfile.TemporaryDirectory() as folder:
        made = optimized(model, Path(folder))
    said = {"version": onnxruntime.__version__, "nodes": len(model.graph.node), "changed": changed(model, made)}
    Path(answer).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
