"""What a bundle's manifest and receipts say of how it was made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from toolkit.reports.data import Basis, Budgets, Conversion, Pair, Point, Stage


def of(data: Mapping[str, Any], name: str, receipts: Sequence[Mapping[str, Any]]) -> Conversion:
    metrics: Mapping[str, Any] = data.get("metrics") or {}
    score: Mapping[str, Any] = metrics.get("score") if isinstance(metrics.get("score"), dict) else {}  # type: ignore[assignment]
    latency: Mapping[str, Any] = metrics.get("latency") or {}
    device = metrics.get("device") or {}
    candidates = [_candidate(each, metrics.get("chosen")) for each in metrics.get("candidates") or ()]
    compression = metrics.get("compression") or {}
    return Conversion(
        name=name,
        content_hash=data["content_hash"],
        task=str(data["task"]),
        target=str(data["target"].get("name")),
        engine=str(data["engine"].get("name")),
        precision=str(data["artifact"].get("precision")),
        accepted=data["accepted"],
        refusals=[str(each) for each in data.get("refusals") or ()],
        chosen=metrics.get("chosen"),
        score_name=str(score.get("name") or metrics.get("score_name") or "score"),
        score_how=str(score.get("how") or "as the conversion measured it"),
        latency_how=str(latency.get("how") or "as the conversion measured it"),
        made_on=device.get("cpu_model"),
        data=next((str(each["output_sha256"]) for each in receipts if each.get("stage") == "prepare"), None),
        float_score=score.get("before"),
        behaviour=(metrics.get("behaviour") or {}).get("sentence"),
        validation=_validation(metrics.get("validation")),
        budgets=_budgets(metrics.get("budgets") or {}),
        chain=_chain(metrics, score, latency, candidates, compression),
        candidates=candidates,
        tried=[
            _linked(each, each["name"], outcome=each.get("outcome", "")) for each in compression.get("points") or ()
        ],
        pairs=list(_pairs(metrics, latency, name, device.get("cpu_model") or "")),
        stages=[
            Stage(
                title=str(each.get("title")), stage=str(each.get("stage")), seconds=each.get("seconds"),
                peak_rss_bytes=each.get("peak_rss_bytes"), cached=bool(each.get("cached")),
                reason=str(each.get("reason") or ""),
            )
            for each in receipts
        ],
        versions={str(package): str(version) for package, version in (data.get("tool_versions") or {}).items()},
    )  # fmt: skip


def _budgets(found: Mapping[str, Any]) -> Budgets:
    """What a conversion was to keep to; what its manifest does not attribute was given by an option."""
    given = {key: value for key, value in found.items() if key in Budgets.model_fields and key != "given_by"}
    options = {"max_latency_ms": "--max-latency", "max_size_mb": "--max-size", "max_memory_mb": "--max-memory"}
    sources = {key: f"the conversion's {options.get(key, '--min-score')}" for key in given}
    return Budgets(**given, given_by={**sources, **(found.get("given_by") or {})})


def _validation(found: Any) -> str | None:
    """How far a validation without the device reached."""
    if not isinstance(found, dict):
        return None
    from toolkit.tensorrt import rungs

    return rungs.sentence(found)


def _candidate(found: Mapping[str, Any], chosen: str | None) -> Point:
    latency = found.get("latency") or {}
    return Point(
        name=found["name"],
        kept=found["name"] == chosen or str(found.get("outcome", "")).startswith("passed"),
        outcome=str(found.get("outcome") or ""),
        score=found.get("score"),
        score_examples=found.get("score_examples"),
        size_bytes=found.get("size_bytes"),
        latency_ms=latency.get("ms"),
        latency_low_ms=latency.get("low_ms"),
        latency_high_ms=latency.get("high_ms"),
        latency_basis=latency.get("kind"),
    )


def _linked(link: Mapping[str, Any], name: str, **more: Any) -> Point:
    basis: Basis | None = link.get("latency_kind") if link.get("latency_ms") is not None else None
    return Point(
        name=name, score=link.get("score"), size_bytes=link.get("size_bytes"), latency_ms=link.get("latency_ms"),
        latency_basis=basis, **more,
    )  # fmt: skip


def _chain(
    metrics: Mapping[str, Any],
    score: Mapping[str, Any],
    latency: Mapping[str, Any],
    candidates: Sequence[Point],
    compression: Mapping[str, Any],
) -> list[Point]:
    """From the float checkpoint to the bundle: what was exported, what each stage of a compression left, what was
    quantized. A score on fewer examples than the others cannot stand beside them and is left out."""
    chosen = next((each for each in candidates if each.name == metrics.get("chosen")), None)
    if chosen is None:
        return []
    before = latency.get("before_ms")
    points = [
        Point(
            name="float checkpoint", stage="checkpoint", score=score.get("before"),
            score_examples=score.get("examples"),
            size_bytes=(metrics.get("size") or {}).get("before_bytes"), latency_ms=before,
            latency_basis="measured" if before is not None else None, outcome="what it started from",
        )
    ]  # fmt: skip
    if compression.get("original"):
        basis = compression.get("basis")
        points.append(_linked(compression["original"], f"as {basis}", stage="export", outcome=f"exported as {basis}"))
        points += [_stage(step) for step in compression.get("steps") or ()]
        if chosen.name == basis:
            return points
    engine = chosen.name.partition(" ")[0]
    sibling = next((each for each in candidates if each.name == f"{engine} fp32" and each is not chosen), None)
    if sibling is not None:
        alike = sibling.score_examples == chosen.score_examples
        outcome = "exported" if alike else f"exported; its score is of {sibling.score_examples} examples alone"
        points.append(
            sibling.model_copy(
                update={"stage": "export", "kept": True, "outcome": outcome, "score": sibling.score if alike else None}
            )
        )
    return [*points, chosen.model_copy(update={"stage": "bundle", "outcome": "in the bundle"})]


def _stage(step: Mapping[str, Any]) -> Point:
    """What a stage of the compression chain left, or that it left nothing."""
    refused = next((gate for gate in step.get("gates") or () if not gate.get("passed")), None)
    outcome = (
        "kept" if step.get("kept") else f"undone by {refused['gate']}: {refused['reason']}" if refused else "undone"
    )
    after = step.get("after")
    named = f"{step.get('stage')}: {step['name']}"
    more = {"stage": step.get("stage"), "kept": bool(step.get("kept")), "outcome": outcome}
    if after is None:
        return Point(name=named, **more)
    return _linked(after, named, before_ms=step.get("latency_before_ms"), **more)


def _pairs(metrics: Mapping[str, Any], latency: Mapping[str, Any], name: str, where: str) -> Iterable[Pair]:
    """What the conversion timed in turn."""
    source = f"the conversion of {name}"
    against = latency.get("against_before")
    if against:
        yield Pair(
            a=str(metrics.get("chosen")),
            b="the float checkpoint",
            where=where,
            source=source,
            kind="measured",
            **against,
        )
    for candidate, found in (metrics.get("against_float_sibling") or {}).items():
        engine = candidate.partition(" ")[0]
        yield Pair(a=candidate, b=f"{engine} fp32", where=where, source=source, kind="measured", **found)
