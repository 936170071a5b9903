"""Classes of operations whose kernels run at like rates: what a calibration measures, and an estimate goes by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

Work = Literal[
    "gemm", "attention", "convolution", "pointwise", "depthwise", "elementwise", "activation", "normalization", "copy",
    "view",
]  # fmt: skip
WORKS: tuple[Work, ...] = get_args(Work)
PRODUCTS: tuple[Work, ...] = ("gemm", "attention", "convolution", "pointwise", "depthwise")

# Operator types of both formats, in small letters and without underscores.
_OF_KIND: dict[Work, tuple[str, ...]] = {
    "view": (
        "reshape", "squeeze", "unsqueeze", "flatten", "identity", "shape", "size", "rank", "expanddims", "if", "loop",
        "scan", "constant",
    ),
    "copy": (
        "transpose", "concat", "concatenation", "split", "splitv", "slice", "stridedslice", "pad", "padv2", "expand",
        "broadcastto", "tile", "cast", "gather", "gathernd", "gatherelements", "gatherblockquantized",
        "embeddinglookup", "embedlayernormalization", "pack", "unpack", "depthtospace", "spacetodepth", "resize",
        "resizenearestneighbor", "constantofshape", "fill", "scatternd", "reordernchwc", "reorderinput",
        "reorderoutput", "dynamicupdateslice",
    ),
    "normalization": (
        "softmax", "logsoftmax", "layernormalization", "simplifiedlayernormalization", "skiplayernormalization",
        "skipsimplifiedlayernormalization", "rmsnormalization", "groupnormalization", "instancenormalization",
        "batchnormalization", "l2normalization", "lpnormalization", "reducemean", "reducesum", "reducemax",
        "reducel2", "reduceprod", "mean", "sum", "argmax", "topk", "topkv2", "globalaveragepool", "averagepool",
        "averagepool2d", "maxpool", "maxpool2d", "qlinearglobalaveragepool", "qlinearaveragepool", "cumsum",
        "qlinearsoftmax", "qlinearreducemean",
    ),
    "activation": (
        "gelu", "fastgelu", "biasgelu", "quickgelu", "tanh", "sigmoid", "logistic", "erf", "exp", "log", "softplus",
        "hardswish", "hardsigmoid", "swish", "silu", "mish", "elu", "pow", "sqrt", "rsqrt", "sin", "cos",
        "qlinearsigmoid", "qlinearleakyrelu",
    ),
}  # fmt: skip
_WORK_OF = {kind: work for work, kinds in _OF_KIND.items() for kind in kinds}


def of_convolution(kernel: Sequence[int], channels: int) -> Work:
    """The class of a convolution by the extent of its kernel and the input channels that one output reads."""
    if channels == 1:
        return "depthwise"
    return "pointwise" if math.prod(kernel) == 1 else "convolution"


def of_kind(kind: str) -> Work:
    """The class of an operator without products, by its type."""
    return _WORK_OF.get(kind.replace("_", "").lower(), "elementwise")
