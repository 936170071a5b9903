"""Reads the table of operators that onnx-tensorrt, the source of TensorRT's ONNX parser, publishes with a release
(`docs/operators.md` of its branch `release/VERSION-GA`)."""

from __future__ import annotations

import re
from typing import Any

from toolkit.errors import InputError

_DTYPES = {
    "FP32": "fp32", "FP16": "fp16", "BF16": "bf16", "FP8": "fp8", "FP4": "fp4", "DOUBLE": "fp64", "INT64": "int64",
    "INT32": "int32", "INT8": "int8", "INT4": "int4", "UINT8": "uint8", "BOOL": "bool",
    "INF64": "int64",  # so spelled in the release 10.0
}  # fmt: skip

# How the document words a restriction → what it says as a check.
_CHECKED: list[tuple[str, dict[str, Any]]] = [
    (r"`x_zero_point` must be (zero|0)", {"input": "x_zero_point", "equals": 0}),
    (r"`y_zero_point` must be (zero|0)", {"input": "y_zero_point", "equals": 0}),
    (r"`K` input must be less than 3840", {"input": "K", "below": 3840}),
    (r"`K` input must be an initializer", {"input": "K", "constant": True}),
    (r"`sorted` must be 1", {"attribute": "sorted", "equals": 1}),
    (r"`axes` must be (an init\w+|a constant tensor|resolvable)", {"input": "axes", "constant": True}),
    (r"`axis` must be (an initializer|a build-time constant)", {"input": "axis", "constant": True}),
    (r"`axis` must be -2", {"attribute": "axis", "equals": -2}),
    (r"`depth` must be a build-time constant", {"input": "depth", "constant": True}),
    (r"`input_forget` attribute must be 0", {"attribute": "input_forget", "equals": 0}),
    (r"`layout` attribute must be 0", {"attribute": "layout", "equals": 0}),
    (r"`dilations` must be empty or all ones", {"attribute": "dilations", "equals": 1}),
    (r"2D or 3D [Pp]ooling only", {"rank": [4, 5]}),
    (r"2D or 3D (de)?convolutions only", {"rank": [4, 5]}),
    (r"Weights `W` must be an init\w+", {"input": "W", "constant": True}),
    (r"Input must be 4D", {"rank": [4, 4]}),
    (r"Input rank must be >=3 & <=5", {"rank": [3, 5]}),
    (r"`input` must have static dimensions", {"static": True}),
    (r"Dynamic input shapes are unsupported", {"static": True}),
]  # fmt: skip
# The same for those that no fact about a single node decides: in words.
_TOLD: list[tuple[str, str]] = [
    (r"`Indices` output tensor unsupported", "no output Indices"),
    (r"Only the first output `Y` is supported", "first output only"),
    (r"For bidirectional \w+, activation functions must be the same", "bidirectional: same activations both ways"),
    (r"must have broadcastable shapes", "both branches: shapes that broadcast, names that differ"),
    (r"must have the same rank and must have different names", "both branches: same rank, names that differ"),
    (r"Scan output length cannot be dynamic", "scan outputs of a fixed length"),
    (r"shape of Loop carried dependencies must be the same", "carried values keep their shape"),
    (r"Ellipsis and diagonal operations are not supported", "no ellipsis, no diagonal"),
    (r"Broadcasting between inputs is not supported", "no broadcasting between inputs"),
    (r"Scales `scale` and biases `B` must be initializers", "scale and B constant"),
    (r"`start`, `limit`, and `delta` inputs are initializers", "in float: start, limit and delta constant"),
    (r"`sparse_value`, `value_string`", "dense numbers only"),
    (r"`seed` value is ignored", "the seed is ignored"),
    (r"is_tra\w*ning` must be an initializer", "is_training constant and false"),
    (r"`axis` dimension of input must be a build-time constant", "size of the axis fixed"),
    (r"1D or 2D spatial dimensions. `pads`", "1 or 2 spatial dimensions, pads alike at both ends"),
    (r"`reduction` (other than `none` )?is not supported", "no reduction"),
    (r"Supported resize modes: `nearest`, `linear`", "mode nearest or linear"),
    (r"Antialiasing is not supported", "no antialiasing; aspect ratio policy stretch"),
    (r"`max_output_boxes_per_class`, `iou_threshold`, and `score_threshold` must be init",
     "limits and thresholds constant; the output is padded to its largest size"),
    (r"`attn_mask ?` must be 4D", "Q, K, V and mask of 4 dimensions; no past, no present, no softcap"),
    (r"`position_ids` must be INT64", "position_ids of int64"),
    (r"`frame_step` and `window` must be an initializer", "frame_step and window constant, real input"),
    (r"`past_cache` and `update` must be 4D", "past_cache and update of 4 dimensions"),
    (r"composed from ONNX operators in the form of a model local function", ""),
]  # fmt: skip


def operators(text: str, version: str) -> dict[str, dict[str, Any]]:
    """The operators of a release's document. Raises InputError for one that is of another release, or has a
    restriction or a type that is not known here."""
    stated = re.search(r"TensorRT (\d+\.\d+) supports operators", text)
    if stated is None or stated.group(1).split(".")[0] != version.split(".")[0]:
        raise InputError(f"This is not the list of operators of TensorRT {version}.")
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:]]
        if len(cells) >= 2 and re.fullmatch(r"[A-Z]\w+", cells[0]) and cells[1][:1] in ("Y", "N"):
            found[cells[0]] = _rule(cells)
    return found


def _rule(cells: list[str]) -> dict[str, Any]:
    if cells[1].startswith("N"):
        return {"supported": False}
    dtypes = [name.strip() for name in cells[2].split(",") if name.strip()] if len(cells) > 2 else []
    unknown = [name for name in dtypes if name not in _DTYPES]
    if unknown:
        raise InputError(f"{cells[0]}: no known type: {', '.join(unknown)}.")
    restriction = cells[3] if len(cells) > 3 else ""
    constraints = [check for pattern, check in _CHECKED if re.search(pattern, restriction)]
    limits = [words for pattern, words in _TOLD if words and re.search(pattern, restriction)]
    if restriction and not constraints and not any(re.search(pattern, restriction) for pattern, _ in _TOLD):
        raise InputError(f"{cells[0]}: no known restriction: {restriction}")
    if cells[1] != "Y":
        limits.insert(0, "experimental")
    return {
        "dtypes": [_DTYPES[name] for name in dtypes],
        **({"limits": limits} if limits else {}),
        **({"constraints": constraints} if constraints else {}),
    }
