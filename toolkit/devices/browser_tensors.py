"""What a page is given and gives: a bundle's encoded examples as one file, and outputs as the page hands them over."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from toolkit.engines import Arrays, as_float32
from toolkit.errors import InputError
from toolkit.runtime.manifest import Manifest

_LITERT_TAKES = {"float32", "int32", "uint8"}
_ALIGNED = 8  # bytes; a page's arrays begin at multiples of what they hold


def feeds(manifest: Manifest, arrays: Arrays) -> tuple[str | None, Arrays]:
    """(signature, arrays in the types and shapes that the bundle's file takes). Raises InputError."""
    inputs = manifest.data["artifact"]["inputs"]
    if manifest.engine != "litert":
        return None, {each["name"]: np.asarray(arrays[each["name"]], each["dtype"], order="C") for each in inputs}
    from toolkit.engines import litert

    unknown = sorted({each["dtype"] for each in inputs} - _LITERT_TAKES)
    if unknown:
        raise InputError(
            f"{manifest.artifact} takes {unknown[0]}, and LiteRT.js gives a file no other inputs than "
            f"{', '.join(sorted(_LITERT_TAKES))}. Convert for a target whose files take float32."
        )
    lengths = manifest.data["artifact"].get("lengths")
    length = next(iter(arrays.values())).shape[1] if lengths else None
    fed = {}
    for each in inputs:
        tensor = litert.Tensor(np.dtype(each["dtype"]), tuple(each["shape"]), 0.0, 0)
        fed[each["name"]] = litert.fed(each["name"], arrays[each["name"]], tensor)
    return litert.signature_name(length), fed


def packed(fed: Sequence[tuple[str | None, Arrays]]) -> tuple[list[dict[str, Any]], bytes]:
    """Inputs as one file, and where in it each of them lies."""
    described: list[dict[str, Any]] = []
    content = bytearray()
    for signature, arrays in fed:
        inputs = []
        for name, array in arrays.items():
            content += bytes(-len(content) % _ALIGNED)
            inputs.append(
                {
                    "name": name, "dtype": str(array.dtype), "dims": list(array.shape), "offset": len(content),
                    "count": int(array.size),
                }
            )  # fmt: skip
            content += array.tobytes()
        described.append({"signature": signature, "inputs": inputs})
    return described, bytes(content)


def unpacked(outputs: Sequence[Mapping[str, Any]]) -> Arrays:
    """Outputs as the page hands them over, in float32 where they were in half of it."""
    found = {}
    for each in outputs:
        array = np.frombuffer(base64.b64decode(each["data"]), np.dtype(each["dtype"]))
        found[str(each["name"])] = as_float32(array.reshape(each["dims"]))
    return found
