"""What the installed ONNX Runtime's CPU provider runs: its registered kernels, and the opsets that it opens."""

from __future__ import annotations

import re
from typing import Any

from toolkit.errors import missing_extra
from toolkit.rules import observe_onnxruntime_qdq

_NO_END = 2**31 - 1
# Element types as tables write them.
DTYPES = {"float": "fp32", "double": "fp64", "float16": "fp16", "bfloat16": "bf16"}
_DOMAINS = ("", "com.microsoft")  # ai.onnx.ml and the internal layouts are not exported to


def operators() -> dict[str, dict[str, Any]]:
    """Every operator of the CPU provider with its kernels; of the ONNX domain also those that it composes. Those
    that were tried between Q/DQ pairs have the formats in which they run in integers there."""
    state, onnx = _imports()
    highest = opset_and_ir()[0]
    newest = _schema_versions(onnx)
    integers = observe_onnxruntime_qdq.forms()
    kernels: dict[str, dict[tuple[int, int | None], dict[str, list[str]]]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.provider != "CPUExecutionProvider" or kernel.domain not in _DOMAINS:
            continue
        since, until = kernel.version_range
        if until == _NO_END:  # it holds for the one revision of the operator that it was written for
            until = next((v - 1 for v in newest.get((kernel.domain, kernel.op_name), []) if v > since), None)
        name = f"{kernel.domain}:{kernel.op_name}" if kernel.domain else kernel.op_name
        types = kernels.setdefault(name, {}).setdefault((since, until), {})
        for parameter, constraint in kernel.type_constraints.items():
            found = types.setdefault(parameter, [])
            found += [dtype for dtype in map(_dtype, constraint) if dtype and dtype not in found]
    made = {
        name: {
            "kernels": [
                {"since": since, **({"until": until} if until else {}), "types": _sorted(types)}
                for (since, until), types in sorted(by_version.items(), key=lambda item: item[0][0])
            ]
        }
        for name, by_version in kernels.items()
    }
    composed = {
        schema.name
        for schema in onnx.defs.get_all_schemas()
        if not schema.domain
        and (schema.has_function or schema.has_context_dependent_function)
        and newest["", schema.name][0] <= highest
    }
    made |= {name: {"composed": True} for name in composed - set(made)}
    return {name: {**rule, **integers.get(name, {})} for name, rule in made.items()}


def opset_and_ir() -> tuple[int, int]:
    """The highest ONNX opset and IR version that the installed runtime opens a model of."""
    _imports()
    import onnxruntime
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "one", value[:1], value[1:])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4

    def opens(opset: int, ir_version: int) -> bool:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
        model.ir_version = ir_version
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # the runtime has no class of its own for this
            return False
        return True

    opset = max(n for n in range(17, 40) if opens(n, 8))
    return opset, max(n for n in range(8, 30) if opens(17, n))


def _imports() -> tuple[Any, Any]:
    try:
        import onnx
        import onnx.defs
        from onnxruntime.capi import onnxruntime_pybind11_state
    except ImportError as error:
        raise missing_extra("onnxruntime", "convert", "Observing ONNX Runtime") from error
    return onnxruntime_pybind11_state, onnx


def _schema_versions(onnx: Any) -> dict[tuple[str, str], list[int]]:
    """All revisions of every operator of the standard, by domain and name."""
    found: dict[tuple[str, str], list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        found.setdefault((schema.domain, schema.name), []).append(schema.since_version)
    return {key: sorted(versions) for key, versions in found.items()}


def _dtype(text: str) -> str | None:
    """`tensor(float)` → `fp32`; None for sequences, maps and the like."""
    match = re.fullmatch(r"tensor\((\w+)\)", text)
    return DTYPES.get(match.group(1), match.group(1)) if match else None


def _sorted(types: dict[str, list[str]]) -> dict[str, list[str]]:
    return {parameter: sorted(found) for parameter, found in sorted(types.items()) if found}
