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
      toolkit devices setup browser
    """


# The kinds that are set up or may not be ready: a module of toolkit/devices each, with one called NAME_setup beside it.
_KINDS = ("emulator", "browser")


@command.command(name="setup")
@click.argument("device", type=click.Choice(_KINDS))
@click.option(
    "--system", is_flag=True, help="Of emulator: a kernel and a disk, too, for whole machines (?mode=system)."
)
@click.option("--cache-dir", metavar="FOLDER", help="Where it is kept.  [default: $TOOLKIT_CACHE or ~/.cache/toolkit]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def setup(device: str, system: bool, cache_dir: str | None, as_json: bool) -> None:
    """Fetch what DEVICE needs: for `emulator` a Python and the engines for Arm, and a counter of instructions; for
    `browser` the engines for web pages.

    \b
    Examples:
      toolkit devices setup emulator
      toolkit devices setup emulator --system
    """
    from pathlib import Path

    from toolkit.cache import open_cache
    from toolkit.errors import InputError

    if system and device != "emulator":
        raise InputError(f"--system is for whole emulated machines; {device} has none.")
    kind, setting = _modules(device)
    cache = open_cache(Path(cache_dir) if cache_dir else None).folder
    title = f"set up {device}"
    with output.reporting(as_json) as reporter:
        reporter.started(title)
        folder = setting.setup(cache, lambda *step: reporter.progress(title, *step))
        facts = {"folder": str(folder), "devices": list(kind.addresses()), **setting.read(folder)}
        if system:
            from toolkit.devices import emulator_system_setup

            machine = emulator_system_setup.setup(cache, lambda *step: reporter.progress(title, *step))
            facts["devices"] += list(kind.system_addresses())
            facts["system"] = {"folder": str(machine), **emulator_system_setup.read(machine)}
    if as_json:
        output.print_json(facts)
        return
    click.echo(f"{folder}: {setting.sentence(facts)}")
    if system:
        click.echo(f"{facts['system']['folder']}: Linux {facts['system']['kernel']} and a disk of them.")
    click.echo(f"Devices: {', '.join(facts['devices'])}.")


def _modules(device: str) -> tuple[Any, Any]:
    """A kind's module and that of its setup."""
    import importlib

    return tuple(importlib.import_module(f"toolkit.devices.{name}") for name in (device, f"{device}_setup"))  # type: ignore[return-value]


@command.command(name="list")
@click.option("--cache-dir", metavar="FOLDER", help="Where devices that were set up are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(cache_dir: str | None, as_json: bool) -> None:
    """List the devices that this machine can be, reach or emulate.

    \b
    Example:
      toolkit devices list
    """
    from pathlib import Path

    from toolkit.cache import open_cache
    from toolkit.devices import emulator, emulator_system_setup, gpu, mcu

    cache = open_cache(Path(cache_dir) if cache_dir else None).folder
    rows = [
        ("local", "this machine", "ready"),
        ("gpu://0", "an NVIDIA GPU of this machine", gpu.state()),
        ("ssh://user@host", "a Linux with Python behind ssh", "name its address"),
        ("adb://serial", "an Android, or what else adb reaches", "name its serial"),
    ]
    for name in _KINDS:
        kind, setting = _modules(name)
        state = setting.state(cache)
        rows += [(address, title, state) for address, title in kind.addresses().items()]
    system = "ready" if emulator_system_setup.is_ready(cache) else "toolkit devices setup emulator --system"
    rows += [(address, title, system) for address, title in emulator.system_addresses().items()]
    rows += [(address, title, mcu.state(address)) for address, title in mcu.addresses().items()]
    if as_json:
        output.print_json([{"device": device, "title": title, "state": state} for device, title, state in rows])
        return
    output.print_table("Devices", ("device", "", "state"), rows)
