"""`toolkit targets`."""

from __future__ import annotations

import click

from toolkit.cli import output


@click.group(name="targets", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List, show and lint hardware profiles.

    \b
    Examples:
      toolkit targets
      toolkit targets show jetson
      toolkit targets lint my-board.yaml
    """
    if ctx.invoked_subcommand is not None:
        return
    from toolkit import target as targets

    found = [targets.load_file(path) for path in targets.available().values()]
    found.append(targets.resolve(targets.HOST))
    if as_json:
        output.print_json([target.model_dump(mode="json", exclude_none=True) for target in found])
        return
    rows = [
        (
            t.name,
            ", ".join(t.aliases),
            t.title,
            ", ".join(f"{e.name} ({'/'.join(e.precisions)})" for e in t.engines),
        )
        for t in found
    ]
    output.print_table("Targets", ("name", "aliases", "hardware", "engines"), rows)


@command.command(name="show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Print one profile in full, with its sources."""
    import yaml

    from toolkit import target as targets

    data = targets.resolve(name).model_dump(mode="json", exclude_none=True)
    if as_json:
        output.print_json(data)
    else:
        click.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110), nl=False)


@command.command(name="lint")
@click.argument("files", nargs=-1)
def lint(files: tuple[str, ...]) -> None:
    """Check profile FILES, by default all shipped ones, against the schema."""
    from pathlib import Path

    from toolkit import target as targets
    from toolkit.errors import InputError

    paths = [Path(file) for file in files] or list(targets.available().values())
    problems = [problem for path in paths for problem in targets.lint(path)]
    if not files:
        targets.aliases()
    if problems:
        raise InputError("\n".join(problems))
    click.echo(f"{len(paths)} profiles are clean.")
