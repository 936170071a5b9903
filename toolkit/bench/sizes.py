"""Encoded examples repeated to a fixed batch and length, for sweeps and for times that compare with other tools'."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.engines import Arrays
from toolkit.errors import InputError


def resized(arrays: Arrays, artifact: Mapping[str, Any], sizes: Mapping[str, int]) -> Arrays:
    """`arrays` of one example with the batch and the length of `sizes`; a size that is not named stays.

    The batch is the first axis; the length is the second one of inputs of two axes. Values are repeated from the
    beginning. Raises InputError for a size that the artifact's file does not have.
    """
    unknown = sorted(set(sizes) - {"batch", "length"})
    if unknown:
        raise InputError(f"'{unknown[0]}' is no size of an input; give batch or length.")
    lengths = artifact.get("lengths")
    fixed = {tensor["name"]: list(tensor.get("shape", ())) for tensor in artifact["inputs"]}
    found: Arrays = {}
    for name, array in arrays.items():
        shape = list(array.shape)
        for axis, size in (("batch", 0), ("length", 1)):
            wanted = sizes.get(axis)
            if wanted is None or (axis == "length" and array.ndim != 2):
                continue
            takes = fixed.get(name, [])
            known = takes[size] if size < len(takes) else None
            if axis == "length" and lengths and wanted not in lengths:
                raise InputError(f"The bundle's file has the lengths {', '.join(map(str, lengths))}, and not {wanted}.")
            if isinstance(known, int) and known > 0 and known != wanted and not (axis == "length" and lengths):
                raise InputError(
                    f"The bundle's file has a fixed {axis} of {known} at input '{name}', and not {wanted}."
                )
            shape[size] = wanted
        if array.ndim == 2 and shape[1] != array.shape[1]:
            array = np.stack([np.resize(row, shape[1]) for row in array])
        found[name] = np.resize(array, shape) if shape[0] != array.shape[0] else array
    return found
