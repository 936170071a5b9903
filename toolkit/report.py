"""What a conversion tells people: the summary as data, and as one self-contained HTML page."""

from __future__ import annotations

import html as markup
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from toolkit import answers, estimate, plot, tasks
from toolkit.bench.statistics import compare
from toolkit.devices import local
from toolkit.gates import coverage
from toolkit.tensorrt import rungs

if TYPE_CHECKING:
    from toolkit.recipe import Recipe
    from toolkit.workshop import Candidate, Workshop


def summarize(
    workshop: Workshop,
    candidates: Sequence[Candidate],
    winner: Candidate,
    accepted: bool,
    timing: Mapping[str, Any],
    *,
    compression: Mapping[str, Any] | None,
    build: Mapping[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    """Score, size and latency before and after, every candidate's outcome, the data report."""
    assert workshop.reference is not None  # noqa: S101 - a winner has been judged against it
    before = timing.get("latency", {}).get(timing.get("baseline"), {}).get("mean_ms")
    against = timing.get("against_baseline", {}).get(winner.name)
    latency: dict[str, Any] = {
        "before_ms": before,
        "after": winner.as_dict()["latency"],
        "against_before": against,
    }
    measured_here = winner.latency is not None and winner.latency.kind == "measured"
    device = local.describe()
    if measured_here:
        latency["how"] = (
            f"mean over {timing['examples']} evaluation examples at their real lengths, batch 1, "
            f"{timing['threads']} thread, builds in turn; on this machine: {device['cpu_model']}"
        )
    elif winner.latency is not None:
        known = estimate.is_calibrated(workshop.target, workshop.target.engine(winner.plan.engine))
        basis = f"{'calibration' if known else 'profile'} of {workshop.target.name}"
        latency["how"] = f"estimate from the {basis}; nothing was run there"
    else:
        latency["how"] = f"not known: nothing to estimate it by for {workshop.target.name}, and nothing was run there"
    siblings = {}
    for candidate in candidates:
        fp32 = next((c for c in candidates if c.plan.engine == candidate.plan.engine and not c.plan.method), None)
        if fp32 is not None and fp32 is not candidate and fp32.times and candidate.times:
            siblings[candidate.name] = compare(candidate.times, fp32.times, workshop.recipe.seed).as_dict()
    return {
        "target": workshop.target.name,
        "task": workshop.recipe.task,
        "accepted": accepted,
        "chosen": winner.name,
        "budgets": workshop.recipe.budgets.model_dump(exclude_none=True),
        "validation": winner.validation,
        "command": workshop.target.engine(winner.plan.engine).command,
        "engine_build": dict(build) if build is not None else None,
        "score": {
            "name": winner.metrics["score_name"],
            "before": workshop.reference.report["score"],
            "after": winner.metrics["score"],
            "examples": winner.metrics["examples"],
            "metrics": {key: value for key, value in winner.metrics.items() if key not in _SAID},
            "how": "artifact through its engine, raw example to answer, on the held-out evaluation split",
        },
        "behaviour": _behaviour(workshop, winner),
        "size": {"before_bytes": workshop.original.size_bytes, "after_bytes": winner.artifact["size_bytes"]},
        "latency": latency,
        "candidates": [candidate.as_dict() for candidate in candidates],
        "compression": dict(compression) if compression is not None else None,
        "against_float_sibling": siblings,
        "skipped": [skipped.model_dump() for skipped in workshop.recipe.skipped],
        "data": dict(workshop.data_report),
        "device": device,
        "seconds": round(seconds, 1),
    }


def _behaviour(workshop: Workshop, winner: Candidate) -> dict[str, Any]:
    """The winner beside the float checkpoint, on the examples that both answered."""
    assert workshop.reference is not None  # noqa: S101 - a winner has been judged against it
    assert winner.answers is not None  # noqa: S101
    task = tasks.get(workshop.recipe.task)
    after = workshop.answers(winner.answers)
    before = workshop.answers(workshop.reference)[: len(after)]
    examples = task.read_examples(workshop.data.output, "eval")[: winner.metrics["examples"]]
    truth, captions = task.truth(examples), task.captions(examples)
    module = answers.get(task.ANSWERS)
    found = module.describe(before, after, truth, workshop.names(), captions, workshop.recipe.seed)
    return {"kind": task.ANSWERS, **found, "sentence": module.sentence(found)}


def latency_text(latency: Mapping[str, Any] | None) -> str:
    """A latency with its kind: `2.10 ms`, or `estimate 1.2-3.4 ms`."""
    if latency is None:
        return "not available"
    if latency["kind"] == "measured":
        return f"{latency['ms']:.2f} ms"
    return f"estimate {latency['low_ms']:.2g}-{latency['high_ms']:.2g} ms"


def score_text(candidate: Mapping[str, Any]) -> str:
    """A candidate's score with the number of examples behind it."""
    if candidate["score"] is None:
        return "-"
    return f"{candidate['score']:.4f} (n={candidate['score_examples']})"


# What the report says of the score in another place.
_SAID = ("score", "score_name", "examples", "operations")
_STYLE = """
:root{color-scheme:light dark;--line:#8884;--good:#1a7f37;--bad:#b42318}
@media(prefers-color-scheme:dark){:root{--good:#4ac26b;--bad:#ff7b72}}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
table{border-collapse:collapse;width:100%;display:block;overflow-x:auto}
th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
td.number{text-align:right;font-variant-numeric:tabular-nums}
.good{color:var(--good)}.bad{color:var(--bad)}small{opacity:.75}code{font-size:.9em}
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = "".join(f"<th>{markup.escape(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{markup.escape(str(value))}</td>" for value in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def size_text(size: int | None) -> str:
    """A size in MB, or in kB where that says nothing."""
    if size is None:
        return "-"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def before_and_after(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The three rows that everybody wants: score, size, latency, each before and after."""
    score, size, latency = summary["score"], summary["size"], summary["latency"]
    before = f"{latency['before_ms']:.2f} ms" if latency["before_ms"] else "not measured"
    after = latency_text(latency["after"])
    if latency["against_before"]:
        speedup = 1 / latency["against_before"]["ratio"]
        after += f" ({speedup:.1f}x faster)"
    return [
        (f"{score['name']} (n={score['examples']})", f"{score['before']:.4f}", f"{score['after']:.4f}"),
        ("size", size_text(size["before_bytes"]), size_text(size["after_bytes"])),
        ("latency", before, after),
    ]


def chain_rows(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per stage of the compression chain: what it was, what came out, whether it was kept and why not."""
    rows = [_link_row(found["original"], "start", "")] if "original" in found else []
    for step in found["steps"]:
        refused = next((f"{gate['gate']}: {gate['reason']}" for gate in step["gates"] if not gate["passed"]), "")
        outcome = "kept" if step["kept"] else f"undone by {refused}"
        if step["after"] is None:
            rows.append((step["name"], "-", "-", "-", "-", outcome))
        else:
            rows.append(_link_row(step["after"], outcome, _times(step)))
    return rows


def _times(step: Mapping[str, Any]) -> str:
    """How much faster a stage made it, by the latencies that were measured side by side."""
    before, after = step.get("latency_before_ms"), step["after"]["latency_ms"]
    return f" ({before / after:.2f}x)" if before and after else ""


def _link_row(link: Mapping[str, Any], outcome: str, times: str) -> tuple[str, ...]:
    latency = "-" if link["latency_ms"] is None else f"{link['latency_ms']:.2f} ms{times}"
    if link["latency_kind"] == "estimate":
        latency = f"estimate {latency}"
    return (
        link["name"],
        f"{link['parameters'] / 1e6:.2f} M",
        size_text(link["size_bytes"]),
        f"{link['score']:.4f}",
        latency,
        outcome,
    )


CHAIN_HEAD = ("stage", "weights", "artifact", "score", "latency", "outcome")


def pareto(summary: Mapping[str, Any]) -> str | None:
    """Score over latency of everything that was answered and timed, as SVG; None without a chain."""
    found = summary["compression"]
    if not found or "original" not in found or found["original"]["latency_ms"] is None:
        return None
    links = [(found["original"], True)]
    links += [(step["after"], step["kept"]) for step in found["steps"] if step["after"] is not None]
    dots = [plot.Dot(link["name"], link["latency_ms"], link["score"], kept) for link, kept in links]
    return plot.scatter(dots, f"milliseconds, {found['basis']}, log scale", summary["score"]["name"], found["floor"])


def _chain_section(summary: Mapping[str, Any]) -> list[str]:
    found = summary["compression"]
    if not found:
        return []
    points = [
        (
            p["name"], size_text(p["size_bytes"]),
            "-" if p["latency_ms"] is None else f"{p['latency_ms']:.2f} ms ({p['latency_kind']})",
            "-" if p["score"] is None else f"{p['score']:.4f}", p["outcome"],
        )
        for p in found["points"]
    ]  # fmt: skip
    drawn = pareto(summary)
    return [
        "<h2>Compression</h2>",
        f"<p>{markup.escape(found['outcome'])}.</p>",
        _table(CHAIN_HEAD, chain_rows(found)) if found["steps"] else "",
        f"<figure>{drawn}<figcaption><small>Filled: kept. Hollow: undone. Dashed red: the least score."
        "</small></figcaption></figure>"
        if drawn
        else "",
        "<h3>Shapes that were looked at</h3>" if points else "",
        _table(("shape", "size", "latency, untrained", "score", "outcome"), points) if points else "",
    ]


def _behaviour_section(found: Mapping[str, Any]) -> list[str]:
    parts = ["<h2>Beside the float checkpoint</h2>", f"<p>{markup.escape(found['sentence'])}."]
    if "calibration_error_before" in found:
        parts.append(
            f"Expected calibration error: {found['calibration_error_before']:.4f} before, "
            f"{found['calibration_error_after']:.4f} after."
        )
    parts.append("</p>")
    if "classes" in found:
        rows = [
            (
                name, c["examples"], f"{c['recall_before']:.4f}", f"{c['recall_after']:.4f}",
                f"{c['change']:+.4f} ({c['low']:+.4f} to {c['high']:+.4f})",
            )
            for name, c in found["classes"].items()
        ]  # fmt: skip
        parts.append(_table(("class", "examples", "recall before", "after", "change (95 % interval)"), rows))
    worst = found["worst"]
    head = [key.replace("_", " ") for key in worst[0]] if worst else []
    return [
        *parts,
        "<details><summary>The examples that lost most</summary>",
        _table(head, [list(each.values()) for each in worst]),
        "</details>",
    ]


def _metrics_section(metrics: Mapping[str, Any]) -> list[str]:
    """What the score leaves out: numbers in a row, and a table of the classes."""
    numbers = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
    said = ", ".join(f"{key.replace('_', ' ')} {value:.4f}" for key, value in numbers.items())
    parts = [f"<p>{markup.escape(said)}.</p>"] if said else []
    if "per_class" in metrics:
        rows = [
            (name, f"{v['precision']:.3f}", f"{v['recall']:.3f}", f"{v['f1']:.3f}", v["support"])
            for name, v in metrics["per_class"].items()
        ]
        parts += ["<h2>Classes</h2>", _table(("class", "precision", "recall", "F1", "examples"), rows)]
    return parts


def _coverage_section(candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """How much of each candidate falls back, where a rule table says it."""
    rows = [
        (
            c["name"], c["coverage"]["table"], f"{found['operators']} of {c['coverage']['operators']}",
            "-" if found["multiply_adds"] is None else coverage.percent(found["multiply_adds"]),
            "-" if found["bytes"] is None else coverage.percent(found["bytes"]),
            c["coverage"]["partitions"],
        )
        for c in candidates
        if c["coverage"]
        for found in [c["coverage"]["fallback"]]
    ]  # fmt: skip
    head = ("candidate", "rule table", "operators that fall back", "of the multiply-adds", "of the bytes", "parts")
    return ["<h2>Coverage</h2>", _table(head, rows)] if rows else []


def _validation_section(found: Mapping[str, Any] | None, build: Mapping[str, Any] | None) -> list[str]:
    """How far the validation reached of what is built on the device, and what became of its engine."""
    if found is None:
        return []
    engine = [f"<p>Engine: {markup.escape(build['detail'])}.</p>"] if build else []
    head = ("rung", "what is looked at", "outcome", "")
    return [
        "<h2>Validation</h2>",
        f"<p>{markup.escape(rungs.sentence(found))}.</p>",
        _table(head, rungs.rows(found["steps"])),
        *engine,
    ]


def html(summary: Mapping[str, Any], receipts: Sequence[Mapping[str, Any]], recipe: Recipe) -> str:
    """The report page: no script, nothing loaded from anywhere, readable on a phone and in the dark."""
    verdict = '<b class="good">accepted</b>' if summary["accepted"] else '<b class="bad">refused by the gates</b>'
    candidates = [
        (c["name"], size_text(c["size_bytes"]), score_text(c), latency_text(c["latency"]), c["outcome"])
        for c in summary["candidates"]
    ]
    verdicts = [
        (c["name"], v["gate"], "passed" if v["passed"] else "refused", v["reason"])
        for c in summary["candidates"]
        for v in c["verdicts"]
    ]
    stages = [
        (
            r["title"], "from the cache" if r["cached"] else f"{r['seconds']:.1f} s",
            size_text(r["peak_rss_bytes"]), r["reason"],
        )
        for r in receipts
    ]  # fmt: skip
    dropped = ", ".join(f"{count} {why}" for why, count in summary["data"]["dropped"].items()) or "nothing"
    title = markup.escape(f"{summary['chosen']} for {summary['target']}")
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}: {verdict}</h1>",
        _table(("", "before (float checkpoint)", "after (this bundle)"), before_and_after(summary)),
        f"<p><small>Score: {markup.escape(summary['score']['how'])}. "
        f"Latency: {markup.escape(summary['latency']['how'])}.</small></p>",
        f"<p>For the device: <code>{markup.escape(summary['command'])}</code></p>" if summary["command"] else "",
        *_validation_section(summary["validation"], summary["engine_build"]),
        "<h2>Candidates</h2>",
        _table(("candidate", "size", summary["score"]["name"], "latency", "outcome"), candidates),
        "<h2>Gates</h2>",
        _table(("candidate", "gate", "verdict", "why"), verdicts),
        *_coverage_section(summary["candidates"]),
        *_metrics_section(summary["score"]["metrics"]),
        *_behaviour_section(summary["behaviour"]),
        *_chain_section(summary),
        "<h2>Stages</h2>",
        _table(("stage", "time", "peak memory", "why"), stages),
        "<h2>Data</h2>",
        f"<p>{summary['data']['used']} of {summary['data']['rows']} rows used; dropped: {markup.escape(dropped)}. "
        f"Splits: {markup.escape(str(summary['data']['splits']))}. "
        + (f"Input lengths: {markup.escape(str(summary['data']['lengths']))}." if summary["data"]["lengths"] else "")
        + "</p>",
        "<h2>Not tried</h2>",
        _table(("what", "why"), [(s["what"], s["reason"]) for s in summary["skipped"]])
        if summary["skipped"]
        else "<p>Everything that the target allows was tried.</p>",
        "<h2>Made on</h2>",
        _table(("", ""), [(key, value) for key, value in summary["device"].items()]),
        f"<h2>Recipe</h2><pre><code>{markup.escape(recipe.to_yaml())}</code></pre></html>",
    ]
    return "\n".join(parts)
