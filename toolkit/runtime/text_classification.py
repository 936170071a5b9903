"""The text-classification task on the device: text → tensors → logits → label."""

from __future__ import annotations

from toolkit.runtime.manifest import Manifest
from toolkit.runtime.pipeline import Classifier
from toolkit.runtime.text import TextEncoder, encoder_of


class TextClassifier(Classifier):
    """Callable: one text → one prediction, a list of texts → a list of predictions.

    A prediction is `{"label": str, "score": float, "scores": {label: probability}}`.
    """

    def make_encoder(self, manifest: Manifest) -> TextEncoder:
        return encoder_of(manifest)


PIPELINE = TextClassifier
