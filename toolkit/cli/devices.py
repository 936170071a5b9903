"""`toolkit devices`."""

from __future__ import annotations

from typing import Any

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
@click.option("--system", is_flag=True, help="Also a kernel and a disk, for whole machines (?mode=system).")
@click.option("--cache-dir", metavar="FOLDER", help="Where it is kept.  [default: $TOOLKIT_CACHE or ~/.cache/toolkit]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def setup(device: str, system: bool, cache_dir: str | None, as_json: bool) -> None:
    """Fetch what DEVICE needs: for `emulator` a Python and the engines for Arm, and a counter of instructions.

    \b
    Examples:
      toolkit devices setup emulator
      toolkit devices setup emulator --system
    """
    from pathlib import Path

    from toolkit.cache import open_cache
    from toolkit.devices import emulator, emulator_setup, emulator_system_setup

    cache = open_cache(Path(cache_dir) if cache_dir else None).folder
    title = f"set up {device}"
    facts: dict[str, Any] = {"devices": list(emulator.addresses())}
    with output.reporting(as_json) as reporter:
        reporter.started(title)
        folder = emulator_setup.setup(cache, lambda *step: reporter.progress(title, *step))
        if system:
            machine = emulator_system_setup.setup(cache, lambda *step: reporter.progress(title, *step))
            facts["devices"] += list(emulator.system_addresses())
            facts["system"] = {"folder": str(machine), **emulator_system_setup.read(machine)}
    facts |= {"folder": str(folder), **emulator_setup.read(folder)}
    if as_json:
        output.print_json(facts)
        return
    click.echo(f"{folder}: Python {facts['python']} for arm64, {', '.join(facts['wheels'])}.")
    if system:
        click.echo(f"{machine}: Linux {facts['system']['kernel']} and a disk of them.")
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
    from toolkit.devices import emulator, emulator_setup, emulator_system_setup, mcu

    cache = open_cache(Path(cache_dir) if cache_dir else None).folder
    setup = "toolkit devices setup emulator"
    user = "ready" if emulator_setup.is_ready(cache) else setup
    system = "ready" if emulator_system_setup.is_ready(cache) else f"{setup} --system"
    rows = [("local", "this machine", "ready")]
    rows += [(address, title, user) for address, title in emulator.addresses().items()]
    rows += [(address, title, system) for address, title in emulator.system_addresses().items()]
    rows += [(address, title, mcu.state(address)) for address, title in mcu.addresses().items()]
    if as_json:
        output.print_json([{"device": device, "title": title, "state": state} for device, title, state in rows])
        return
    output.print_table("Devices", ("device", "", "state"), rows)
