"""A LiteRT file against a rule table: operators that the runtime does not take, each with the rule that it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import missing_extra
from toolkit.rules.onnx_graph import Finding, Findings

if TYPE_CHECKING:
    from toolkit.rules.table import Table

_DTYPES = {
    "FLOAT32": "fp32", "FLOAT16": "fp16", "INT8": "int8", "UINT8": "uint8", "INT16": "int16", "INT32": "int32",
    "INT64": "int64", "BOOL": "bool", "INT4": "int4",
}  # fmt: skip
_INTEGERS_ONLY = "edgetpu-full-integer"  # a rule of targets/shared/limits.yaml


def check(path: Path, table: Table) -> Findings:
    """Hold every operator of every signature of a LiteRT file against a table; of several signatures that say the same,
    the first. Raises MissingDependencyError without ai-edge-litert."""
    try:
        from ai_edge_litert import schema_py_generated as schema
    except ImportError as error:
        raise missing_extra("ai-edge-litert", "litert", "Checking a LiteRT file against a rule table") from error
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    types = {value: name for name, value in vars(schema.TensorType).items() if isinstance(value, int)}
    refused: dict[tuple[str, str], Finding] = {}
    unknown, nodes = set(), 0
    for graph in model.subgraphs:
        for operator in graph.operators:
            nodes += 1
            code = model.operatorCodes[operator.opcodeIndex]
            kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
            found = _judge(kind, code.version, _tensors(graph, operator, types), table)
            if found is None:
                unknown.add(kind)
            elif found.rule:
                refused.setdefault((found.node, found.rule), found)
    return Findings(nodes, list(refused.values()), sorted(unknown))


def _tensors(graph: Any, operator: Any, types: dict[int, str]) -> list[tuple[str, str, list[int]]]:
    """(name, element type, shape) of what an operator gives and of the data that it works on, its first input."""
    from toolkit.export.flatbuffer import short_name

    found = [graph.tensors[index] for index in (*operator.outputs[:1], *operator.inputs[:1]) if index >= 0]
    dtypes = [_DTYPES.get(types[each.type], types[each.type].lower()) for each in found]
    return [
        (short_name(each.name.decode()), dtype, [int(size) for size in each.shape])
        for each, dtype in zip(found, dtypes, strict=True)
    ]


def _judge(kind: str, version: int, tensors: list[tuple[str, str, list[int]]], table: Table) -> Finding | None:
    """What a table says of an operator: a finding, one without a rule if it is taken, None if it is not known."""
    node = tensors[0][0]
    floats = sorted({dtype for _, dtype, _ in tensors if dtype.startswith("fp")})
    if floats and _INTEGERS_ONLY in table.statements:
        said = table.statements[_INTEGERS_ONLY]
        return Finding(node, kind, _INTEGERS_ONLY, f"{said.statement} ({floats[0]})", said.instead)
    verdict = table.verdict(
        kind,
        version=version,
        dtypes=sorted({dtype for _, dtype, _ in tensors}),
        shapes=[shape for _, _, shape in tensors],
    )
    if verdict.status == "unknown":
        return None
    return Finding(node, kind, kind if verdict.status == "unsupported" else "", verdict.reason)
