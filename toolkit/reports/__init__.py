"""Reports: what was measured and converted, as one HTML page, Markdown, CSV or JSON.

`gather` reads records and bundles into `data.Report`; `sections` turns that into blocks, a file per section; `page` and
`markdown` write blocks, `values` the numbers alone. Pictures are drawn by `charts`, when a page is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.errors import InputError

if TYPE_CHECKING:
    from toolkit.bench.record import ComparisonRecord, Record
    from toolkit.reports.data import Report

# What a file of a report is, by the end of its name.
FORMATS = (".html", ".md", ".csv", ".json")


def make(runs: Sequence[Path], *, history: bool = False, **asked: Any) -> Report:
    """The report of records, bundles and tables, or with `history` of records over time. `asked` are budgets that stand
    above those of the bundles. Raises InputError."""
    import toolkit
    from toolkit.gates import score
    from toolkit.reports import data, gather, over_time

    names = {"max_latency_ms": "--max-latency", "max_size_mb": "--max-size", "max_memory_mb": "--max-memory",
             "min_score": "--min-score"}  # fmt: skip
    given = {name: value for name, value in asked.items() if value is not None}
    if "min_score" in given:
        score.parse(given["min_score"])
    budgets = data.Budgets(**given, given_by={name: names[name] for name in given})
    if not history:
        return gather.report(runs, budgets)
    found, left_out = over_time.series(runs)
    return data.Report(toolkit=toolkit.__version__, asked=budgets, history=found, left_out=left_out)


def titles(report: Report) -> tuple[str, str]:
    """(title, what is below it)."""
    measured: list[Record | ComparisonRecord] = [*report.records, *report.comparisons]
    benched = [record.bundle.name for record in report.records]
    benched += [bundle.name for each in report.comparisons for bundle in each.bundles]
    converted = [each.name for each in report.conversions if each.name not in benched]
    bundles = list(dict.fromkeys(benched or converted))
    devices = list(dict.fromkeys(each.device.title for each in measured))
    if not bundles and report.history:
        names = list(dict.fromkeys(series.name for series in report.history))
        title = f"{names[0]} over time" if len(names) == 1 else f"{len(names)} benchmarks over time"
        days = sorted(run.when for series in report.history for run in series.runs)
        return title, f"{days[0][:10]} to {days[-1][:10]}, toolkit {report.toolkit}"
    title = _listed(bundles, "bundle") or _listed([each.name for each in report.sensitivities], "table")
    if devices:
        title += f" on {_listed(devices, 'device')}"
    days = sorted({each.created[:10] for each in measured})
    when = f"Benchmarked {' and '.join(dict.fromkeys((days[0], days[-1])))}. " if days else ""
    when += f"Not benchmarked: {', '.join(converted)}. " if converted else ""
    return title or "Nothing", f"{when}Written by toolkit {report.toolkit}."


def _listed(names: Sequence[str], what: str) -> str:
    return " and ".join(names) if len(names) <= 2 else f"{len(names)} {what}s"


def render(report: Report, suffix: str) -> str:
    """The text of a report in one of `FORMATS`. Raises MissingDependencyError where a page cannot be drawn."""
    if suffix == ".json":
        return report.model_dump_json(indent=2) + "\n"
    if suffix == ".csv":
        from toolkit.reports import values

        return values.write(report)
    from toolkit.reports import markdown, page, sections

    title, subtitle = titles(report)
    if suffix == ".md":
        return markdown.write(title, subtitle, sections.of(report))
    footer = "This page holds everything that it shows: it loads nothing and runs no script."
    return page.write(title, subtitle, sections.of(report), footer)


def write(report: Report, outputs: Sequence[Path], inputs: Sequence[Path] = ()) -> None:
    """Write a report to files, each in the format that its name ends with: all of them, or none. Raises InputError for
    a file that is one of the inputs, or lies in a bundle, which it would damage."""
    from toolkit.runtime.manifest import FILE_NAME
    from toolkit.storage import explained, write_atomic

    for path in outputs:
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"{path}: a report ends with {', '.join(FORMATS)}.")
        if any(path.resolve() == each.resolve() for each in inputs):
            raise InputError(f"{path} is one of the inputs; choose another -o.")
        folder = path.absolute().parent
        if any((above / FILE_NAME).exists() for above in (folder, *folder.parents)):
            raise InputError(
                f"{path} lies in a bundle, which would no longer be what its hashes say; choose another -o."
            )
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist; make it, or choose another -o.")
    made: list[tuple[Path, str]] = [(path, render(report, path.suffix.lower())) for path in outputs]
    for path, text in made:
        with explained("writing the report", path):
            write_atomic(path, text)
