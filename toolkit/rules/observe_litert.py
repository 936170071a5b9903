"""Which operators a LiteRT or tflite-runtime interpreter has, and in which versions.

A file of one operator is made for each builtin operator and version; the interpreter looks the operator up when it
opens the file. The files are made here, the interpreter runs in a process of its own, which a bad file may end.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from toolkit.errors import InputError, missing_extra

HIGHEST = 16  # version tried; no operator has come near it
_PROBE = Path(__file__).with_name("probe_litert.py")
# No operators of the interpreter: a graph delegated, a custom one, and a place that is kept free.
_NOT_BUILTIN = ("DELEGATE", "CUSTOM", "PLACEHOLDER_FOR_GREATER_OP_CODES")


def operators(python: str) -> dict[str, dict[str, Any]]:
    """Operators with their lowest and highest version, as the runtime of the interpreter `python` has them."""
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder))
        said = answers(python, _PROBE, Path(folder))
    found: dict[str, list[int]] = {}
    for name, has in said.items():
        operator, version, _ = name.split(".")
        found.setdefault(operator, []).extend([int(version)] if has else [])
    return {
        name: {"versions": [min(versions), max(versions)]} if versions else {"supported": False}
        for name, versions in found.items()
    }


def _write_files(folder: Path) -> None:
    try:
        from ai_edge_litert import schema_py_generated as schema
        from ai_edge_litert.tools import flatbuffer_utils
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Observing LiteRT") from error
    for name, code in vars(schema.BuiltinOperator).items():
        if not isinstance(code, int) or name in _NOT_BUILTIN:
            continue
        for version in range(1, HIGHEST + 1):
            content = flatbuffer_utils.convert_object_to_bytearray(_one_operator(schema, code, version))
            (folder / f"{name}.{version:02}.tflite").write_bytes(content)


def _one_operator(schema: Any, code: int, version: int) -> Any:
    """A graph of one operator without inputs: it can be looked up, not run."""
    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode, operator_code.version = code, version
    operator_code.deprecatedBuiltinCode = min(code, 127)
    operator = schema.OperatorT()
    operator.inputs, operator.outputs = [], []
    graph = schema.SubGraphT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs = 3, [operator_code], [graph]
    model.buffers = [schema.BufferT()]
    return model


def answers(python: str, probe: Path, folder: Path) -> dict[str, bool]:
    """What a probe says of each file of a folder, run by the interpreter `python`. A file that ends the probe's process
    is left out, and the probe goes on after it. Raises InputError if it cannot be run at all."""
    said: dict[str, bool] = {}
    fatal: set[str] = set()
    everything = sorted(path.name for path in folder.iterdir())
    while True:
        run = [python, str(probe), str(folder), *said, *fatal]
        try:
            done = subprocess.run(run, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InputError(f"Cannot run {python}: {error.strerror}.") from error
        lines = [line.split() for line in done.stdout.splitlines() if line.endswith((" yes", " no"))]
        said |= {name: answer == "yes" for name, answer in lines}
        if done.returncode == 0:
            return said
        if not lines and not said:
            raise InputError(f"{python} has no LiteRT runtime: {done.stderr.strip().splitlines()[-1]}")
        left = [name for name in everything if name not in said and name not in fatal]
        if not left:  # it ended badly after the last file
            return said
        fatal.add(left[0])
