"""How far the compression chain goes: a small search, ordered, measured, with early rejection.

The chain trims the vocabulary, distills into fewer layers and prunes the feed-forward parts and the width, in this
order. What each shape costs on the target is known before anything is trained, from untrained models in the engine and
precision that suit the target best; what the shape answers is known after training only. So:

- shapes that cannot keep to a budget are rejected first, and those that are no faster than a larger one;
- if a budget is not met, the slowest shapes that keep to it are trained first, until one keeps the score;
- else the plan's order is followed: half the layers, three quarters of the units and four tenths of the width go first,
  and milder steps follow a failure;
- a network of convolutions has no layers to leave out and no vocabulary: its channels are pruned, a smaller share
  after a failure;
- a training whose validation score is hopeless after an epoch ends there, and every shape behind it with it.

After each stage the gates look at the exported artifact: score, classes, economy. A stage that does not pass is undone:
the next one starts from what was there before. Everything that was looked at stays in the report, with the reason.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

from toolkit import architecture, tasks
from toolkit import candidates as candidate_steps
from toolkit import checkpoint as checkpoints
from toolkit.bench.statistics import compare
from toolkit.checkpoint import Checkpoint
from toolkit.compression import Chain
from toolkit.gates import Verdict, economy, memory, score, size, speed
from toolkit.gates.speed import Latency
from toolkit.recipe import CompressPlan
from toolkit.runner import Finished
from toolkit.shapes import WHOLE, Point, Shape, along
from toolkit.workshop import Candidate, Workshop

# Gates that say that something is too big or slow, not that it is wrong.
BUDGET_GATES = frozenset({size.NAME, memory.NAME, speed.BUDGET_NAME})
MEMORY_EXAMPLES = 32  # answered by an untrained model to see what memory it takes


@dataclass
class Link:
    """A checkpoint of the chain and its artifact in the engine and precision that the chain is judged by."""

    name: str
    checkpoint: Checkpoint
    candidate: Candidate
    passed: bool = True

    @property
    def score(self) -> float:
        """Of its artifact, on the evaluation split."""
        return float(self.candidate.metrics["score"])

    def as_dict(self) -> dict[str, Any]:
        latency = self.candidate.latency
        return {
            "name": self.name,
            "parameters": self.checkpoint.parameters,
            "size_bytes": self.candidate.artifact["size_bytes"],
            "score": self.score,
            "latency_ms": latency.ms if latency else None,
            "latency_kind": latency.kind if latency else None,
        }


@dataclass
class Search:
    """One search on its way."""

    workshop: Workshop  # of the original
    basis: Candidate  # the original's artifact that every link's is compared in kind with
    plan: CompressPlan
    chain: Chain
    depth: int
    points: list[Point] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)
    coverage: float = 1.0  # of the base's vocabulary; 1: it was not trimmed
    by_budget: bool = False  # whether the budgets say where to stop, or the plan's order
    trained: int = 0
    outcome: str = ""
    _distilled: dict[tuple[int, float], Link | None] = field(default_factory=dict)
    _trimmed: dict[float, Link] = field(default_factory=dict)
    _teaching: list[Finished] = field(default_factory=list)
    _whole: dict[Shape, Point] = field(default_factory=dict)  # measured shapes that nothing was pruned of

    # What everything starts from

    @property
    def start(self) -> Link:
        return Link("the float checkpoint", self.workshop.original, self.basis)

    @property
    def least_score(self) -> float:
        """The floor of the score on the evaluation split."""
        assert self.workshop.reference is not None  # noqa: S101 - made before any search
        return score.floor(self.workshop.recipe.budgets.min_score, float(self.workshop.reference.report["score"]))

    def _give_up_below(self) -> float:
        assert self.workshop.reference is not None  # noqa: S101
        share = self.least_score / max(float(self.workshop.reference.report["score"]), 1e-9)
        return share * float(self._teaching[0].report["validation_score"]) - self.plan.hopeless

    # One link of the chain

    def judge(self, before: Link, made: Finished, name: str, stage: str, *, score_counts: bool = True) -> Link:
        """Export what a stage made, and let the gates say whether it is kept."""
        recipe = self.workshop.recipe.model_copy(update={"candidates": [self.basis.plan]})
        checkpoint = self._inspect(made)
        workshop = replace(self.workshop, checkpoint=checkpoint, label=name, recipe=recipe, own=None)
        candidate = candidate_steps.make(workshop)[0]
        link = Link(name, checkpoint, candidate)
        latency_before: Latency | None = None
        if candidate.answers is None:  # its engine could not be given it
            verdicts = candidate.verdicts
        else:
            verdicts = [
                v for v in candidate.verdicts if v.gate not in BUDGET_GATES and (score_counts or v.gate == "parity")
            ]
            verdict, latency_before = self._economy(workshop, before, candidate)
            verdicts.append(verdict)
        link.passed = all(verdict.passed for verdict in verdicts)
        self.steps.append(
            {
                "stage": stage,
                "name": name,
                "before": before.as_dict(),
                "latency_before_ms": latency_before.ms if latency_before else None,  # in the same run as after
                "after": link.as_dict() if candidate.answers is not None else None,
                "seconds": made.receipt["seconds"],
                "gates": [verdict.as_dict() for verdict in verdicts],
                "kept": link.passed,
            }
        )
        self.workshop.runner.note(made, gates=[verdict.as_dict() for verdict in verdicts], kept=link.passed)
        return link

    def _economy(self, workshop: Workshop, before: Link, candidate: Candidate) -> tuple[Verdict, Latency | None]:
        """The verdict, and the latency before in the same run."""
        against = None
        if self.measured:
            pair = {"before": replace(before.candidate), "after": candidate}
            candidate_steps.measure(workshop, pair)
            against = compare(candidate.times, pair["before"].times, workshop.recipe.seed)
            latency_before = pair["before"].latency
        else:
            candidate.latency = candidate_steps.estimated(workshop, candidate)
            latency_before = before.candidate.latency
        verdict = economy.check(
            before.candidate.artifact["size_bytes"], candidate.artifact["size_bytes"],
            latency_before, candidate.latency, against,
        )  # fmt: skip
        return verdict, latency_before

    @property
    def measured(self) -> bool:
        """Whether latencies are measured: this machine stands for the target."""
        processor = self.workshop.target.engine(self.basis.plan.engine).processor
        return self.workshop.measurable and processor == "cpu"

    def _inspect(self, made: Finished) -> Checkpoint:
        found = checkpoints.inspect(made.output, tasks.get(self.workshop.recipe.task))
        self.workshop.runner.note(made, checkpoint=found.sha256)
        return found

    # The stages

    def base(self) -> Link:
        """What the chain starts from: the original with the vocabulary and positions that the data needs, or as it was
        if trimming it did not pass."""
        if not self.plan.coverage:
            return self.start
        if 1.0 not in self._trimmed:
            first = self.plan.coverage[0]
            link = self.judge(self.start, self._trim_stage(first), f"vocabulary {first:.1%}", "prune")
            self.coverage = first if link.passed else 1.0
            self._trimmed[self.coverage] = self._trimmed[1.0] = link if link.passed else self.start
        return self._trimmed[1.0]

    def trim(self, coverage: float) -> Link:
        """The original with a smaller vocabulary than the base's. It recovers in the training that follows, and its
        score is judged there."""
        if not self.plan.coverage:
            return self.start
        if coverage not in self._trimmed:
            name = f"vocabulary {coverage:.1%}"
            self._trimmed[coverage] = self.judge(
                self.start, self._trim_stage(coverage), name, "prune", score_counts=False
            )
        return self._trimmed[coverage]

    def _trim_stage(self, coverage: float) -> Finished:
        return self.chain.prune(
            self.workshop.original, [], {"epochs": 0, "positions": True, "coverage": coverage},
            title=f"trim the vocabulary to {coverage:.1%}",
            reason="tokens that the data does not have take room in the file, and no time",
        )  # fmt: skip

    def distill(self, layers: int, coverage: float) -> Link | None:
        """A student of so many layers; None if it was not good enough."""
        key = (layers, coverage)
        if key in self._distilled:
            return self._distilled[key]
        before = self.trim(coverage)
        shape = Shape(layers, WHOLE, coverage)
        made = self.chain.distill(
            before.checkpoint,
            self._teaching,
            {
                **self.plan.distill,
                "layers": architecture.evenly(self.depth, layers),
                "give_up_below": self._give_up_below(),
            },
            title=f"distill into {shape}",
            reason="a layer that goes takes its time with it",
        )
        self.trained += 1
        self._distilled[key] = self._after_training(before, made, str(shape), "distill")
        return self._distilled[key]

    def prune(self, before: Link, shape: Shape) -> Link | None:
        """A distilled checkpoint made narrower; None if it was not good enough."""
        made = self.chain.prune(
            before.checkpoint,
            self._teaching,
            {
                **self.plan.prune,
                **shape.narrow.model_dump(),
                "multiple": self.plan.multiple,
                "give_up_below": self._give_up_below(),
            },
            title=f"prune to {shape}",
            reason="what real examples need least goes, in whole vectors of the target",
        )
        self.trained += 1
        return self._after_training(before, made, str(shape), "prune")

    def _after_training(self, before: Link, made: Finished, name: str, stage: str) -> Link | None:
        if made.report["gave_up"]:
            history = made.report["history"]
            reason = (
                f"validation score {made.report['validation_score']:.4f} after epoch {len(history)}, "
                f"{self._give_up_below():.4f} needed to go on"
            )
            verdict = Verdict("early rejection", False, reason)
            self.steps.append(
                {
                    "stage": stage, "name": name, "before": before.as_dict(), "after": None,
                    "seconds": made.receipt["seconds"], "gates": [verdict.as_dict()], "kept": False,
                }
            )  # fmt: skip
            self.workshop.runner.note(made, gates=[verdict.as_dict()], kept=False)
            return None
        link = self.judge(before, made, name, stage)
        return link if link.candidate.answers is not None else None

    # What shapes cost

    def probe(self) -> None:
        """What every shape costs with the base's vocabulary. Untrained models of two depths are measured, or estimated;
        what deeper and shallower ones cost follows, because all layers of a shape are alike."""
        counts = [self.depth, *self.plan.layers]
        first = self.plan.layers[0] if self.plan.layers else self.depth
        depths = sorted({min(counts), first if first > min(counts) else max(counts)})
        wanted = [WHOLE, *self.plan.narrow] if self.plan.layers else self.plan.narrow
        shapes = [Shape(depth, narrow, self.coverage) for narrow in wanted for depth in depths]
        with ThreadPoolExecutor(self.workshop.workers) as pool:
            try:
                built = dict(zip(shapes, pool.map(self._untrained, shapes), strict=True))
            except BaseException:
                self.workshop.runner.stop()
                raise
        original = replace(self.basis)
        if self.measured:
            named = {str(shape): candidate for shape, candidate in built.items()}
            candidate_steps.measure(self.workshop, {"original": original, **named}, "measure the speed of shapes")
        if not self.plan.layers:  # the original is the shape that nothing was taken from
            built[Shape(self.depth, WHOLE, self.coverage)] = original
        seen = {
            shape: Point(shape, c.artifact["size_bytes"], c.latency, self.workshop.memory_bytes(c), c.times)
            for shape, c in built.items()
        }
        self._whole = {shape: point for shape, point in seen.items() if shape.narrow == WHOLE}
        for count in counts:
            for narrow in [WHOLE, *self.plan.narrow]:
                shape = Shape(count, narrow, self.coverage)
                if count < self.depth or narrow != WHOLE:  # the whole shape is the base itself
                    between = [seen[Shape(depth, narrow, self.coverage)] for depth in depths]
                    self.points.append(seen[shape] if shape in seen else along(between[0], between[-1], shape))
        self._add_coverages(self.base())

    def _untrained(self, shape: Shape) -> Candidate:
        """A model of a shape in the basis' engine and precision, as good as random."""
        made = self.chain.prune(
            self.base().checkpoint, [],
            {
                "epochs": 0, "layers": shape.layers or None, **shape.narrow.model_dump(),
                "multiple": self.plan.multiple, "importance": "magnitude",
            },
            title=f"cut to {shape}, untrained", reason="what a shape costs is known before it is trained",
        )  # fmt: skip
        checkpoint = self._inspect(made)
        label = f"{shape}, untrained"
        workshop = replace(self.workshop, checkpoint=checkpoint, label=label, own=None)
        built = workshop.quantize(workshop.export(self.basis.plan.engine), self.basis.plan)
        artifact = json.loads((built.output / "artifact.json").read_text(encoding="utf-8"))
        candidate = Candidate(self.basis.plan, built=built, artifact=artifact)
        if self.workshop.recipe.budgets.max_memory_mb is not None:
            candidate.answers = workshop.evaluate(
                self.basis.plan.engine, built.output, built.sha256, MEMORY_EXAMPLES, label
            )
        if not self.measured:
            candidate.latency = candidate_steps.estimated(self.workshop, candidate)
        return candidate

    def _add_coverages(self, base: Link) -> None:
        """The same shapes with smaller vocabularies, whose size follows from the tokens: latency does not change."""
        if self.workshop.recipe.budgets.max_size_mb is None:
            return
        per_weight = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}[self.basis.plan.precision]
        whole = [point for point in self.points if point.shape.coverage == self.coverage]
        for coverage in self.plan.coverage:
            if coverage >= self.coverage:
                continue
            tokens = base.checkpoint.vocabulary - self._inspect(self._trim_stage(coverage)).vocabulary
            for point in whole:
                saved = tokens * self._width(base.checkpoint, point.shape) * per_weight
                shape = replace(point.shape, coverage=coverage)
                self.points.append(replace(point, shape=shape, size_bytes=point.size_bytes - saved))

    @staticmethod
    def _width(checkpoint: Checkpoint, shape: Shape) -> int:
        """The size of a token's vector in a shape: heads go as a whole."""
        heads = max(1, checkpoint.heads)
        return checkpoint.width // heads * max(1, round(heads * (1 - shape.narrow.heads)))

    # The order

    def _over_budget(self, costs: Point | Candidate) -> list[str]:
        """The budgets that something does not keep to, in words."""
        budgets = self.workshop.recipe.budgets
        size_bytes = costs.size_bytes if isinstance(costs, Point) else costs.artifact["size_bytes"]
        verdicts = [size.check(size_bytes, *budgets.of("max_size_mb"))]
        if costs.latency is not None:
            verdicts.append(speed.check_budget(costs.latency, *budgets.of("max_latency_ms")))
        needed = costs.memory_bytes if isinstance(costs, Point) else self.workshop.memory_bytes(costs)
        if needed is not None:
            how = memory.ARENA if self.workshop.target.kind == "mcu" else memory.PROCESS
            verdicts.append(memory.check(needed, *budgets.of("max_memory_mb"), how))
        return [verdict.reason for verdict in verdicts if not verdict.passed]

    def excess(self, point: Point) -> float:
        """How many times the tightest budget a point takes: the nearest point has the least."""
        budgets = self.workshop.recipe.budgets
        shares = [point.size_bytes / 1e6 / budgets.max_size_mb] if budgets.max_size_mb else []
        if budgets.max_latency_ms and point.latency is not None:
            shares.append(point.latency.ms / budgets.max_latency_ms)
        if budgets.max_memory_mb and point.memory_bytes is not None:
            shares.append(point.memory_bytes / 1e6 / budgets.max_memory_mb)
        return max(shares, default=0.0)

    def order(self) -> list[Point]:
        """The points that are worth training, the first to be tried first; the others get their reason."""
        for point in self.points:
            over = self._over_budget(point)
            if over:
                point.outcome = "over budget: " + "; ".join(over)
            elif reason := self._does_not_pay(point):
                point.outcome = reason
        left = [point for point in self.points if not point.outcome]
        if self.by_budget:
            return sorted(left, key=lambda p: (-(p.latency.ms if p.latency else 0), -p.size_bytes))
        layers = [count for count in self.plan.layers if count >= self.plan.layers[0]]
        first = self.plan.narrow[0] if self.plan.narrow else WHOLE
        milder = [
            each for each in self.plan.narrow
            if each.ffn <= first.ffn and each.heads <= first.heads and each.channels <= first.channels
        ]  # fmt: skip
        plans = [(count, narrow) for count in [*layers, self.depth] for narrow in [*milder, WHOLE]]
        for point in left:
            if (point.shape.layers, point.shape.narrow) not in plans:
                point.outcome = "not tried: no budget asks for so small a model"
        left = [point for point in left if not point.outcome]
        return sorted(left, key=lambda p: plans.index((p.shape.layers, p.shape.narrow)))

    def _does_not_pay(self, point: Point) -> str | None:
        """Why pruning to this point is not worth a training: it is no better than the point without pruning."""
        unpruned = replace(point.shape, narrow=WHOLE)
        whole = next((p for p in self.points if p.shape == unpruned), self._whole.get(unpruned))
        if point.shape.narrow == WHOLE or whole is None:
            return None
        against = compare(point.times, whole.times, self.workshop.recipe.seed) if point.times else None
        verdict = economy.check(whole.size_bytes, point.size_bytes, whole.latency, point.latency, against)
        return None if verdict.passed else f"pruning does not pay: {verdict.reason}"

    def run(self) -> Link | None:
        """The last link of the chain that passed every gate, and keeps to the budgets if there are any.

        Without one: with budgets the trained link that comes nearest, else what the chain had kept; None if the
        original is all there is. `outcome` says what happened.
        """
        base = self.base()
        self.by_budget = self.plan.when != "always" or bool(self._over_budget(base.candidate))
        if not self._over_budget(base.candidate) and self.by_budget:
            self.outcome = f"{base.name} passed"
            return base
        self.probe()
        order = self.order()
        if not order:
            nearest = min(self.points, key=self.excess)
            why = "No shape keeps to the budgets" if self.by_budget else "No shape is worth a training"
            self.outcome = f"{why}. The nearest is {nearest.shape}: {nearest.outcome}"
            return None
        self._teach()
        best: Link | None = None
        for point in order:
            link = self._try(point)
            if link is not None and link.passed:
                self.outcome = f"{link.name} passed"
                for other in order:
                    other.outcome = other.outcome or "not tried: a shape before it passed"
                return link
            if link is not None and (best is None or link.score > best.score):
                best = link
        self.outcome = "No shape that was trained passed the gates"
        if best is not None:
            self.outcome += f"; the nearest is {best.name}, with a score of {best.score:.4f}"
        return best if self.by_budget else base

    def workshop_of(self, link: Link) -> Workshop:
        """Where all candidates of a link are made."""
        return replace(self.workshop, checkpoint=link.checkpoint, label=link.name, own=None)

    def _teach(self) -> None:
        unlabeled = None
        if self.plan.unlabeled:
            unlabeled = {
                "unlabeled": self.plan.unlabeled,
                "unlabeled_column": self.plan.unlabeled_column,
                "unlabeled_limit": self.plan.unlabeled_limit,
            }
        teaching = self.chain.teach(
            self.workshop.original, unlabeled=unlabeled, unlabeled_sha256=self.plan.unlabeled_sha256
        )
        self._teaching = [teaching]

    def _try(self, point: Point) -> Link | None:
        """Train a point, and say in its outcome what came of it. None if nothing did."""
        shape = point.shape
        if self._trainings(shape) > self.plan.trials - self.trained:
            point.outcome = f"not tried: the plan allows {self.plan.trials} trainings"
            return None
        link = self.trim(shape.coverage) if shape.layers == self.depth else self.distill(shape.layers, shape.coverage)
        if shape.narrow != WHOLE and link is not None:
            if not link.passed:
                point.outcome = f"rejected: its layers alone fail ({self._refusal(link.name)})"
                return None
            link = self.prune(link, shape)
        if link is None:
            point.outcome = f"rejected: {self.steps[-1]['gates'][-1]['reason']}"
            return None
        point.score = link.score
        point.outcome = "passed" if link.passed else f"rejected: {self._refusal(link.name)}"
        return link

    def _trainings(self, shape: Shape) -> int:
        """How many trainings a shape still takes."""
        distilled = shape.layers == self.depth or (shape.layers, shape.coverage) in self._distilled
        return int(not distilled) + int(shape.narrow != WHOLE)

    def _refusal(self, name: str) -> str:
        step = next(step for step in reversed(self.steps) if step["name"] == name)
        return next(f"{g['gate']}: {g['reason']}" for g in step["gates"] if not g["passed"])

    def as_dict(self) -> dict[str, Any]:
        """For the report and the manifest."""
        return {
            "basis": self.basis.name,
            "floor": self.least_score,
            "original": self.start.as_dict(),
            "steps": self.steps,
            "points": [point.as_dict() for point in self.points],
            "trained": self.trained,
            "outcome": self.outcome,
        }


def find_basis(workshop: Workshop, candidates: list[Candidate]) -> Candidate | None:
    """The original's candidate that nothing but budgets speaks against, the fastest; None if there is none."""
    fit = [c for c in candidates if c.built is not None and c.answers is not None and not c.refused_by - BUDGET_GATES]
    for candidate in candidate_steps.ranked(workshop, fit):
        candidate_steps.complete(workshop, candidate)
        if not candidate.refused_by - BUDGET_GATES:
            return candidate
    return None
