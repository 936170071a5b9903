"""The workshop: a candidate, and the steps that make one, each keyed by what its result depends on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import engines, rules, tasks
from toolkit import export as formats
from toolkit.checkpoint import Checkpoint
from toolkit.export import STATIC, onnx_lower
from toolkit.gates import Verdict, memory
from toolkit.gates.speed import Latency
from toolkit.recipe import CALIBRATED, CandidatePlan, Recipe
from toolkit.runner import Finished, Runner
from toolkit.storage import read_json, sha256_json
from toolkit.target import Target
from toolkit.tasks.lengths import MOST_BUCKETS
from toolkit.tensorrt import rungs

MOST_LENGTHS = 8  # of a LiteRT file: each is a graph, about 90 kB
# The rule of tables of runtimes that take no notice of a scale per output channel.
ONE_SCALE = "per-channel-fully-connected"


@dataclass
class Candidate:
    """One engine and precision on its way through the gates."""

    plan: CandidatePlan
    built: Finished | None = None
    artifact: dict[str, Any] = field(default_factory=dict)
    preflight: Finished | None = None  # of one that something else runs on the device than here
    coverage: Finished | None = None  # of one whose engine has a rule table
    answers: Finished | None = None  # the evaluation that covers the most examples so far
    verdicts: list[Verdict] = field(default_factory=list)
    agreement: dict[str, Any] = field(default_factory=dict)
    latency: Latency | None = None
    times: list[list[float]] = field(default_factory=list)  # seconds by round and example
    outcome: str = ""

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def refused(self) -> str | None:
        """The first reason against this candidate, or None."""
        return next((f"{v.gate}: {v.reason}" for v in self.verdicts if not v.passed), None)

    @property
    def refused_by(self) -> set[str]:
        """The gates that refused."""
        return {verdict.gate for verdict in self.verdicts if not verdict.passed}

    @property
    def metrics(self) -> dict[str, Any]:
        return self.answers.report if self.answers else {}

    @property
    def peak_rss_bytes(self) -> int | None:
        """The most memory of the process that evaluated it: Python, engine, model and the examples."""
        return self.answers.receipt.get("peak_rss_bytes") if self.answers else None

    @property
    def validation(self) -> dict[str, Any] | None:
        """How far the validation reached of one whose engine is built on the device; None for any other."""
        if self.preflight is None or self.plan.engine != "tensorrt":
            return None
        return rungs.of(self.preflight.report, self.verdicts, self.metrics.get("examples"))

    def as_dict(self) -> dict[str, Any]:
        """For the report and the manifest."""
        latency = None
        if self.latency is not None:
            latency = {
                "ms": self.latency.ms, "kind": self.latency.kind,
                "low_ms": self.latency.low_ms, "high_ms": self.latency.high_ms,
            }  # fmt: skip
        return {
            "name": self.name,
            "engine": self.plan.engine,
            "precision": self.plan.precision,
            "size_bytes": self.artifact.get("size_bytes"),
            "peak_rss_bytes": self.peak_rss_bytes,
            "score": self.metrics.get("score"),
            "score_examples": self.metrics.get("examples"),
            "latency": latency,
            "agreement": self.agreement,
            "verdicts": [verdict.as_dict() for verdict in self.verdicts],
            "validation": self.validation,
            "coverage": self.coverage.report if self.coverage else None,
            "outcome": self.outcome,
        }


@dataclass
class Workshop:
    """What making and judging candidates needs; filled by `toolkit.conversion`.

    `original` is the float checkpoint that everything is compared with; `checkpoint` is what is exported: the original,
    or what a compression made of it, which `label` names.
    """

    runner: Runner
    recipe: Recipe
    target: Target
    original: Checkpoint
    checkpoint: Checkpoint
    data: Finished
    measurable: bool
    workers: int
    label: str = ""
    reference: Finished | None = None  # the original's answers
    own: Finished | None = None  # the checkpoint's

    @property
    def suffix(self) -> str:
        """What the titles of stages end with."""
        return f", {self.label}" if self.label else ""

    @property
    def data_report(self) -> dict[str, Any]:
        return self.data.report

    def evaluate(self, engine: str, source: Path, sha256: str, limit: int | None, name: str) -> Finished:
        """Run the evaluation split, or its first `limit` examples, through an engine."""
        count = self.data_report["splits"]["eval"]
        every = limit is None or limit >= count
        return self.runner.run(
            "evaluate",
            source,
            {
                "engine": engine,
                "encoding": self.data_report["encoding"],
                "limit": None if every else limit,
            },
            title=f"evaluate {name}" + ("" if every else f" on {limit}"),
            reason="the score is the artifact's own, from the raw example to the answer",
            inputs={"source": sha256},
            data=self.data,
            threads=1,
            with_torch=engine == "torch",
        )

    def answers(self, evaluation: Finished) -> NDArray[np.float32]:
        """The answers that an evaluation wrote, float32[rows, width]."""
        return np.asarray(np.load(evaluation.output / "answers.npy", allow_pickle=False), dtype=np.float32)

    def names(self) -> list[str]:
        """The labels."""
        found: list[str] = json.loads((self.data.output / "labels.json").read_text(encoding="utf-8"))
        return found

    def export(self, engine: str) -> Finished:
        """The float artifact for an engine."""
        lengths, data = self.data_report["lengths"], None
        # A small model can have more input lengths in the time that its original takes for a few, and its tokenizer
        # may give other ones.
        anew = engines.FORMAT_OF[engine] == "litert" and bool(self.label)
        parameters = formats.settings(
            engine,
            lengths=None if anew else lengths,
            opset=self.target.engine(engine).onnx_opset_max,
            fix=self.recipe.fix,
            avoid=self.lacking(engine),
        )
        parameters["encoding"] = self.data_report["encoding"]
        if anew:
            layers = max(1, self.checkpoint.layers)
            most = min(MOST_LENGTHS, max(MOST_BUCKETS, MOST_BUCKETS * self.original.layers // layers))
            parameters["most_lengths"] = most
            data = self.data
        return self.runner.run(
            "export",
            self.checkpoint.folder,
            parameters,
            title=f"export {engines.KINDS[engine].files}{self.suffix}",
            reason=f"{engine} runs {engines.KINDS[engine].files} files",
            inputs={"source": self.checkpoint.sha256},
            data=data,
            with_torch=True,
        )

    def own_axes(self) -> dict[str, int]:
        """Sizes of the dynamic axes of an ONNX file in the first example, by name, or by place where they have none."""
        if not self.original.is_graph:
            return {}
        task, folder = tasks.get(self.recipe.task), self.original.folder
        described = read_json(folder / "artifact.json")
        names = [tensor["name"] for tensor in described["inputs"]]
        encoder = task.encoder(folder, self.data_report["encoding"], inputs=names, lengths=described["lengths"])
        arrays = encoder(task.read_examples(self.data.output, "eval")[0].input)
        return {
            axis or f"{tensor['name']}[{place}]": int(size)
            for tensor in described["inputs"]
            for place, (axis, size) in enumerate(zip(tensor["shape"], arrays[tensor["name"]].shape, strict=True))
            if isinstance(axis, str) or not axis
        }

    def lacking(self, engine: str) -> list[str]:
        """Operators that can be written as others, and that the target's rule table for an engine does not have."""
        table = self.target.engine(engine).rules
        if table is None:
            return []
        known = rules.load(table)
        return [name for name in sorted(onnx_lower.REPLACED) if known.verdict(name).status == "unsupported"]

    def quantize(self, exported: Finished, plan: CandidatePlan) -> Finished:
        """An exported artifact in the precision that a plan names."""
        if plan.method is None:
            return exported
        parameters: dict[str, Any] = {"method": plan.method}
        data = None
        if plan.method in CALIBRATED:
            parameters |= {"examples": {"encoding": self.data_report["encoding"]}}
            data = self.data
        table = self.target.engine(plan.engine).rules
        if table is not None and ONE_SCALE in rules.load(table).limits:
            parameters |= {"scales": "tensor"}
        if plan.method in STATIC and formats.KINDS[engines.FORMAT_OF[plan.engine]].own_calibration is None:
            parameters |= {"calibration": "mse"}
        return self.runner.run(
            "quantize",
            exported.output,
            parameters,
            title=f"quantize {engines.KINDS[plan.engine].files} to {plan.precision}{self.suffix}",
            reason=f"{plan.method}: smaller, and faster where the target has {plan.precision} arithmetic",
            inputs={"source": exported.sha256},
            data=data,
        )

    def memory_bytes(self, candidate: Candidate) -> int | None:
        """What counts against a budget of memory: the process that ran a candidate here, or on a microcontroller what
        the interpreter needs there. None if it is not known."""
        micro = candidate.artifact.get("micro")
        if self.target.kind != "mcu":
            return candidate.peak_rss_bytes
        if micro and "error" in micro:
            return None
        return memory.of_a_microcontroller(candidate.artifact, self.target.memory.has_flash)[0]

    def needs_preflight(self, engine: str) -> bool:
        """Whether what runs on the device is not what runs an artifact here: an engine of TensorRT, another runtime or
        a compiler that takes the same files."""
        table = self.target.engine(engine).rules
        return engine == "tensorrt" or (table is not None and rules.load(table).engine != engine)

    def preflight(self, built: Finished, engine: str, name: str) -> Finished:
        """What the rule table of the target's runtime says of an artifact, and of one for TensorRT NVIDIA's parser."""
        table = self.target.engine(engine).rules
        return self.runner.run(
            "preflight",
            built.output,
            {"rules": table, "rules_sha256": sha256_json(rules.load(table).model_dump(mode="json")) if table else None},
            title=f"preflight {name}{self.suffix}",
            reason="what the device would refuse is refused here",
            inputs={"source": built.sha256},
        )

    def coverage(self, built: Finished, engine: str, name: str) -> Finished | None:
        """How much of an artifact the engine's rule table says falls back; None if the profile names no table."""
        table = self.target.engine(engine).coverage_rules
        if table is None:
            return None
        lengths = self.data_report["lengths"]
        return self.runner.run(
            "coverage",
            built.output,
            {
                "rules": table,
                "rules_sha256": sha256_json(rules.load(table).model_dump(mode="json")),
                "sizes": {"batch": 1, **({"length": max(lengths)} if lengths else {}), **self.own_axes()},
            },
            title=f"coverage {name}{self.suffix}",
            reason="a share of the multiply-adds that falls back costs more than a count of nodes says",
            inputs={"source": built.sha256},
        )
