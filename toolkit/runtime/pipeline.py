"""What a loaded bundle is: a callable that takes raw examples. What all tasks share of it; numpy and one engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays, Engine
from toolkit.runtime.encoder import Encoder
from toolkit.runtime.manifest import Manifest


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Softmax over the last axis, computed in float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


class Pipeline(ABC):
    """A bundle in its engine: one raw example → one prediction, a list of examples → a list of predictions.

    Without an engine it encodes, and reads answers that are there.
    """

    def __init__(self, manifest: Manifest, engine: Engine | None) -> None:
        self.manifest = manifest
        self._engine = engine
        self.labels = manifest.labels
        self.encoder = self.make_encoder(manifest)
        self._output = str(manifest.data["artifact"]["outputs"][0]["name"])

    @property
    def engine(self) -> Engine:
        """The loaded artifact."""
        assert self._engine is not None  # noqa: S101 - `toolkit.load` gives one
        return self._engine

    @abstractmethod
    def make_encoder(self, manifest: Manifest) -> Encoder:
        """The encoder that the manifest's `preprocessing` and `artifact` sections describe."""

    @abstractmethod
    def prediction(self, answers: NDArray[np.float32], example: Any) -> Any:
        """What the answers to one example mean to an application."""

    @abstractmethod
    def decision(self, answers: NDArray[np.float32], example: Any) -> Any:
        """The part of a prediction that must be the same on every machine, as JSON; None if there is none."""

    def rows(self, output: Any, arrays: Arrays) -> Any:
        """The rows of the answers in the engine's output for encoded examples; most outputs are the rows."""
        return output

    def answers(self, example: Any) -> NDArray[np.float32]:
        """What the model gives for one example, float32[rows, width]."""
        arrays = self.encoder(example)
        return np.asarray(self.rows(self.engine.run(arrays)[self._output], arrays), dtype=np.float32)

    def predict(self, example: Any) -> Any:
        """The prediction for one example."""
        return self.prediction(self.answers(example), example)

    def __call__(self, examples: Any) -> Any:
        if isinstance(examples, list):
            return [self.predict(example) for example in examples]
        return self.predict(examples)

    def watch(self, encoder: Callable[[Encoder], Any], engine: Callable[[Engine], Any]) -> None:
        """Have encoder and engine wrapped by those who want to see what passes through them."""
        self.encoder, self._engine = encoder(self.encoder), engine(self.engine)

    def read(self, recorded: Any, folder: Path) -> Any:
        """The raw example that a golden example's `input` stands for; `folder` is where its files lie."""
        return recorded

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()


class Classifier(Pipeline):
    """One row of logits → `{"label": str, "score": float, "scores": {label: probability}}`."""

    def logits(self, example: Any) -> NDArray[np.float32]:
        """What the model gives for one example, float32[labels]."""
        row: NDArray[np.float32] = self.answers(example)[0]
        return row

    def prediction(self, answers: NDArray[np.float32], example: Any) -> dict[str, Any]:
        scores = softmax(answers[0])
        best = int(scores.argmax())
        return {
            "label": self.labels[best],
            "score": float(scores[best]),
            "scores": {label: float(score) for label, score in zip(self.labels, scores, strict=True)},
        }

    def decision(self, answers: NDArray[np.float32], example: Any) -> str:
        return self.labels[int(answers[0].argmax())]
