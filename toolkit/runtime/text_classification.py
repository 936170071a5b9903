"""The text-classification task on the device: text → tensors → logits → label."""

from __future__ import annotations

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Engine
from toolkit.runtime import text
from toolkit.runtime.manifest import Manifest


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Softmax over the last axis, computed in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


class TextClassifier:
    """Callable: one text → one prediction, a list of texts → a list of predictions.

    A prediction is `{"label": str, "score": float, "scores": {label: probability}}`.
    """

    def __init__(self, manifest: Manifest, engine: Engine) -> None:
        self.manifest = manifest
        self.engine = engine
        self.encoder = text.from_spec(manifest.folder, manifest.data["preprocessing"], manifest.data["artifact"])
        self._labels = manifest.labels
        self._output = str(manifest.data["artifact"]["outputs"][0]["name"])

    def logits(self, example: str) -> NDArray[np.float32]:
        """Raw model output for one text, float32[labels]."""
        return np.asarray(self.engine.run(self.encoder(example))[self._output][0], dtype=np.float32)

    def _predict(self, example: str) -> dict[str, Any]:
        scores = softmax(self.logits(example))
        best = int(scores.argmax())
        return {
            "label": self._labels[best],
            "score": float(scores[best]),
            "scores": {label: float(score) for label, score in zip(self._labels, scores, strict=True)},
        }

    @overload
    def __call__(self, examples: str) -> dict[str, Any]: ...
    @overload
    def __call__(self, examples: list[str]) -> list[dict[str, Any]]: ...
    def __call__(self, examples: str | list[str]) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(examples, list):
            return [self._predict(example) for example in examples]
        return self._predict(examples)

    def close(self) -> None:
        """Release the engine."""
        self.engine.close()


PIPELINE = TextClassifier
