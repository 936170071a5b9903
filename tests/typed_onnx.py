"""Typed ONNX files for the tests of TensorRT: the two-layer MiniLM in fp16, and a small network of convolutions in
float and in int8, all made by this toolkit's own stages."""

from __future__ import annotations

import json
from pathlib import Path

from tests.networks import CLASSES, image_folder, network_file
from toolkit import modules, network, steps, tasks

SIDE = 24


def encoder(tuned: Path, folder: Path) -> Path:
    """MiniLM in fp16: an artifact folder."""
    steps.quantize(str(tuned), str(folder / "encoder"), method="fp16", engine="tensorrt")
    return folder / "encoder"


def convolutions(folder: Path, method: str | None) -> Path:
    """The small network for TensorRT, quantized by `method` or in float: an artifact folder."""
    import torch

    torch.manual_seed(0)
    spec = {"resize": {"height": SIDE, "width": SIDE}, "channels": 1}
    work = folder / "network"
    if not work.exists():
        (work / "model").mkdir(parents=True)
        code = modules.imported(f"{network_file(work)}:build", None, work / "cache", False)
        network.load(code, tasks.get("image-classification"), list(CLASSES), spec).save_pretrained(work / "model")
        (work / "model" / "preprocessor.json").write_text(json.dumps(spec))
        image_folder(work / "images", 20)
    output = folder / f"network-{method or 'float'}"
    model = str(work / "model")
    if method is None:
        steps.export(model, str(output), engine="tensorrt", lengths=[1], allow_code=True)
    else:
        options = {"data": str(work / "images"), "allow_code": True}
        steps.quantize(model, str(output), method=method, engine="tensorrt", options=options)
    return output
