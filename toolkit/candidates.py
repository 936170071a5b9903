"""Candidates: one artifact per engine and precision, made, gated, measured, and one of them chosen.

Float candidates are compared with the float checkpoint on a few hundred real examples first; the whole evaluation
split runs through a candidate only while it can still win. Every candidate keeps its verdicts and its reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from toolkit import answers, costs, engines, estimate, tasks
from toolkit import export as formats
from toolkit.answers.classes import class_changes
from toolkit.bench.statistics import Comparison, compare
from toolkit.errors import ToolkitError
from toolkit.gates import Verdict, classes, coverage, memory, operators, parity, parser, score, size, speed
from toolkit.gates.speed import Latency
from toolkit.runner import Finished
from toolkit.workshop import Candidate, Workshop

PARITY_EXAMPLES = 256
# Bytes of a model from which on there is no more than one at a time in memory than must be.
SIDE_BY_SIDE = 1_000_000_000
# Two engines' files of one model have different operators, so their estimates differ by up to a quarter although the
# profile says nothing of the engines; a calibration is off by less. Within this factor they are not told apart.
_ESTIMATE_MARGIN = 1.4


def make(workshop: Workshop) -> list[Candidate]:
    """Build all candidates and run the cheap gates; what does not wait for anything else is done side by side."""
    candidates = [Candidate(plan) for plan in workshop.recipe.candidates]
    by_engine: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        by_engine.setdefault(candidate.plan.engine, []).append(candidate)
    # The slowest export first, and the quantized candidate first, which has more to do: so the pool ends together.
    order = sorted(by_engine, key=lambda engine: -formats.KINDS[engines.FORMAT_OF[engine]].effort)

    with ThreadPoolExecutor(workshop.workers) as pool:
        jobs: list[Future[None]] = []

        def make_reference() -> None:
            original, own = workshop.original, workshop.checkpoint
            workshop.reference = workshop.evaluate(
                original.engine, original.folder, original.sha256, None, f"the {original.kind}"
            )
            workshop.own = workshop.reference
            if own.sha256 != original.sha256:
                workshop.own = workshop.evaluate(
                    own.engine, own.folder, own.sha256, None, f"the checkpoint, {workshop.label}"
                )

        def make_all(engine: str) -> None:
            try:
                exported = workshop.export(engine)
            except ToolkitError as error:
                for candidate in by_engine[engine]:
                    candidate.verdicts.append(Verdict("build", False, str(error)))
                return
            for candidate in sorted(by_engine[engine], key=lambda c: c.plan.method is None):
                jobs.append(pool.submit(finish, candidate, exported))

        def finish(candidate: Candidate, exported: Finished) -> None:
            try:
                built = workshop.quantize(exported, candidate.plan)
                artifact = json.loads((built.output / "artifact.json").read_text(encoding="utf-8"))
                candidate.built, candidate.artifact = built, artifact
                if workshop.needs_preflight(candidate.plan.engine):
                    candidate.preflight = workshop.preflight(built, candidate.plan.engine, candidate.name)
                candidate.coverage = workshop.coverage(built, candidate.plan.engine, candidate.name)
                # A float build of the original has its score to within rounding; that of another model may not.
                part = candidate.plan.method is None and workshop.checkpoint.sha256 == workshop.original.sha256
                first = PARITY_EXAMPLES if part else None
                candidate.answers = workshop.evaluate(
                    candidate.plan.engine, built.output, built.sha256, first, f"{candidate.name}{workshop.suffix}"
                )
            except ToolkitError as error:
                candidate.verdicts.append(Verdict("build", False, str(error)))

        try:
            jobs.append(pool.submit(make_all, order[0]))
            jobs.append(pool.submit(make_reference))
            jobs += [pool.submit(make_all, engine) for engine in order[1:]]
            for job in jobs:  # a job adds those that wait for it before it ends
                job.result()
        except BaseException:
            workshop.runner.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for candidate in candidates:
        judge_answers(workshop, candidate)
    return candidates


def judge_answers(workshop: Workshop, candidate: Candidate) -> None:
    """Preflight, parity (float), score, classes, size and memory, from the answers at hand."""
    assert workshop.reference is not None  # noqa: S101 - made before any candidate is judged
    assert workshop.own is not None  # noqa: S101
    if candidate.answers is None:
        return
    task = tasks.get(workshop.recipe.task)
    said = workshop.answers(candidate.answers)
    reference = workshop.answers(workshop.reference)[: len(said)]
    names = workshop.names()
    candidate.agreement = answers.get(task.ANSWERS).agreement(reference, said, names)
    candidate.verdicts = []
    if candidate.preflight is not None:
        found = candidate.preflight.report
        candidate.verdicts.append(operators.check(found["rules"]))
        if candidate.plan.engine == "tensorrt":
            candidate.verdicts.append(parser.check(found["parser"]))
    limit = workshop.target.engine(candidate.plan.engine).fallback_limit
    candidate.verdicts.append(coverage.check(candidate.coverage.report if candidate.coverage else None, limit))
    if candidate.plan.method is None:
        candidate.verdicts.append(parity.check(workshop.answers(workshop.own), said, task.ANSWERS))
    examples = task.read_examples(workshop.data.output, "eval")[: candidate.metrics["examples"]]
    same_examples = task.metrics(reference, examples, names)
    budgets = workshop.recipe.budgets
    candidate.verdicts.append(
        score.check(candidate.metrics["score"], same_examples["score"], budgets.min_score, task.SCORE_NAME)
    )
    if task.ANSWERS == "classes":
        allowed = same_examples["score"] - score.floor(budgets.min_score, same_examples["score"])
        changes = class_changes(reference, said, task.truth(examples), names, workshop.recipe.seed)
        candidate.verdicts.append(classes.check(changes, allowed))
    candidate.verdicts.append(size.check(candidate.artifact["size_bytes"], *budgets.of("max_size_mb")))
    if workshop.target.kind == "mcu":
        has_flash = workshop.target.memory.has_flash
        candidate.verdicts.append(memory.check_arena(candidate.artifact, has_flash, *budgets.of("max_memory_mb")))
    else:
        candidate.verdicts.append(memory.check(candidate.peak_rss_bytes, *budgets.of("max_memory_mb")))


def time_them(workshop: Workshop, candidates: list[Candidate]) -> dict[str, Any]:
    """Latency of every built candidate: interleaved measurement where this machine stands for the target, an
    estimate from the profile for the rest. Returns the measurement's report (empty if nothing was measured)."""
    report: dict[str, Any] = {}
    built = [c for c in candidates if c.built is not None and c.answers is not None]  # and its engine runs it
    cpu = [c for c in built if workshop.target.engine(c.plan.engine).processor == "cpu"]
    if workshop.measurable and cpu:
        report = measure(workshop, {candidate.name: candidate for candidate in cpu})
    for candidate in built:
        if candidate.latency is None:
            candidate.latency = estimated(workshop, candidate)
    return report


def estimated(workshop: Workshop, candidate: Candidate) -> Latency | None:
    """What the target's profile says of the latency of a built candidate, for an input of the mean length.

    Between the lengths of a file with fixed ones it is in proportion: the padding of one example, where the mean
    happens to lie, would count for or against the engine. None for files whose costs are not counted.
    """
    assert candidate.built is not None  # noqa: S101 - what is not built has no file
    path = candidate.built.output / candidate.artifact["path"]
    engine = workshop.target.engine(candidate.plan.engine)
    if not costs.are_counted(path):
        return None

    def at(sizes: dict[str, int]) -> Latency | None:
        operations = costs.of_engine(path, {"batch": 1, **workshop.own_axes(), **sizes}, engine.name)
        return estimate.latency(workshop.target, engine, candidate.plan.precision, operations)

    if "tokens" not in workshop.data_report:
        return at({})
    mean = round(workshop.data_report["tokens"]["mean"])
    mean = max(1, min(mean, workshop.data_report["encoding"].get("max_length", mean)))
    lengths = candidate.artifact["lengths"] or [mean]
    below = max((length for length in lengths if length <= mean), default=lengths[0])
    above = min((length for length in lengths if length >= mean), default=lengths[-1])
    short = at({"length": below})
    if above == below or short is None:
        return short
    long = at({"length": above})
    return None if long is None else estimate.between(short, long, (mean - below) / (above - below))


def measure(workshop: Workshop, candidates: Mapping[str, Candidate], title: str = "measure speed") -> dict[str, Any]:
    """Time candidates, by name, and the original float checkpoint in turn; fills `latency` and `times`."""
    from toolkit.devices import local

    listed = [
        {"name": name, "engine": c.plan.engine, "folder": str(c.built.output)}
        for name, c in candidates.items()
        if c.built
    ]
    original = workshop.original
    baseline: dict[str, str | None] = {"baseline": original.kind} if original.is_graph else {}
    if original.size_bytes >= SIDE_BY_SIDE:
        baseline = {"baseline": None}
    shared = {"encoding": workshop.data_report["encoding"], **baseline}
    device = local.describe()
    timing = workshop.runner.run(
        "measure",
        workshop.original.folder,
        {"candidates": listed, **shared},
        title=f"{title}{workshop.suffix}",
        reason="the fastest engine for one CPU is known only by measuring",
        inputs={
            "checkpoint": workshop.original.sha256,
            **{name: c.built.sha256 for name, c in candidates.items() if c.built},
        },
        data=workshop.data,
        threads=workshop.recipe.threads,
        with_torch=True,
        key_parameters={
            **shared,
            "threads": workshop.recipe.threads,
            "device": {key: device[key] for key in ("cpu_model", "isa", "cores", "system")},
        },
    )
    times = json.loads((timing.output / "times.json").read_text(encoding="utf-8"))
    for name, candidate in candidates.items():
        candidate.times = times[name]
        candidate.latency = Latency(timing.report["latency"][name]["mean_ms"], "measured")
    return timing.report


def judge_speed(workshop: Workshop, candidates: list[Candidate]) -> None:
    """The speed gate and the latency budget."""
    floats = {c.plan.engine: c for c in candidates if c.plan.method is None and c.latency is not None}
    for candidate in candidates:
        if candidate.answers is None:
            continue
        budget = speed.check_budget(candidate.latency, *workshop.recipe.budgets.of("max_latency_ms"))
        if candidate.latency is None:
            candidate.verdicts.append(budget)
            continue
        sibling = floats.get(candidate.plan.engine) if candidate.plan.method is not None else None
        against: Comparison | None = None
        if sibling is not None and candidate.times and sibling.times:
            against = compare(candidate.times, sibling.times, workshop.recipe.seed)
        candidate.verdicts += [speed.check(candidate.latency, sibling.latency if sibling else None, against), budget]


def is_faster(workshop: Workshop, a: Candidate, b: Candidate) -> bool:
    """True if A is faster than B beyond doubt: by interval where both are measured, by margin where one engine's
    processor is shared, by disjoint intervals otherwise."""
    if a.latency is None or b.latency is None:
        return a.latency is not None
    if a.times and b.times:
        return compare(a.times, b.times, workshop.recipe.seed).verdict == "faster"
    same = workshop.target.engine(a.plan.engine).processor == workshop.target.engine(b.plan.engine).processor
    if same:
        return a.latency.ms * _ESTIMATE_MARGIN < b.latency.ms
    return (a.latency.high_ms or a.latency.ms) < (b.latency.low_ms or b.latency.ms)


def ranked(workshop: Workshop, candidates: list[Candidate]) -> list[Candidate]:
    """Best first. Where speeds are not told apart, the target's order of engines decides, then the smaller file."""
    engines = [engine.name for engine in workshop.target.engines]
    remaining = sorted(
        candidates, key=lambda c: (engines.index(c.plan.engine), c.artifact.get("size_bytes", 0), c.name)
    )
    order: list[Candidate] = []
    while remaining:
        best = remaining[0]
        for other in remaining[1:]:
            if is_faster(workshop, other, best):
                best = other
        order.append(best)
        remaining.remove(best)
    return order


def choose(workshop: Workshop, candidates: list[Candidate]) -> tuple[Candidate, bool]:
    """The winner and whether it was accepted. A candidate is scored on the whole split before it may win.

    If every candidate is refused, the best of those that could be built is returned, not accepted. Raises the build's
    own error if none could be.
    """
    passing = ranked(workshop, [c for c in candidates if c.refused is None])
    for candidate in passing:
        complete(workshop, candidate)
        if candidate.refused is None:
            explain(workshop, candidates, candidate)
            return candidate, True
    built = [c for c in candidates if c.built is not None and c.answers is not None]
    if not built:
        raise ToolkitError("No candidate could be built. " + " | ".join(f"{c.name}: {c.refused}" for c in candidates))
    # The fewest refusals, then the better score if that is what refused them, then the fastest.
    best = max(
        ranked(workshop, built),
        key=lambda c: (-len(c.refused_by), c.metrics["score"] if score.NAME in c.refused_by else 1.0),
    )
    complete(workshop, best)
    explain(workshop, candidates, None)
    return best, False


def complete(workshop: Workshop, candidate: Candidate) -> None:
    """Extend a candidate's answers to the whole evaluation split and judge them again."""
    count = workshop.data_report["splits"]["eval"]
    if candidate.built is None or candidate.metrics.get("examples") == count:
        return
    kept = [v for v in candidate.verdicts if v.gate in (speed.NAME, speed.BUDGET_NAME)]
    candidate.answers = workshop.evaluate(
        candidate.plan.engine,
        candidate.built.output,
        candidate.built.sha256,
        None,
        f"{candidate.name}{workshop.suffix}",
    )
    judge_answers(workshop, candidate)
    candidate.verdicts += kept


def explain(workshop: Workshop, candidates: list[Candidate], winner: Candidate | None) -> None:
    """Write each candidate's outcome in words."""
    for candidate in candidates:
        if candidate is winner:
            candidate.outcome = "chosen"
        elif candidate.refused is not None:
            candidate.outcome = f"refused by {candidate.refused}"
        elif winner is not None and candidate.latency is None and winner.latency is not None:
            candidate.outcome = f"passed; its speed is not known, {winner.name}'s is"
        elif winner is not None and is_faster(workshop, winner, candidate):
            candidate.outcome = f"passed; {winner.name} is faster"
        elif winner is not None:
            candidate.outcome = f"passed; not told apart from {winner.name} in speed, which the target prefers"
