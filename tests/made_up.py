"""A workshop and candidates of which nothing was ever built: synthetic timings and scores for the decisions on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np

from toolkit.checkpoint import Checkpoint
from toolkit.engines import KINDS
from toolkit.gates import score, size
from toolkit.gates.speed import Latency
from toolkit.recipe import Budgets, CandidatePlan, FinetunePlan, Recipe
from toolkit.runner import Finished, Runner
from toolkit.stages import measure
from toolkit.target import Cpu, EngineSupport, Gpu, Source, Target
from toolkit.workshop import Candidate, Workshop

EXAMPLES = 60  # timed, and in the evaluation split


def a_workshop(engines: list[str], **budgets: Any) -> Workshop:
    """A workshop for a target that prefers `engines` in this order. Nothing in these tests runs a stage."""
    supported = [
        EngineSupport.model_validate(
            {"name": name, "processor": "gpu" if name == "tensorrt" else "cpu", "precisions": ["fp32"]}
        )
        for name in engines
    ]
    target = Target(
        name="board",
        title="board",
        kind="board",
        cpu=Cpu.model_validate({"model": "any", "architecture": "aarch64", "isa": [], "cores": 1}),
        gpu=Gpu.model_validate({"model": "any"}),
        engines=supported,
        sources=[Source(covers=["cpu"], source="made up", confidence="recalled")],
    )
    recipe = Recipe(
        toolkit_version="0", model="m", model_sha256="0", data_sha256="0", task="text-classification", target="board",
        threads=1, seed=0, prepare={}, finetune=FinetunePlan(parameters=None, reason="none"),
        candidates=[CandidatePlan(engine="litert", precision="fp32", method=None, reason="")],
        budgets=Budgets(**budgets),
    )  # fmt: skip
    return Workshop(
        runner=cast(Runner, None),
        recipe=recipe,
        target=target,
        original=Checkpoint(Path("checkpoint"), {}, {}, "0"),
        checkpoint=Checkpoint(Path("checkpoint"), {}, {}, "0"),
        data=Finished(Path("data"), {"report": {"splits": {"eval": EXAMPLES}}}),
        measurable=True,
        workers=1,
    )


def a_candidate(
    name: str, *, ms: float | None = None, estimate: tuple[float, float] | None = None, accuracy: float = 0.9,
    floor: str = "99%", megabytes: float = 10.0, noise: int = 0, workshop: Workshop,
) -> Candidate:  # fmt: skip
    """A built candidate that has answered the whole split: `ms` measured, or an `estimate` as (low, high)."""
    engine, precision = name.split()
    plan = CandidatePlan.model_validate(
        {"engine": engine, "precision": precision, "method": KINDS[engine].precisions[precision], "reason": "test"}
    )
    candidate = Candidate(plan, built=Finished(Path(name), {"output_sha256": name}))
    candidate.artifact = {"size_bytes": int(megabytes * 1e6)}
    candidate.answers = Finished(Path(name), {"report": {"score": accuracy, "examples": EXAMPLES}})
    candidate.verdicts = [
        score.check(accuracy, 0.9, floor, "accuracy"),
        size.check(candidate.artifact["size_bytes"], workshop.recipe.budgets.max_size_mb),
    ]
    if ms is not None:
        shared = np.random.default_rng(0).lognormal(0, 0.3, EXAMPLES)  # the examples' own lengths
        own = np.random.default_rng(noise).normal(1, 0.02, (measure.ROUNDS, EXAMPLES))
        candidate.times = (ms * 1e-3 * shared * own).tolist()
        candidate.latency = Latency(1e3 * float(np.mean(candidate.times)), "measured")
    elif estimate is not None:
        candidate.latency = Latency(float(np.sqrt(estimate[0] * estimate[1])), "estimate", *estimate)
    return candidate
