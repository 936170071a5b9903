"""`toolkit verify`."""

from __future__ import annotations

import click

from toolkit.cli import output


@click.command(name="verify")
@click.argument("bundle")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(bundle: str, as_json: bool) -> None:
    """Check BUNDLE's hashes and replay its golden examples through its engine.

    \b
    Example:
      toolkit verify demo-host
    """
    from pathlib import Path

    from toolkit import bundle as bundles
    from toolkit.errors import RefusedError

    result = bundles.verify(Path(bundle))
    if as_json:
        output.print_json(result)
    else:
        click.echo(
            f"{bundle}: {result['files']} files match their hashes; {result['golden_examples']} golden examples "
            f"replayed, largest difference {result['largest_difference']:.2g} "
            f"(limit {result['tolerance']:g})."
        )
    if result["failures"]:
        raise RefusedError(f"{bundle} does not give its golden answers here: " + "; ".join(result["failures"]))
