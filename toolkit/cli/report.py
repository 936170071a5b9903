"""`toolkit report`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output


@click.command(name="report")
@click.argument("runs", nargs=-1, required=True, metavar="RUN…")
@click.option(
    "-o", "--output", "output_files", multiple=True, metavar="FILE",
    help="Where to write: .html, .md, .csv or .json; may be given more than once.  [default: report.html]",
)  # fmt: skip
@click.option("--max-latency", type=options.MILLISECONDS, help="Budget: mean latency, e.g. 20ms.")
@click.option("--max-size", type=options.MEGABYTES, help="Budget: size of the artifact, e.g. 25MB.")
@click.option("--max-memory", type=options.MEGABYTES, help="Budget: peak memory of the process, e.g. 150MB.")
@click.option("--min-score", metavar="SCORE", help="Budget: a share of the float checkpoint's, 99%, or absolute, 0.83.")
@click.option("--history", is_flag=True, help="RUN… are records over time; of a folder under git, its commits, too.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON, and write files only for -o.")
def command(
    runs: tuple[str, ...],
    output_files: tuple[str, ...],
    history: bool,
    as_json: bool,
    max_latency: float | None,
    max_size: float | None,
    max_memory: float | None,
    min_score: str | None,
) -> None:
    """Make one page of RUN…: records of `toolkit bench -o`, bundles, tables of sensitivity, folders of these.

    Budgets that are not given here are those of the bundles' conversions.

    \b
    Examples:
      toolkit report demo-host record.json -o report.html -o report.md
      toolkit report --history benchmarks/results/records -o history.html
    """
    from pathlib import Path

    from toolkit import reports

    paths = [Path(run) for run in runs]
    files = [Path(name) for name in output_files] or ([] if as_json else [Path("report.html")])
    asked = {
        "max_latency_ms": max_latency,
        "max_size_mb": max_size,
        "max_memory_mb": max_memory,
        "min_score": min_score,
    }
    report = reports.make(paths, history=history, **asked)
    reports.write(report, files, paths)
    if as_json:
        output.print_json(report.model_dump(mode="json"))
        return
    _print(report)
    for file in files:
        click.echo(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


def _print(report: Any) -> None:
    """What a person wants to see first."""
    from toolkit.reports.sections import verdict

    for card in verdict.cards(report):
        click.echo(f"{card.title} ({card.subtitle}): {card.verdict}")
    for series in report.history:
        last = series.changes[-1] if series.changes else None
        changed = f"; last change {100 * (last.ratio - 1):+.1f} %" if last else ", no change that intervals tell"
        click.echo(f"{series.name} on {series.device}: {len(series.runs)} runs{changed}")
