"""Choosing among candidates: synthetic timings and scores through the real gates and the real ranking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.made_up import a_candidate, a_workshop
from toolkit import candidates as steps
from toolkit import tasks
from toolkit.errors import ToolkitError
from toolkit.gates import Verdict
from toolkit.runner import Finished
from toolkit.workshop import Candidate, Workshop


def decide(workshop: Workshop, candidates: list[Candidate]) -> tuple[str, bool]:
    steps.judge_speed(workshop, candidates)
    winner, accepted = steps.choose(workshop, candidates)
    return winner.name, accepted


# Measured


def test_the_faster_wins_over_the_targets_order() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    slow = a_candidate("litert fp32", ms=2.0, workshop=workshop, noise=1)
    fast = a_candidate("onnxruntime fp32", ms=1.6, workshop=workshop, noise=2)
    assert decide(workshop, [slow, fast]) == ("onnxruntime fp32", True)
    assert fast.outcome == "chosen"
    assert slow.outcome == "passed; onnxruntime fp32 is faster"


@pytest.mark.parametrize("order", [["litert", "onnxruntime"], ["onnxruntime", "litert"]])
def test_speeds_that_are_not_told_apart_leave_it_to_the_target(order: list[str]) -> None:
    workshop = a_workshop(order)
    candidates = [
        a_candidate(f"{name} fp32", ms=2.0, noise=number, workshop=workshop)
        for number, name in enumerate(["litert", "onnxruntime"], start=1)
    ]
    assert decide(workshop, candidates) == (f"{order[0]} fp32", True)
    loser = next(c for c in candidates if c.name != f"{order[0]} fp32")
    assert loser.outcome.startswith(f"passed; not told apart from {order[0]} fp32")


def test_of_one_engine_the_smaller_file_wins_when_speeds_are_not_told_apart() -> None:
    workshop = a_workshop(["litert"])
    big = a_candidate("litert fp32", ms=2.0, megabytes=40, noise=1, workshop=workshop)
    small = a_candidate("litert int8", ms=2.0, megabytes=11, noise=2, workshop=workshop)
    assert decide(workshop, [big, small]) == ("litert int8", True)


def test_int8_that_is_slower_than_its_float_build_is_refused_with_the_reason() -> None:
    workshop = a_workshop(["litert"])
    base = a_candidate("litert fp32", ms=2.0, megabytes=40, noise=1, workshop=workshop)
    int8 = a_candidate("litert int8", ms=2.8, megabytes=11, noise=2, workshop=workshop)
    assert decide(workshop, [int8, base]) == ("litert fp32", True)
    assert int8.refused is not None
    assert int8.refused.startswith("speed: ")
    assert "1.40x its float build's time" in int8.refused
    assert int8.outcome == f"refused by {int8.refused}"


def test_int8_is_compared_with_its_own_engines_float_build() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    candidates = [
        a_candidate("litert fp32", ms=4.0, noise=1, workshop=workshop),
        a_candidate("litert int8", ms=3.0, noise=2, workshop=workshop),
        a_candidate("onnxruntime fp32", ms=2.0, noise=3, workshop=workshop),
    ]
    assert decide(workshop, candidates) == ("onnxruntime fp32", True)
    assert candidates[1].refused is None
    assert candidates[1].outcome == "passed; onnxruntime fp32 is faster"


def test_the_fastest_does_not_win_with_a_score_below_the_floor() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    wrong = a_candidate("litert fp32", ms=1.0, accuracy=0.85, workshop=workshop)
    right = a_candidate("onnxruntime fp32", ms=2.0, workshop=workshop)
    assert decide(workshop, [wrong, right]) == ("onnxruntime fp32", True)
    assert wrong.outcome.startswith("refused by score: accuracy 0.8500")


def test_all_refused_keeps_the_best_and_says_so() -> None:
    workshop = a_workshop(["litert", "onnxruntime"], max_latency_ms=0.5, max_size_mb=20.0)
    big = a_candidate("litert fp32", ms=2.0, megabytes=40, accuracy=0.95, workshop=workshop)  # fails size and latency
    small = a_candidate("onnxruntime fp32", ms=3.0, megabytes=10, workshop=workshop)  # fails latency only
    assert decide(workshop, [big, small]) == ("onnxruntime fp32", False)
    assert all(c.outcome.startswith("refused by ") for c in (big, small))
    assert small.refused is not None
    assert small.refused.startswith("latency budget: ")


def test_a_candidate_whose_latency_is_not_known_keeps_to_no_latency_budget() -> None:
    workshop = a_workshop(["litert", "onnxruntime"], max_latency_ms=5.0)
    unknown = a_candidate("litert fp32", workshop=workshop)
    known = a_candidate("onnxruntime fp32", ms=2.0, workshop=workshop)
    assert decide(workshop, [unknown, known]) == ("onnxruntime fp32", True)
    assert unknown.refused == "latency budget: not known (--max-latency 5 ms)"


def test_of_equally_refused_the_better_score_is_kept() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    worse = a_candidate("litert fp32", ms=1.0, accuracy=0.5, workshop=workshop)
    better = a_candidate("onnxruntime fp32", ms=2.0, accuracy=0.8, workshop=workshop)
    assert decide(workshop, [worse, better]) == ("onnxruntime fp32", False)


def test_of_refused_ones_that_are_equally_good_the_fastest_is_kept() -> None:
    workshop = a_workshop(["litert", "onnxruntime"], max_latency_ms=0.5)
    slow = a_candidate("litert fp32", ms=3.0, workshop=workshop)
    fast = a_candidate("onnxruntime fp32", ms=2.0, workshop=workshop)
    assert decide(workshop, [slow, fast]) == ("onnxruntime fp32", False)


def test_of_those_over_budget_the_quantized_one_is_kept_though_a_float_one_passes_parity_besides() -> None:
    workshop = a_workshop(["litert"], max_size_mb=1.0)
    big = a_candidate("litert fp32", ms=3.0, megabytes=40, accuracy=0.91, workshop=workshop)
    big.verdicts.append(Verdict("parity", True, "the same"))
    small = a_candidate("litert int8", ms=1.0, megabytes=11, noise=1, workshop=workshop)
    assert decide(workshop, [big, small]) == ("litert int8", False)


def test_a_candidate_that_could_not_be_built_is_never_chosen() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    broken = a_candidate("litert fp32", workshop=workshop)
    broken.built = broken.answers = None
    broken.verdicts = [Verdict("build", False, "no such operator")]
    good = a_candidate("onnxruntime fp32", ms=2.0, workshop=workshop)
    assert decide(workshop, [broken, good]) == ("onnxruntime fp32", True)
    assert broken.outcome == "refused by build: no such operator"
    good.built, good.verdicts = None, [Verdict("build", False, "no memory")]
    with pytest.raises(ToolkitError, match=r"No candidate could be built\. litert fp32: build: no such operator"):
        steps.choose(workshop, [broken, good])


def test_a_candidate_that_its_engine_cannot_run_is_not_timed() -> None:
    workshop = a_workshop(["litert"])
    workshop.own = Finished(Path("own"), {"report": {"operations": 1e9}})
    broken = a_candidate("litert fp32", workshop=workshop)
    broken.answers = None
    assert steps.time_them(workshop, [broken]) == {}  # would start the stage `measure` otherwise
    assert broken.latency is None


# Estimated


def test_estimates_on_one_processor_need_a_margin() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    first = a_candidate("litert fp32", estimate=(2.2, 4.4), workshop=workshop)
    second = a_candidate("onnxruntime fp32", estimate=(2.0, 4.0), workshop=workshop)
    assert decide(workshop, [first, second]) == ("litert fp32", True)  # a tenth is within the margin
    first = a_candidate("litert fp32", estimate=(3.0, 6.0), workshop=workshop)
    second = a_candidate("onnxruntime fp32", estimate=(2.0, 4.0), workshop=workshop)
    assert decide(workshop, [first, second]) == ("onnxruntime fp32", True)


def test_estimates_on_two_processors_need_disjoint_intervals() -> None:
    workshop = a_workshop(["litert", "tensorrt"])
    cpu = a_candidate("litert fp32", estimate=(5.0, 20.0), workshop=workshop)
    overlapping = a_candidate("tensorrt fp32", estimate=(0.5, 6.0), workshop=workshop)
    assert decide(workshop, [cpu, overlapping]) == ("litert fp32", True)
    cpu = a_candidate("litert fp32", estimate=(5.0, 20.0), workshop=workshop)
    clear = a_candidate("tensorrt fp32", estimate=(0.5, 4.0), workshop=workshop)
    assert decide(workshop, [cpu, clear]) == ("tensorrt fp32", True)


def test_a_known_speed_goes_before_an_unknown_one() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    unknown = a_candidate("litert fp32", workshop=workshop)
    known = a_candidate("onnxruntime fp32", estimate=(5.0, 20.0), workshop=workshop)
    assert decide(workshop, [unknown, known]) == ("onnxruntime fp32", True)


def test_ranking_is_complete_and_its_head_is_the_choice() -> None:
    workshop = a_workshop(["litert", "onnxruntime"])
    candidates = [
        a_candidate("litert fp32", ms=4.0, noise=1, workshop=workshop),
        a_candidate("litert int8", ms=1.0, noise=2, workshop=workshop),
        a_candidate("onnxruntime fp32", ms=3.0, noise=3, workshop=workshop),
        a_candidate("onnxruntime int8", ms=2.0, noise=4, workshop=workshop),
    ]
    names = [c.name for c in steps.ranked(workshop, candidates)]
    assert names == ["litert int8", "onnxruntime int8", "onnxruntime fp32", "litert fp32"]
    assert [c.name for c in steps.ranked(workshop, candidates[::-1])] == names


# A class that pays for the others


def test_a_class_that_collapses_is_refused_though_the_mean_stays(tmp_path: Path) -> None:
    """2,000 examples of four classes. Of the rarest, 30, the candidate gets 18, the float model gets all; elsewhere
    it is right a little more often, so that the mean moves by less than half a point."""
    truth = np.repeat([0, 1, 2, 3], [900, 700, 370, 30])
    generator = np.random.default_rng(7)
    before, after = np.eye(4)[truth] * 3, np.eye(4)[truth] * 3
    wrong = generator.permutation(1970)[:120]
    before[wrong] = np.eye(4)[(truth[wrong] + 1) % 3] * 3
    after[wrong[:115]] = before[wrong[:115]]
    after[1970 + generator.permutation(30)[:12]] = np.eye(4)[0] * 3
    folders = {name: tmp_path / name for name in ("data", "before", "after")}
    for folder in folders.values():
        folder.mkdir()
    lines = (json.dumps({"input": f"text {i}", "label": int(label)}) for i, label in enumerate(truth))
    (folders["data"] / "eval.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = ["film review", "product review", "editorial", "tweet"]
    (folders["data"] / "labels.json").write_text(json.dumps(names), encoding="utf-8")
    task = tasks.get("text-classification")
    reports = {}
    for name, logits in (("before", before), ("after", after)):
        np.save(folders[name] / "answers.npy", logits.astype(np.float32))
        metrics = task.metrics(logits, task.read_examples(folders["data"], "eval"), names)
        reports[name] = Finished(folders[name], {"report": metrics})
    workshop = a_workshop(["litert"])
    workshop.data = Finished(folders["data"], {"report": {"splits": {"eval": len(truth)}}})
    workshop.reference = workshop.own = reports["before"]
    candidate = a_candidate("litert int8", workshop=workshop)
    candidate.answers = reports["after"]
    steps.judge_answers(workshop, candidate)
    assert abs(reports["after"].report["score"] - reports["before"].report["score"]) < 0.005
    assert candidate.refused_by == {"classes"}
    assert candidate.refused is not None
    assert candidate.refused.startswith("classes: recall of 'tweet' 1.0000 → 0.6000 (-0.4000, 95 % interval ")
