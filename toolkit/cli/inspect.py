"""`toolkit inspect`."""

from __future__ import annotations

import click

from toolkit.cli import output


@click.command(name="inspect")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(path: str, as_json: bool) -> None:
    """Show what PATH is: a bundle that `toolkit convert` wrote, or a checkpoint folder.

    \b
    Example:
      toolkit inspect demo-host
    """
    from pathlib import Path

    from toolkit import inspection

    facts = inspection.inspect(Path(path))
    if as_json:
        output.print_json(facts)
    else:
        output.print_table(str(path), ("", ""), inspection.rows(facts))
