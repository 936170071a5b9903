"""`toolkit build`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import output


@click.command(name="build")
@click.argument("bundle")
@click.option(
    "--device", default="local", show_default=True, metavar="DEVICE", help="local, or ssh://user@host[:port]."
)
@click.option("--image", metavar="IMAGE", help="The image that the device must have, such as jetpack-6.2.")
@click.option("--keep", is_flag=True, help="Leave the files on the device; the next build copies what changed.")
@click.option("--ssh-config", type=click.Path(path_type=Path), metavar="FILE", help="Instead of ~/.ssh/config.")
@click.option("--timeout", "minutes", type=click.IntRange(1), default=60, show_default=True, help="Minutes to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(bundle: str, minutes: int, as_json: bool, **given: Any) -> None:
    """Build the TensorRT engine of BUNDLE on the device that it is for.

    \b
    Examples:
      toolkit build jetson-bundle --device ssh://me@jetson.local
      toolkit build rtx-bundle
    """
    from toolkit.tensorrt import device, rungs

    def on_line(line: str) -> None:
        if not as_json:
            click.echo(f"  {line.removeprefix('build: ')}", err=True)

    known = device.build(Path(bundle), timeout_seconds=60 * minutes, on_line=on_line, **given)
    if as_json:
        output.print_json(known)
        return
    made = known["built_from"]
    how = "at hand" if known["cached"] else "built"
    click.echo(
        f"{bundle}/engines/{known['engine']}: {how}, {known['engine_bytes'] / 1e6:.1f} MB, {known['typing']}, "
        f"{made['runtime']} {made['version']}, compute capability {made['compute_capability']}."
    )
    for failure in known["failed_before"]:
        click.echo(f"Failed before: {failure}")
    click.echo(f"{rungs.sentence(known['validation'])}.")
