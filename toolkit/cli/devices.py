"""`toolkit devices`."""

from __future__ import annotations

import click

from toolkit.cli import output


@click.group(name="devices")
def command() -> None:
    """Places where a model can be run beside this machine. Each of them takes --json.

    \b
    Examples:
      toolkit devices list
      toolkit devices setup emulator
    """


@command.command(name="setup")
@click.argument("device", type=click.Choice(["emulator"]))
@click.option("--cache-dir", metavar="FOLDER", help="Where it is kept.  [default: $TOOLKIT_CACHE or ~/.cache/toolkit]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def setup(device: str, cache_dir: str | None, as_json: bool) -> None:
    """Fetch what DEVICE needs: for `emulator` a Python and the engines for Arm, and a counter of instructions.

    \b
    Example:
      toolkit devices setup emulator
    """
    from pathlib import Path

    from toolkit.cache import open_cache
    from toolkit.devices import emulator, emulator_setup

    cache = open_cache(Path(cache_dir) if cache_dir else None).folder
    title = f"set up {device}"
    with output.reporting(as_json) as reporter:
        reporter.started(title)
        folder = emulator_setup.setup(cache, lambda *step: reporter.progress(title, *step))
    facts = {"folder": str(folder), "devices": list(emulator.addresses()), **emulator_setup.read(folder)}
    if as_json:
        output.print_json(facts)
        return
    click.echo(f"{folder}: Python {facts['python']} for arm64, {', '.join(facts['wheels'])}.")
    click.echo(f"Devices: {', '.join(facts['devices'])}.")


@command.command(name="list")
@click.option("--cache-dir", metavar="FOLDER", help="Where devices that were set up are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(cache_dir: str | None, as_json: bool) -> None:
    """List the devices that this machine can be or emulate.

    \b
    Example:
      toolkit devices list
    """
    from pathlib import Path

    from toolkit.cache import open_cache
    from toolkit.devices import emulator, emulator_setup

    cache = open_cache(Path(cache_dir) if cache_dir else None).folder
    ready = emulator_setup.is_ready(cache)
    rows = [("local", "this machine", "ready")]
    rows += [
        (address, title, "ready" if ready else "toolkit devices setup emulator")
        for address, title in emulator.addresses().items()
    ]
    if as_json:
        output.print_json([{"device": device, "title": title, "state": state} for device, title, state in rows])
        return
    output.print_table("Devices", ("device", "", "state"), rows)
