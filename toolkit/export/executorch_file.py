"""What an ExecuTorch file holds, told from the file itself by ExecuTorch's own reader. Runs nothing.

What a backend took is a call in the program, with a graph of the backend's own behind it; XNNPACK's is read too.
"""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import logging
import math
import re
import subprocess
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.engines import executorch as engine
from toolkit.errors import InputError, missing_extra

XNNPACK = "XnnpackBackend"
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "DOUBLE": "float64", "LONG": "int64", "INT": "int32", "SHORT": "int16",
    "CHAR": "int8", "BYTE": "uint8", "BFLOAT16": "bfloat16",
}  # fmt: skip
# XNNPACK's types of values: those of weights, and how an activation is quantized.
_WEIGHTS = {
    "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "pfp32": "float32", "int32": "int32",
    "qint32": "int32", "qcint32": "int32", "qint8": "int8", "qcint8": "int8", "quint8": "uint8", "qcint4": "int4",
    "qbint4": "int4",
}  # fmt: skip
_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int4": 0.5}
_LOOK_UP = "aten::embedding"
_OFFSET, _SIZE = slice(10, 14), slice(14, 18)  # of a graph in what XNNPACK is given
_SECONDS = 60
_INFINITE = re.compile(r"(: *-?)inf\b")  # as flatc writes it; a parser of JSON takes another word


@dataclass
class Delegate:
    """What one backend took: in how many parts, and its operators by count where they can be read."""

    partitions: int = 0
    operators: Counter[str] = field(default_factory=Counter)


@dataclass
class ExecutorchFile:
    """A file's first method. `operators` are those that no backend took; `weights` is the number of weights by type,
    `read_bytes` those of all but tables, of which a row is read."""

    methods: list[str]
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    longest: int | None
    operators: Counter[str]
    delegates: dict[str, Delegate]
    weights: Counter[str]
    read_bytes: int
    activation_bytes: int
    quantized: str

    @property
    def precision(self) -> str:
        """The narrowest numbers that it computes or stores with."""
        named = (("int4", "int4"), ("int8", "int8"), ("float16", "fp16"), ("bfloat16", "bf16"))
        return next((precision for dtype, precision in named if self.weights[dtype]), "fp32")


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what torch, torchao and ExecuTorch log and warn of: deprecations, and libraries for GPUs."""
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(previous)


def read(path: Path) -> ExecutorchFile:
    """Raises InputError for a file that is damaged, or none."""
    engine.program(path)
    try:
        with silent():
            from executorch.exir._serialize._program import deserialize_pte_binary
    except ImportError as error:
        raise missing_extra("executorch", "executorch", "Reading an ExecuTorch file") from error
    try:
        content = path.read_bytes()
        return _facts(deserialize_pte_binary(content).program, content)
    except (OSError, InputError):
        raise
    except Exception as error:  # struct.error, IndexError, …: whatever the bytes lead to
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is no ExecuTorch file that can be read: {first}") from error


def _facts(program: Any, content: bytes) -> ExecutorchFile:
    plan = next((each for each in program.execution_plan if each.name == engine.METHOD), program.execution_plan[0])
    values = [value.val for value in plan.values]
    names = engine.input_names(content, len(plan.inputs))
    found = ExecutorchFile(
        methods=[each.name for each in program.execution_plan],
        inputs=[_tensor(name, values[place]) for name, place in zip(names, plan.inputs, strict=True)],
        outputs=[_tensor(name, values[place]) for name, place in zip(_outputs(plan), plan.outputs, strict=True)],
        longest=None, operators=Counter(), delegates={}, weights=Counter(), read_bytes=0,
        activation_bytes=sum(plan.non_const_buffer_sizes), quantized="no",
    )  # fmt: skip
    dynamic = [values[place] for place in plan.inputs if _is_dynamic(values[place])]
    found.longest = min((int(each.sizes[-1]) for each in dynamic), default=None)
    looked_up: set[int] = set()
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if hasattr(call, "op_index"):
                operator = plan.operators[call.op_index]
                found.operators[operator.name] += 1
                looked_up |= {call.args[0]} if operator.name == _LOOK_UP else set()
    for place, value in enumerate(values):
        if type(value).__name__ == "Tensor" and value.data_buffer_idx and value.allocation_info is None:
            _count(found, _dtype(value), math.prod(value.sizes), is_read=place not in looked_up)
    payloads = []
    for delegate in plan.delegates:
        found.delegates.setdefault(delegate.id, Delegate()).partitions += 1
        if delegate.id == XNNPACK:
            payloads.append(program.backend_delegate_data[delegate.processed.index].data)
    kinds = set()
    for graph in _xnnpack_graphs(payloads):
        for node in graph["xnodes"]:
            found.delegates[XNNPACK].operators[node["xnode_union_type"].removeprefix("XNN").lstrip("_")] += 1
        kinds |= {_count_value(found, value["xvalue_union"]) for value in graph["xvalues"]}
    weights_alone = "no" if found.precision == "fp32" else "weights alone"
    found.quantized = " and ".join(sorted(filter(None, kinds))) or weights_alone
    return found


def _outputs(plan: Any) -> list[str]:
    if len(plan.outputs) == 1:
        return [engine.OUTPUT]
    return [f"{engine.OUTPUT}_{number}" for number in range(len(plan.outputs))]


def _is_dynamic(tensor: Any) -> bool:
    return type(tensor).__name__ == "Tensor" and int(tensor.shape_dynamism) != 0


def _dtype(tensor: Any) -> str:
    name: str = tensor.scalar_type.name
    return _DTYPES.get(name, name.lower())


def _tensor(name: str, value: Any) -> dict[str, Any]:
    """A tensor's description: of a dynamic one the file says only that it is, and this toolkit writes one dynamic size,
    the length of a text, which is the second of all."""
    if type(value).__name__ != "Tensor":
        return {"name": name, "dtype": type(value).__name__.lower(), "shape": []}
    shape: list[Any] = [int(size) for size in value.sizes]
    if _is_dynamic(value) and len(shape) > 1:
        shape[1] = "length"
    return {"name": name, "dtype": _dtype(value), "shape": shape}


def _count(found: ExecutorchFile, dtype: str, size: int, is_read: bool = True) -> None:
    found.weights[dtype] += size
    found.read_bytes += round(size * _BYTES.get(dtype, 1)) if is_read else 0


def _count_value(found: ExecutorchFile, value: dict[str, Any]) -> str:
    """Count a value of XNNPACK's graph if it is a weight; of another, how it is quantized."""
    tensor = value.get("tensor_value", value)
    kind = tensor["datatype"].removeprefix("xnn_datatype_")
    if tensor["constant_buffer_idx"]:
        _count(found, _WEIGHTS.get(kind, kind), math.prod(tensor["dims"]))
        return ""
    return {"qdint8": "dynamic", "qpint8": "dynamic", "qint8": "static", "quint8": "static"}.get(kind, "")


def _xnnpack_graphs(payloads: Sequence[bytes]) -> list[dict[str, Any]]:
    """XNNPACK's graphs as flatc, which comes with ExecuTorch, tells them."""
    if not payloads:
        return []
    from executorch.backends.xnnpack import serialization
    from executorch.exir._serialize._flatbuffer import _get_flatc_path

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        schema = importlib.resources.files(serialization).joinpath("schema.fbs").read_bytes()
        (folder / "schema.fbs").write_bytes(schema)
        files = []
        for number, payload in enumerate(payloads):
            start, size = (int.from_bytes(payload[place], "little") for place in (_OFFSET, _SIZE))
            files.append(folder / f"{number}.bin")
            files[-1].write_bytes(payload[start : start + size])
        subprocess.run(
            [_get_flatc_path(), "--json", "--defaults-json", "--strict-json", "--raw-binary", "-o", str(folder),
             str(folder / "schema.fbs"), "--", *map(str, files)],
            check=True, capture_output=True, timeout=_SECONDS,
        )  # fmt: skip
        texts = [file.with_suffix(".json").read_text(encoding="utf-8") for file in files]
        return [json.loads(_INFINITE.sub(r"\1Infinity", text)) for text in texts]
