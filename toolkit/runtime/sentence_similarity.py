"""The sentence-similarity task on the device: text → tensors → a direction of length 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.runtime.manifest import Manifest
from toolkit.runtime.pipeline import Pipeline
from toolkit.runtime.text import TextEncoder, encoder_of


class Embedder(Pipeline):
    """Callable: a list of n texts → float32[n, width]; one text → float32[width].

    Every row has length 1, so that the product of two is their cosine.
    """

    def make_encoder(self, manifest: Manifest) -> TextEncoder:
        return encoder_of(manifest)

    def prediction(self, answers: NDArray[np.float32], example: Any) -> NDArray[np.float32]:
        row: NDArray[np.float32] = answers[0]
        return row

    def decision(self, answers: NDArray[np.float32], example: Any) -> None:
        return None

    def __call__(self, examples: Any) -> NDArray[np.float32]:
        if isinstance(examples, list):
            width = int(self.manifest.data["artifact"]["outputs"][0]["shape"][-1])
            return np.asarray([self.predict(each) for each in examples], dtype=np.float32).reshape(-1, width)
        return np.asarray(self.predict(examples))


PIPELINE = Embedder
