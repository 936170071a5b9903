"""An ONNX file against a rule table: the nodes that the runtime does not take, each with the rule that it breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.export import onnx_file
from toolkit.rules.constraints import CONSTANT, NOT_CONSTANT

if TYPE_CHECKING:
    from toolkit.rules.table import Table

_DTYPES = {
    "FLOAT": "fp32", "DOUBLE": "fp64", "FLOAT16": "fp16", "BFLOAT16": "bf16", "INT8": "int8", "UINT8": "uint8",
    "INT16": "int16", "UINT16": "uint16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "INT4": "int4",
    "UINT4": "uint4", "FLOAT8E4M3FN": "fp8",
}  # fmt: skip
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_DYNAMIC = ("DynamicQuantizeLinear", "MatMulInteger", "ConvInteger")
_FUSED_DOMAIN = "com.microsoft"


@dataclass(frozen=True)
class Finding:
    """A node that a runtime does not take. `rule` is a rule of targets/shared/limits.yaml, or the operator's name
    where the table's own line on that operator refuses it, `opset` of the model as a whole, or one of
    `toolkit.rules.onnx_precision`."""

    node: str
    operator: str
    rule: str
    reason: str
    instead: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Findings:
    """What a table says of a graph: how many nodes it has, those that are refused, and operators that the table does
    not know."""

    nodes: int
    refused: list[Finding]
    unknown: list[str]


@dataclass(frozen=True)
class Graph:
    """A model's nodes with what is known of their tensors, those of inner graphs too."""

    model: Any
    opsets: Mapping[str, int]
    dtypes: Mapping[str, str]
    shapes: Mapping[str, list[int | str | None]]
    constants: Mapping[str, Any]


def check(path: Path, table: Table) -> Findings:
    """Hold every node of an ONNX file against a table. Raises MissingDependencyError without onnx, InputError for a
    file that cannot be read."""
    graph = read(onnx_file.read(path, most=onnx_file.LARGE))
    refused, unknown = [finding for finding in [opset(graph, table)] if finding], set()
    for found in findings(graph, table):
        if isinstance(found, Finding):
            refused.append(found)
        elif found is not None:
            unknown.add(found)
    return Findings(len(graph.model.graph.node), refused, sorted(unknown))


def findings(graph: Graph, table: Table) -> list[Finding | str | None]:
    """For each node of the main graph the rule that refuses it, or something in a graph inside it; the name of an
    operator that the table does not know; or None if it is taken. What the model's opset breaks is not told again."""
    return [_finding(node, graph, table) for node in graph.model.graph.node]


def _finding(node: Any, graph: Graph, table: Table) -> Finding | str | None:
    if node.op_type == "Constant" and not node.domain:  # it is read when the file is loaded; nothing runs
        return None
    found = _limit(node, graph, table) or _rule(node, graph, table)
    for attribute in node.attribute:
        if found is None and attribute.HasField("g"):
            inside = [_finding(each, graph, table) for each in attribute.g.node]
            refused = next((each for each in inside if isinstance(each, Finding)), None)
            found = refused or next((each for each in inside if each is not None), None)
            if refused is not None:
                found = Finding(node.name, node.op_type, refused.rule, f"inside it: {refused.reason}", refused.instead)
    return found


def opset(graph: Graph, table: Table) -> Finding | None:
    """The one finding of a model whose opset the runtime does not read."""
    number = graph.opsets.get("ai.onnx", 0)
    if (table.opset_min or 0) <= number <= (table.opset_max or number):
        return None
    return Finding("", "", "opset", f"{table.title} takes {table.opsets}; this is {number}", "export with --opset")


def read(model: Any) -> Graph:
    """What is known of a model's tensors without running it."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # what the file itself says of its tensors is left
        inferred = model.graph
    dtypes: dict[str, str] = {}
    shapes: dict[str, list[int | str | None]] = {}
    values = [v for graph in onnx_file.graphs(inferred) for v in (*graph.input, *graph.output, *graph.value_info)]
    for value in values:
        tensor = value.type.tensor_type
        dtypes[value.name] = _name(tensor.elem_type)
        if tensor.HasField("shape"):
            shapes[value.name] = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
    constants: dict[str, Any] = {}
    for graph in onnx_file.graphs(model.graph):
        constants |= {initializer.name: initializer for initializer in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
                constants[node.output[0]] = node.attribute[0].t
    for name, tensor in constants.items():
        dtypes[name], shapes[name] = _name(tensor.data_type), list(tensor.dims)
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    return Graph(model, opsets, dtypes, shapes, constants)


def _name(elem_type: int) -> str:
    import onnx

    name = str(onnx.TensorProto.DataType.Name(elem_type))
    return _DTYPES.get(name, name.lower())


def _value(tensor: Any) -> Any:
    import onnx

    return CONSTANT if onnx_file.external(tensor) else onnx.numpy_helper.to_array(tensor)


def _limit(node: Any, graph: Graph, table: Table) -> Finding | None:
    """The first of the table's rules on quantized graphs that a node breaks."""
    for name, reason in _broken(node, graph):
        if name in table.statements:
            said = table.statements[name]
            return Finding(node.name, node.op_type, name, f"{said.statement} ({reason})", said.instead)
    return None


def _broken(node: Any, graph: Graph) -> Iterator[tuple[str, str]]:
    """Rules of targets/shared/limits.yaml that a node breaks, and what it has that they forbid."""
    if node.domain == _FUSED_DOMAIN and node.op_type not in _QDQ:
        yield "no-fused-operators", f"{node.domain}:{node.op_type}"
    if node.op_type.startswith(("QLinear", "QGemm", "QAttention")):
        yield "no-qoperator", node.op_type
    if node.op_type in _DYNAMIC or node.op_type.startswith(("DynamicQuantize", "MatMulInteger")):
        yield "no-dynamic-quantization", node.op_type
    if node.op_type not in _QDQ:
        return
    # Quantized values go into a DequantizeLinear and come out of a QuantizeLinear, of its zero point's type.
    quantized = [graph.dtypes.get(name, "") for name in (*node.input[2:3], *node.input[:1], *node.output[:1])]
    if node.op_type == "DequantizeLinear" and graph.dtypes.get(node.input[0]) == "int32":
        yield "dq-int32", f"input {node.input[0]}"
    if any(dtype in ("int16", "uint16") for dtype in quantized):
        yield "no-16-bit-qdq", f"tensor {node.input[0]}"
    zero = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
    if zero is not None and (values := _value(zero)).any():
        yield "zero-point-zero", f"zero point {values.reshape(-1)[values.reshape(-1).nonzero()[0][0]]}"


def _rule(node: Any, graph: Graph, table: Table) -> Finding | str | None:
    """What the table's line on the node's operator says: a refusal, the name of an operator that it does not know, or
    nothing."""
    verdict = table.verdict(
        node.op_type,
        domain=node.domain,
        version=None if opset(graph, table) else graph.opsets.get(node.domain or "ai.onnx"),
        dtypes=data_types(node, graph),
        shapes=[graph.shapes[name] for name in node.input[:1] if name in graph.shapes] or None,
        inputs=_inputs(node, graph),
        attributes={each.name: _attribute(each) for each in node.attribute},
    )
    if verdict.status == "unsupported":
        return Finding(node.name, node.op_type, node.op_type, verdict.reason)
    return node.op_type if verdict.status == "unknown" else None


def _schema(node: Any, opsets: Mapping[str, int]) -> Any:
    import onnx

    try:
        return onnx.defs.get_schema(node.op_type, opsets.get(node.domain or "ai.onnx", 1), node.domain)
    except onnx.defs.SchemaError:
        return None


def _formals(node: Any, schema: Any) -> list[Any]:
    """The schema's description of each of a node's inputs; the last one stands for all that follow if it repeats."""
    known = list(schema.inputs)
    return [known[min(place, len(known) - 1)] for place in range(len(node.input))] if known else []


def data_types(node: Any, graph: Graph) -> dict[str, str]:
    """Element types of the inputs that share the first one's type parameter, by its name: the data, neither indices nor
    shapes."""
    schema = _schema(node, graph.opsets)
    if not node.input:
        return {}
    if schema is None:  # one of ONNX Runtime's own: nearly all of them call the type of their data T
        known = graph.dtypes.get(node.input[0], "undefined")
        return {"T": known} if node.domain == _FUSED_DOMAIN and known != "undefined" else {}
    formals = _formals(node, schema)
    # The first input of Where is its condition.
    parameter = formals[1 if node.op_type == "Where" else 0].type_str if formals else ""
    names = [name for name, formal in zip(node.input, formals, strict=True) if formal.type_str == parameter]
    dtypes = sorted({graph.dtypes[name] for name in names if graph.dtypes.get(name, "undefined") != "undefined"})
    return {parameter: dtypes[0]} if dtypes else {}


def _inputs(node: Any, graph: Graph) -> dict[str, Any]:
    """Values of the inputs after the first, by the schema's names for them."""
    schema = _schema(node, graph.opsets)
    if schema is None:
        return {}
    named = zip(node.input, _formals(node, schema), strict=True) if schema.inputs else ()
    found: dict[str, Any] = {}
    for place, (name, formal) in enumerate(named):
        if place and name:
            found[formal.name] = _value(graph.constants[name]) if name in graph.constants else NOT_CONSTANT
    return found


def _attribute(attribute: Any) -> Any:
    import onnx

    return onnx.helper.get_attribute_value(attribute)
