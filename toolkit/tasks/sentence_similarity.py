"""Sentence similarity: a text becomes a direction, and texts that belong together point the same way.

Pooling and normalization are part of the exported graph. The data are pairs of texts that belong together, such as a
question and its answer; the score is how often the first text of a pair finds its second one among those of all pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import data
from toolkit.errors import InputError
from toolkit.tasks.task import Example, split
from toolkit.tasks.text import TextPreparation, TextTask

FIRST_COLUMNS = ("query", "question", "anchor", "sentence1", "text1", "title", "text")
SECOND_COLUMNS = ("passage", "answer", "positive", "document", "sentence2", "text2", "body")
_SHARPNESS = 20.0  # cosines are multiplied by it before they compete (Gao, Yao and Chen, 2021)
_AT = (1, 10)


class PairPreparation(TextPreparation):
    """`text_column` and `pair_column`: the columns of the two texts."""

    pair_column: str | None = None


class SentenceSimilarity(TextTask):
    """A text becomes a direction."""

    NAME = "sentence-similarity"
    SCORE_NAME = "recall@10"
    ANSWERS = "vectors"
    MODEL_CLASS = "AutoModel"
    HEAD = ""
    GROUP = 2  # the two texts of a pair
    KEEPS_WIDTH = True  # directions of another width can be compared with none that were stored before
    Preparation = PairPreparation

    # Data

    def prepare(self, source: Path, output: Path, parameters: PairPreparation, context: Any) -> dict[str, Any]:
        path = Path(parameters.data)
        rows = data.where(data.read_rows(path), path, parameters.where)
        first = data.find_column(path, rows, parameters.text_column, FIRST_COLUMNS, "first text", "--text-column")
        second = data.find_column(
            path, rows, parameters.pair_column, SECOND_COLUMNS, "second text", "--option pair_column=NAME"
        )
        dropped = data.Dropped()
        pairs = _pairs(rows, first, second, dropped)
        if len(pairs) < 3:
            raise InputError(f"{path}: {len(pairs)} usable pairs ({dropped.as_dict()}); there must be at least 3.")
        kept = [Example(pair, 0) for pair in pairs]
        parts = [
            [Example(text, 0) for pair in part for text in pair.input]
            for part in split(kept, ["pair"], parameters, context.seed)
        ]
        examples = [example for part in parts for example in part]
        report = {
            "rows": len(rows),
            "used": len(pairs),
            "dropped": dropped.as_dict(),
            "text_column": first,
            "pair_column": second,
            **self.measured(source, examples, parameters, context),
        }
        return self.write_prepared(output, parts, [], report)

    # Checkpoints

    def check_checkpoint(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().check_checkpoint(folder, config)
        pooling = folder / "1_Pooling" / "config.json"  # as sentence-transformers writes it
        if pooling.is_file():
            said = json.loads(pooling.read_text(encoding="utf-8"))
            if not said.get("pooling_mode_mean_tokens", True):
                raise InputError(f"{pooling}: the model was trained with another pooling than the mean of the tokens.")

    def labels(self, config: Mapping[str, Any], tensors: Mapping[str, Any]) -> list[str] | None:
        """Every encoder gives directions, better or worse."""
        return []

    # Answers

    def output(self, result: Any, inputs: Mapping[str, Any]) -> Any:
        """The mean of the tokens' states, padding left out, at length 1: float32[examples, width]."""
        states = result.last_hidden_state
        mask = inputs["attention_mask"][:, :, None].to(states.dtype)
        pooled = (states * mask).sum(1) / mask.sum(1).clamp_min(1e-9)
        return pooled / pooled.norm(dim=1, keepdim=True).clamp_min(1e-12)

    def finish_graph(self, model: Any) -> None:
        from toolkit.export import onnx_pooling

        onnx_pooling.add_direction(model)

    def loss(self, answers: Any, labels: Any, *, weights: Any = None, smoothing: float = 0.0) -> Any:
        """Each first text must be nearer to its second one than to those of the other pairs of the batch, and the other
        way round (van den Oord, Li and Vinyals, 2018)."""
        import torch
        from torch.nn import functional

        known = answers[labels >= 0].float()
        if len(known) < 4:
            return answers.sum() * 0
        similar = _SHARPNESS * known[0::2] @ known[1::2].T
        right = torch.arange(len(similar), device=similar.device)
        return (functional.cross_entropy(similar, right) + functional.cross_entropy(similar.T, right)) / 2

    def metrics(self, answers: NDArray[Any], examples: Sequence[Example], names: Sequence[str]) -> dict[str, Any]:
        """Recall at 1 and 10, and the mean reciprocal rank, of second texts among those of all pairs."""
        rows = np.asarray(answers, dtype=np.float32)
        places = ranks(rows[0::2], rows[1::2])
        recall = {f"recall@{count}": float((places < count).mean()) for count in _AT}
        return {
            "score": recall[self.SCORE_NAME],
            "score_name": self.SCORE_NAME,
            "examples": len(examples),
            **recall,
            "mean_reciprocal_rank": float((1 / (places + 1)).mean()),
        }


def ranks(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> NDArray[np.int64]:
    """How many documents are nearer to each query than its own, int64[n]; a tie counts against it."""
    found = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), 1024):  # not all similarities at once
        similar = queries[start : start + 1024] @ documents.T
        own = similar[np.arange(len(similar)), np.arange(start, start + len(similar))]
        similar[np.arange(len(similar)), np.arange(start, start + len(similar))] = -np.inf
        found[start : start + 1024] = (similar >= own[:, None]).sum(axis=1)
    return found


def _pairs(rows: Sequence[Mapping[str, Any]], first: str, second: str, dropped: data.Dropped) -> list[tuple[str, str]]:
    """Pairs of different texts, every text in one pair only: a text that stands in two would be its own rival."""
    taken: set[str] = set()
    pairs = []
    for row in rows:
        texts = tuple("" if row[name] is None else str(row[name]).strip() for name in (first, second))
        if not all(texts):
            dropped.counts["empty text"] += 1
        elif texts[0] == texts[1]:
            dropped.counts["a text with itself"] += 1
        elif taken & set(texts):
            dropped.counts["text of another pair"] += 1
        else:
            taken |= set(texts)
            pairs.append((texts[0], texts[1]))
    return pairs


TASK = SentenceSimilarity()
