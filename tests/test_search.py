"""How far the chain goes: synthetic costs and scores through the real order, the real budgets and the real gates."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from tests.made_up import a_candidate, a_workshop
from toolkit.checkpoint import Checkpoint
from toolkit.compression import Chain
from toolkit.gates.speed import Latency
from toolkit.recipe import CompressPlan, Narrow, layer_ladder
from toolkit.runner import Finished
from toolkit.search import Link, Search, find_basis
from toolkit.shapes import Point, Shape, along

ORIGINAL_SCORE = 0.90
DEPTH = 6
WHOLE, QUARTER, HALF, MOST = Narrow(), Narrow(ffn=0.25), Narrow(ffn=0.5), Narrow(ffn=0.75, heads=0.5)
# Milliseconds and megabytes of a layer, whole and narrower.
MS = {WHOLE: 1.0, QUARTER: 0.85, HALF: 0.7, MOST: 0.55}
MB = {WHOLE: 2.0, QUARTER: 1.6, HALF: 1.2, MOST: 0.8}
TOKENS_MB = {1.0: 12.0, 0.99: 5.0, 0.95: 3.0}


def cost(shape: Shape) -> tuple[float, float]:
    """(milliseconds, megabytes)"""
    return shape.layers * MS[shape.narrow], shape.layers * MB[shape.narrow] + TOKENS_MB[shape.coverage]


@dataclass
class Scripted(Search):
    """A search whose trainings end with the scores that a test gives them. `log` has the trainings in their order."""

    scores: dict[tuple[int, Narrow], float | None] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def a_link(self, shape: Shape, score: float) -> Link:
        ms, megabytes = cost(shape)
        candidate = a_candidate("litert int8", ms=ms, megabytes=megabytes, accuracy=score, workshop=self.workshop)
        passed = score >= self.least_score
        self.steps.append(
            {
                "name": str(shape),
                "gates": [{"gate": "score", "passed": passed, "reason": f"accuracy {score:.4f}"}],
            }
        )
        return Link(str(shape), Checkpoint(Path(str(shape)), {}, {}, str(shape)), candidate, passed)

    def base(self) -> Link:
        self.coverage = self.plan.coverage[0]
        return self.a_link(Shape(self.depth, WHOLE, self.coverage), ORIGINAL_SCORE)

    def trim(self, coverage: float) -> Link:
        return self.a_link(Shape(self.depth, WHOLE, coverage), ORIGINAL_SCORE)

    def probe(self) -> None:
        for coverage in self.plan.coverage if self.workshop.recipe.budgets.max_size_mb else [self.coverage]:
            for layers in [self.depth, *self.plan.layers]:
                for narrow in [WHOLE, *self.plan.narrow]:
                    if narrow != WHOLE or layers < self.depth:
                        shape = Shape(layers, narrow, coverage)
                        ms, megabytes = cost(shape)
                        self.points.append(Point(shape, round(megabytes * 1e6), Latency(ms, "estimate", ms, ms)))

    def _train(self, shape: Shape) -> Link | None:
        self.trained += 1
        self.log.append(f"{shape.layers}/{shape.narrow.ffn:g}/{shape.coverage:g}")
        score = self.scores.get((shape.layers, shape.narrow), ORIGINAL_SCORE)
        if score is None:
            self.steps.append(
                {"name": str(shape), "gates": [{"gate": "early rejection", "passed": False, "reason": "hopeless"}]}
            )
            return None
        return self.a_link(shape, score)

    def distill(self, layers: int, coverage: float) -> Link | None:
        if (layers, coverage) not in self._distilled:
            self._distilled[layers, coverage] = self._train(Shape(layers, WHOLE, coverage))
        return self._distilled[layers, coverage]

    def prune(self, before: Link, shape: Shape) -> Link | None:
        return self._train(shape)

    def _teach(self) -> None: ...


def a_search(
    when: str, scores: dict[tuple[int, Narrow], float | None] | None = None, trials: int = 4, **budgets: Any
) -> Scripted:
    workshop = a_workshop(["litert"], **budgets)
    workshop.reference = Finished(Path("reference"), {"report": {"score": ORIGINAL_SCORE}})
    plan = CompressPlan.model_validate(
        {
            "when": when,
            "reason": "test",
            "layers": layer_ladder(DEPTH),
            "coverage": [0.99, 0.95],
            "trials": trials,
            "narrow": [HALF, QUARTER, MOST],
        }
    )
    basis = a_candidate("litert int8", ms=DEPTH, megabytes=24, workshop=workshop)
    return Scripted(workshop, basis, plan, cast(Chain, None), DEPTH, scores=scores or {})


@pytest.mark.parametrize(("layers", "ladder"), [(2, [1]), (3, [1, 2]), (6, [3, 4, 2, 1]), (12, [6, 8, 4, 2])])
def test_the_ladder_starts_with_half_the_layers(layers: int, ladder: list[int]) -> None:
    assert layer_ladder(layers) == ladder


def test_without_budgets_half_the_layers_and_half_the_units_go() -> None:
    search = a_search("always")
    link = search.run()
    assert link is not None
    assert link.name == "3 layers, 50% of the ffn pruned, vocabulary 99.0%"
    assert search.log == ["3/0/0.99", "3/0.5/0.99"]
    outcomes = {(p.shape.layers, p.shape.narrow): p.outcome for p in search.points}
    assert outcomes[3, HALF] == "passed"
    assert outcomes[1, HALF] == "not tried: no budget asks for so small a model"
    assert outcomes[4, HALF] == "not tried: a shape before it passed"
    assert all(outcomes.values())


def test_a_stage_that_fails_is_followed_by_milder_ones() -> None:
    search = a_search("always", {(3, HALF): 0.80})
    link = search.run()
    assert link is not None
    assert link.name.startswith("3 layers, 25% of the ffn")
    assert search.log == ["3/0/0.99", "3/0.5/0.99", "3/0.25/0.99"]
    assert next(p for p in search.points if p.shape == Shape(3, HALF, 0.99)).outcome.startswith("rejected: score: ")


def test_if_every_pruning_fails_the_distilled_one_is_left() -> None:
    search = a_search("always", {(3, HALF): 0.80, (3, QUARTER): None})
    link = search.run()
    assert link is not None
    assert link.name == "3 layers, vocabulary 99.0%"
    assert search.trained == 3
    assert next(p for p in search.points if p.shape == Shape(3, QUARTER, 0.99)).outcome == "rejected: hopeless"


def test_nothing_is_pruned_from_a_student_that_is_too_weak_already() -> None:
    search = a_search("always", {(3, WHOLE): 0.80})
    link = search.run()
    assert link is not None
    assert link.name.startswith("4 layers, 50%")
    assert search.log == ["3/0/0.99", "4/0/0.99", "4/0.5/0.99"]
    assert "its layers alone fail" in next(p for p in search.points if p.shape == Shape(3, HALF, 0.99)).outcome


def test_the_plan_limits_the_trainings_and_what_was_there_before_stays() -> None:
    hopeless: dict[tuple[int, Narrow], float | None] = {
        (layers, narrow): 0.5
        for layers in (3, 4, 6)
        for narrow in (WHOLE, QUARTER, HALF)
        if (layers, narrow) != (6, WHOLE)
    }
    search = a_search("always", {**hopeless, (4, WHOLE): 0.6}, trials=2)
    link = search.run()
    assert link is not None
    assert link.name == "6 layers, vocabulary 99.0%"  # the trimmed original
    assert search.trained == 2
    assert search.outcome.startswith("No shape that was trained passed the gates; the nearest is 4 layers")
    assert any(point.outcome == "not tried: the plan allows 2 trainings" for point in search.points)


def test_a_budget_is_met_by_the_largest_shape_that_keeps_to_it() -> None:
    search = a_search("if a budget asks", max_latency_ms=3.5)
    link = search.run()
    assert link is not None
    assert link.name.startswith("4 layers, 25%")  # 3.4 ms
    assert search.log == ["4/0/0.99", "4/0.25/0.99"]
    outcome = next(p for p in search.points if p.shape == Shape(4, WHOLE, 0.99)).outcome
    assert outcome == "over budget: estimate 4-4 ms (--max-latency 3.5 ms)"


def test_trimming_the_vocabulary_is_enough_if_the_budget_says_so() -> None:
    search = a_search("if a budget asks", max_size_mb=18)
    link = search.run()
    assert link is not None
    assert link.name == "6 layers, vocabulary 99.0%"
    assert search.trained == 0


def test_a_small_budget_takes_a_smaller_vocabulary_too() -> None:
    search = a_search("if a budget asks", max_size_mb=6)
    link = search.run()
    assert link is not None
    assert cost(Shape(2, HALF, 0.95))[1] < 6
    assert link.candidate.artifact["size_bytes"] <= 6e6
    assert search.log[-1].endswith("/0.95")


def test_the_first_that_keeps_the_score_ends_the_search_and_weaker_ones_do_not() -> None:
    search = a_search("if a budget asks", {(4, QUARTER): 0.80}, max_latency_ms=3.5)
    link = search.run()
    assert link is not None
    assert link.name.startswith("6 layers, 50% of the width and 75%")  # 3.3 ms, the next below
    assert search.log == ["4/0/0.99", "4/0.25/0.99", "6/0.75/0.99"]


def test_no_shape_is_small_enough_and_the_nearest_is_named_before_anything_is_trained() -> None:
    search = a_search("if a budget asks", max_size_mb=1)
    assert search.run() is None
    assert search.trained == 0
    assert search.outcome == (
        "No shape keeps to the budgets. The nearest is 1 layer, 50% of the width and 75% of the ffn pruned, "
        "vocabulary 95.0%: over budget: 3.8 MB (--max-size 1 MB)"
    )


def test_if_all_that_keep_to_the_budget_are_too_weak_the_best_of_them_is_returned_as_failed() -> None:
    weak: dict[tuple[int, Narrow], float | None] = {
        (2, WHOLE): 0.70, (2, QUARTER): 0.68, (2, HALF): 0.66, (1, WHOLE): 0.60, (3, HALF): 0.72, (4, MOST): 0.71,
        (3, MOST): 0.69,
    }  # fmt: skip
    search = a_search("if a budget asks", weak, trials=8, max_latency_ms=2.2)
    link = search.run()
    assert link is not None
    assert not link.passed
    assert link.score == pytest.approx(0.72)
    assert "the nearest is 3 layers, 50% of the ffn" in search.outcome


def test_pruning_that_gains_nothing_is_not_trained() -> None:
    search = a_search("always")
    search.coverage = 0.99
    search.probe()
    for point in search.points:
        if point.shape.narrow != WHOLE:  # as slow and as large as without
            whole = Shape(point.shape.layers, WHOLE, point.shape.coverage)
            ms, megabytes = cost(whole)
            point.latency, point.size_bytes = Latency(ms, "estimate", ms, ms), round(megabytes * 1e6)
    order = search.order()
    assert [(p.shape.layers, p.shape.narrow) for p in order if p.shape.layers < DEPTH] == [(3, WHOLE), (4, WHOLE)]
    assert "neither faster nor smaller" in next(p for p in search.points if p.shape == Shape(3, HALF, 0.99)).outcome


def test_the_basis_is_the_fastest_that_only_budgets_refuse() -> None:
    workshop = a_workshop(["litert", "onnxruntime"], max_size_mb=5.0)
    wrong = a_candidate("litert fp32", ms=1.0, accuracy=0.5, workshop=workshop)
    big = a_candidate("onnxruntime fp32", ms=2.0, megabytes=20, workshop=workshop)
    bigger = a_candidate("onnxruntime int8", ms=3.0, megabytes=30, workshop=workshop)
    assert find_basis(workshop, [wrong, big, bigger]) is big
    assert find_basis(workshop, [wrong]) is None


def test_what_a_shape_costs_follows_from_two_other_depths() -> None:
    one = Point(Shape(1, HALF, 0.99), 3_000_000, Latency(1.0, "measured"), 90_000_000, [[0.9e-3, 1.1e-3]] * 4)
    three = Point(Shape(3, HALF, 0.99), 5_000_000, Latency(2.0, "measured"), 100_000_000, [[1.8e-3, 2.2e-3]] * 4)
    two, six = (along(one, three, Shape(layers, HALF, 0.99)) for layers in (2, 6))
    assert (two.size_bytes, two.memory_bytes, two.latency) == (4_000_000, 95_000_000, Latency(1.5, "measured"))
    assert six.size_bytes == 8_000_000
    assert six.latency == Latency(3.5, "measured")
    assert np.asarray(two.times) == pytest.approx(np.asarray([[1.35e-3, 1.65e-3]] * 4))
    low = along(replace(one, latency=None, memory_bytes=None), three, Shape(2, HALF, 0.99))
    assert low.latency is low.memory_bytes is None


def a_network_search(ms: dict[float, float], scores: dict[tuple[int, Narrow], float | None]) -> Scripted:
    """Of a network of convolutions: there is nothing to distil into and no vocabulary. `ms` by the share pruned."""
    workshop = a_workshop(["litert"])
    workshop.reference = Finished(Path("reference"), {"report": {"score": ORIGINAL_SCORE}})
    shares = [Narrow(channels=share) for share in ms if share]
    plan = CompressPlan(when="always", reason="test", coverage=[], narrow=shares)
    basis = a_candidate("litert int8", ms=ms[0], megabytes=10, workshop=workshop)

    class Network(Scripted):
        base, trim = Search.base, Search.trim

        def probe(self) -> None:
            def point(narrow: Narrow) -> Point:
                cost = ms[narrow.channels]
                return Point(Shape(0, narrow, 1.0), round(10e6 * min(1, cost)), Latency(cost, "estimate", cost, cost))

            self._whole = {(whole := point(WHOLE)).shape: whole}
            self.points = [point(narrow) for narrow in self.plan.narrow]

        def a_link(self, shape: Shape, score: float) -> Link:
            return replace(
                Scripted.a_link(self, replace(shape, layers=1, narrow=HALF, coverage=0.99), score), name=str(shape)
            )

    return Network(workshop, basis, plan, cast(Chain, None), 0, scores=scores)


def test_of_a_network_of_convolutions_channels_go() -> None:
    most, half, some = (Narrow(channels=share) for share in (0.65, 0.5, 0.3))
    search = a_network_search({0: 1.0, 0.5: 0.5, 0.3: 0.7, 0.65: 0.4}, {(0, half): None})
    link = search.run()
    assert link is not None and link.name == "30% of the channels pruned"
    outcomes = {point.shape.narrow: point.outcome for point in search.points}
    assert outcomes[half] == "rejected: hopeless"
    assert outcomes[some] == "passed"
    assert outcomes[most] == "not tried: no budget asks for so small a model"


def test_a_share_of_the_channels_that_does_not_pay_is_not_trained() -> None:
    search = a_network_search({0: 1.0, 0.01: 1.0}, {})
    assert search.run() is None
    assert search.trained == 0
    assert search.outcome.startswith(
        "No shape is worth a training. The nearest is 1% of the channels pruned: pruning does not pay: "
    )
