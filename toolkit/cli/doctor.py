"""`toolkit doctor`."""

from __future__ import annotations

import click

from toolkit.cli import output


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Show this machine, what is installed, what is missing and how to install it.

    \b
    Example:
      toolkit doctor
    """
    from toolkit import doctor
    from toolkit.errors import MissingDependencyError

    findings = doctor.examine()
    if as_json:
        output.print_json(findings)
    else:
        device = findings["device"]
        output.print_table(
            "This machine",
            ("", ""),
            [(k, ", ".join(v) if isinstance(v, list) else v) for k, v in device.items()],
        )
        rows = [(p["extra"], p["package"], p["installed"] or "missing", p["wanted"]) for p in findings["packages"]]
        output.print_table("Packages", ("extra", "package", "installed", "wanted"), rows)
        for line in findings["advice"]:
            click.echo(line)
    if findings["broken"]:
        raise MissingDependencyError("; ".join(findings["broken"]))
