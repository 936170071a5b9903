"""`toolkit inspect`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output

MOST_ROWS = 12


@click.command(name="inspect")
@click.argument("path")
@click.option("--target", metavar="NAME", help="Show what falls back there, by the rule tables of its engines.")
@click.option("--size", "sizes", multiple=True, type=options.Setting(), help="With --target: size of a dynamic axis.")
@click.option("--ask", is_flag=True, help="With --target: also ask the runtimes that are installed here.")
@click.option("--times", is_flag=True, help="With --target: the estimate by PyTorch module.")
@click.option("--all", "all_rows", is_flag=True, help=f"With --target: every row, not the first {MOST_ROWS}.")
@click.option("--cache-dir", metavar="FOLDER", help="Stage cache, for a checkpoint that is exported.")
@click.option("--allow-code", is_flag=True, help="Run the Python code that a model folder brings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    path: str,
    target: str | None,
    sizes: tuple[tuple[str, Any], ...],
    times: bool,
    all_rows: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Show what PATH is: a bundle, a checkpoint folder, or an ONNX, LiteRT, OpenVINO or ExecuTorch file. With --target,
    how much of it falls back there, and what an inference may take.

    \b
    Example:
      toolkit inspect demo-host
      toolkit inspect model.onnx --target jetson
    """
    from pathlib import Path

    from toolkit import inspection

    if target is None:
        needs = {"--size": sizes, "--ask": given["ask"], "--times": times, "--all": all_rows}
        given_alone = [name for name, value in needs.items() if value]
        if given_alone:
            raise click.UsageError(f"{given_alone[0]} needs --target.")
        facts = inspection.inspect(Path(path))
        if as_json:
            output.print_json(facts)
        else:
            output.print_table(str(path), ("", ""), inspection.rows(facts))
        return
    most = None if all_rows else MOST_ROWS
    _coverage(Path(path), target, options.sizes(sizes), times, most, as_json, given)


def _coverage(
    path: Any, name: str, sizes: dict[str, int], times: bool, most: int | None, as_json: bool, given: dict[str, Any]
) -> None:
    """What falls back on a target, and what an inference may take."""
    from toolkit import target as targets
    from toolkit import target_coverage

    target = targets.resolve(name)
    with output.reporting(as_json) as reporter:
        found = target_coverage.of(path, target, sizes=sizes, reporter=reporter, **given)
    if as_json:
        output.print_json({"path": str(path), "target": target.name, "engines": [each.as_dict() for each in found]})
        return
    output.print_table(f"{path} on {target.name}", target_coverage.HEAD, target_coverage.rows(found))
    for each in found:
        offenders = each.coverage.offenders
        if offenders:
            shown = target_coverage.offender_rows(each.coverage, most or len(offenders))
            output.print_table(f"{each.engine}: what falls back", target_coverage.OFFENDERS_HEAD, shown)
            if len(shown) < len(offenders):
                click.echo(f"and {len(offenders) - len(shown)} more reasons: --all")
        if times and each.costs:
            shown = target_coverage.time_rows(each.costs, most or len(each.costs))
            output.print_table(f"{each.engine}: what takes how long", target_coverage.TIMES_HEAD, shown)
    for each in found:
        click.echo(f"{target_coverage.verdict(each)}.")
        click.echo(f"  {target_coverage.estimated(each)}")
        if each.coverage.note:
            click.echo(f"  {each.coverage.note}")
        if each.observed:
            click.echo(f"  {target_coverage.observation(each.observed, each.coverage.operators)}")
