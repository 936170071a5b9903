"""The image-classification task on the device: image → tensor → logits → label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit.runtime.image import ImageEncoder
from toolkit.runtime.manifest import Manifest
from toolkit.runtime.pipeline import Classifier
from toolkit.storage import read_json


class ImageClassifier(Classifier):
    """Callable: one image → one prediction, a list of images → a list of predictions.

    An image is a path, a file's bytes, a Pillow image, or an array uint8[height, width] or [height, width, channels].
    A prediction is `{"label": str, "score": float, "scores": {label: probability}}`.
    """

    def make_encoder(self, manifest: Manifest) -> ImageEncoder:
        return ImageEncoder(read_json(manifest.preprocessing_file), manifest.input_name)

    def read(self, recorded: Any, folder: Path) -> Any:
        return folder / recorded["file"] if "file" in recorded else recorded["path"]


PIPELINE = ImageClassifier
