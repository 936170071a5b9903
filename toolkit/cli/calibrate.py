"""`toolkit targets calibrate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from toolkit.cli import output

_NOISY = 1.15  # rounds that differ by more, in the median


@click.command(name="calibrate")
@click.option(
    "--device", default="local", show_default=True, metavar="DEVICE", help="Where to measure; only this machine so far."
)
@click.option("--target", metavar="TARGET", help="Add to a copy of this profile.  [default: describe this machine]")
@click.option(
    "--threads", type=click.IntRange(min=1), multiple=True, help="Engine threads; may be repeated.  [default: target's]"
)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="More on a restless machine.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of weights and of the order.")
@click.option("-o", "--output", "file", metavar="FILE", help="Where to write it.  [default: NAME-calibrated.yaml]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    device: str,
    target: str | None,
    threads: tuple[int, ...],
    rounds: int,
    seed: int,
    file: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Time small kernels on this machine through each installed engine, and write a profile with what came out.

    Estimates for that profile go by these times. Let the machine do nothing else meanwhile; it takes about ten seconds
    for each engine and number of threads.

    \b
    Examples:
      toolkit targets calibrate -o my-server.yaml
      toolkit targets calibrate --target ./my-board.yaml --threads 1 --threads 4 -o my-board.yaml --overwrite
    """
    from toolkit.cli.targets import write_new
    from toolkit.devices import ssh
    from toolkit.errors import InputError
    from toolkit.kernels import calibrate
    from toolkit.target import HOST, resolve
    from toolkit.target.draft import calibrated, check_name

    if device != "local":
        named = ssh.parse(device).name
        raise InputError(f"--device {named}: calibrating over ssh is not possible yet; run this command on the device.")
    base = resolve(target or HOST)
    path = Path(file or f"{'my-machine' if target is None else base.name}-calibrated.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"-o {path}: a profile's file ends in .yaml.")
    if path.stem != base.name or base.name == HOST:
        check_name(path.stem)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; --overwrite replaces it.")
    if not path.parent.is_dir():
        raise InputError(f"Cannot write {path}: there is no folder {path.parent}.")
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    counts = list(dict.fromkeys(threads)) or [base.threads]
    if as_json:
        found = calibrate.of_target(base, counts, seed=seed, rounds=rounds)
    else:
        with output.progress_bar("timing kernels") as progress:
            found = calibrate.of_target(base, counts, seed=seed, rounds=rounds, progress=progress)
    source = calibrate.source(found.calibrations, seed, rounds)
    write_new(path, calibrated(path.stem, base, found.calibrations, source), overwrite)
    notes = [*found.left_out, *_doubts(found.spread, load, max(counts))]
    if as_json:
        made = [each.model_dump(mode="json") for each in found.calibrations]
        output.print_json({"file": str(path), "rounds_differ_by": found.spread, "notes": notes, "calibration": made})
        return
    for each in found.calibrations:
        output.print_table(
            f"{each.engine} {each.version}, {each.threads} thread(s): an operator {each.operator_us:.3g} us, "
            f"an inference {each.call_us:.3g} us",
            ("work", "precision", "kernels", "rate, least to most"),
            table(each),
        )
    for note in notes:
        click.echo(f"Note: {note}")
    click.echo(f"Wrote {path}. Use it: --target {path}")


def _doubts(spread: float, load: float, threads: int) -> list[str]:
    """Why the figures may be worse than the machine's."""
    from toolkit.devices import local

    made = []
    if spread > _NOISY:
        made.append(f"rounds differed by {spread - 1:.0%} in the median: something else ran, or the clock moved.")
    if load + threads > local.cores() + 0.5:
        made.append(f"the load was {load:.1f} before it began: other programs took part of the cores.")
    return made


def table(calibration: Any) -> list[tuple[str, str, str, str]]:
    """Per class of work and precision how many kernels were timed, and at which rates they ran."""
    found: dict[tuple[str, str], list[float]] = {}
    products = set()
    for kernel in calibration.kernels:
        key = (kernel.work, kernel.precision)
        if kernel.multiply_adds:
            products.add(key)
            found.setdefault(key, []).append(2e-3 * kernel.multiply_adds / kernel.time_us)
        elif kernel.activation_bytes:
            bytes_ = kernel.activation_bytes + kernel.weight_bytes
            found.setdefault(key, []).append(1e-3 * bytes_ / kernel.time_us)
    return [
        (
            work,
            precision,
            str(len(rates)),
            f"{min(rates):.3g} to {max(rates):.3g} {'G operations/s' if (work, precision) in products else 'GB/s'}",
        )
        for (work, precision), rates in found.items()
    ]
