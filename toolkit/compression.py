"""The compression chain: a trained checkpoint → a smaller one, by stages that each have a receipt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.checkpoint import Checkpoint
from toolkit.devices import local
from toolkit.runner import Finished, Runner


@dataclass(frozen=True)
class Chain:
    """What all stages of a chain share: the runner, the prepared data, and whether bf16 pays here."""

    runner: Runner
    data: Finished
    bf16: bool

    def teach(
        self,
        teacher: Checkpoint,
        *,
        hidden_layers: Sequence[int] = (),
        attention_layers: Sequence[int] = (),
        unlabeled: Mapping[str, Any] | None = None,
        unlabeled_sha256: str | None = None,
    ) -> Finished:
        """A teacher's answers on the training texts. `unlabeled` has the file, its column and the limit."""
        parameters = {
            "encoding": self.data.report["encoding"],
            "hidden_layers": list(hidden_layers),
            "attention_layers": list(attention_layers),
            **(unlabeled or {}),
        }
        return self.runner.run(
            "teach",
            teacher.folder,
            parameters,
            title=f"answers of the teacher {teacher.sha256[:8]}",
            reason="computed once, however often a student reads them",
            inputs={"source": teacher.sha256, **({"unlabeled": unlabeled_sha256} if unlabeled_sha256 else {})},
            data=self.data,
            threads=local.cores(),
            key_parameters={name: value for name, value in parameters.items() if name != "unlabeled"},
            with_torch=True,
        )

    def distill(
        self,
        student: Checkpoint,
        teaching: Sequence[Finished],
        parameters: Mapping[str, Any],
        *,
        title: str,
        reason: str,
    ) -> Finished:
        """Train a student, made from the checkpoint `student`, on what teachers said."""
        return self._train("distill", student, teaching, parameters, title, reason)

    def prune(
        self,
        source: Checkpoint,
        teaching: Sequence[Finished],
        parameters: Mapping[str, Any],
        *,
        title: str,
        reason: str,
    ) -> Finished:
        """Prune a checkpoint and let it recover on what teachers said, or on the labels if there are none."""
        return self._train("prune", source, teaching, parameters, title, reason)

    def _train(
        self,
        stage: str,
        source: Checkpoint,
        teaching: Sequence[Finished],
        parameters: Mapping[str, Any],
        title: str,
        reason: str,
    ) -> Finished:
        given = {"bf16": self.bf16, "encoding": self.data.report["encoding"], **parameters}
        return self.runner.run(
            stage,
            source.folder,
            {**given, "teaching": [str(each.output) for each in teaching]},
            title=title,
            reason=reason,
            inputs={"source": source.sha256, **{f"teaching {i}": each.sha256 for i, each in enumerate(teaching)}},
            data=self.data,
            threads=local.cores(),
            key_parameters={**given, "tensorboard": None, "track": []},
            resumable=bool(given.get("epochs", 1)),
            with_torch=True,
        )
