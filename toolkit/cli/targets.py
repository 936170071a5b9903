"""`toolkit targets`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from toolkit.cli import output

KINDS = {
    "x86": "PCs and servers", "board": "Boards", "jetson": "NVIDIA Jetson", "phone": "Phones", "apple": "Apple",
    "gpu": "GPUs", "npu": "Accelerator modules", "mcu": "Microcontrollers",
}  # fmt: skip


@click.group(name="targets", invoke_without_command=True)
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def command(ctx: click.Context, as_json: bool, kind: str | None) -> None:
    """List, show, compare, lint, start and calibrate hardware profiles; show the rules of their runtimes.

    \b
    Examples:
      toolkit targets --kind jetson
      toolkit targets show jetson@jetpack-5.1
      toolkit targets diff jetson-orin-nano-8gb jetson-orin-nano-8gb-super
      toolkit targets new my-board --like raspberry-pi-5
      toolkit targets lint my-board.yaml
      toolkit targets calibrate -o my-server.yaml
      toolkit targets rules tensorrt-10.3 TopK
    """
    if ctx.invoked_subcommand is None:
        _list(as_json, kind)


@command.command(name="list")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Only these.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool, kind: str | None) -> None:
    """List the profiles by kind; what `toolkit targets` does, too."""
    _list(as_json, kind)


def _list(as_json: bool, kind: str | None) -> None:
    from toolkit import target as targets

    found = [targets.load_file(path) for path in targets.available().values()]
    found.append(targets.resolve(targets.HOST))
    found = [target for target in found if kind in (None, target.kind)]
    if as_json:
        output.print_json([target.model_dump(mode="json", exclude_none=True) for target in found])
        return
    for each, title in KINDS.items():
        rows = [(t.name, ", ".join(t.aliases), t.title, _runs(t)) for t in found if t.kind == each]
        if rows:
            output.print_table(title, ("name", "aliases", "hardware", "runs"), rows)
    click.echo("A name in brackets is a runtime that this toolkit does not build for.")


def _runs(target: Any) -> str:
    """Engines, or the runtimes that a target has instead, in brackets."""
    engines = [engine.name for engine in target.engines]
    return ", ".join(engines or [f"[{other.name}]" for other in target.other_runtimes])


@command.command(name="show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(name: str, as_json: bool) -> None:
    """Print the profile NAME or NAME@IMAGE in full, with its sources."""
    from toolkit import target as targets

    data = targets.resolve(name).model_dump(mode="json", exclude_none=True)
    _print({key: value for key, value in data.items() if value not in ({}, []) or key == "engines"}, as_json)


def _print(data: Any, as_json: bool) -> None:
    from toolkit import strict_yaml

    if as_json:
        output.print_json(data)
    else:
        click.echo(strict_yaml.dump(data), nl=False)


@command.command(name="diff")
@click.argument("a")
@click.argument("b")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(a: str, b: str, as_json: bool) -> None:
    """Print in what the targets A and B differ, key by key."""
    from toolkit import target as targets
    from toolkit.target import compare

    found = compare.differences(targets.resolve(a), targets.resolve(b))
    if as_json:
        output.print_json([dict(zip(("key", "a", "b"), row, strict=True)) for row in found])
    elif found:
        output.print_table(f"{a} and {b}", ("key", a, b), found)
    else:
        click.echo(f"{a} and {b} are the same hardware.")


@command.command(name="lint")
@click.argument("files", nargs=-1)
def lint(files: tuple[str, ...]) -> None:
    """Check profile FILES: schema, sources, rules; by default all shipped ones and what they share."""
    from toolkit import target as targets
    from toolkit.errors import InputError

    paths = [Path(file) for file in files] or list(targets.available().values())
    problems = [problem for path in paths for problem in targets.lint(path)]
    if not files:
        targets.aliases()
        problems += targets.lint_shared()
    if problems:
        raise InputError("\n".join(problems))
    click.echo(f"{len(paths)} profiles are clean.")


@command.command(name="new")
@click.argument("name")
@click.option("--like", metavar="TARGET", help="Start from this target.")
@click.option("--from-host", is_flag=True, help="Describe this machine.")
@click.option("-o", "--output", "file", metavar="FILE", help="Where to write it.  [default: NAME.yaml]")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def new(name: str, like: str | None, from_host: bool, file: str | None, overwrite: bool) -> None:
    """Write a profile NAME to start from, with a comment on its keys.

    \b
    Examples:
      toolkit targets new my-board --like raspberry-pi-5
      toolkit targets new my-server --from-host -o profiles/my-server.yaml
    """
    from toolkit.target import HOST
    from toolkit.target.draft import draft

    if (like is None) == (not from_host):
        raise click.UsageError("Name a target to start from with --like TARGET, or take this machine with --from-host.")
    path = Path(file or f"{name}.yaml")
    written = draft(name, HOST if like is None else like)
    write_new(path, written, overwrite)
    click.echo(f"Wrote {path}. Fill it in, then: toolkit targets lint {path}")


def write_new(path: Path, text: str, overwrite: bool) -> None:
    """Write a file that is not there yet. Raises InputError if it is, or if it cannot be written."""
    from toolkit.errors import InputError

    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError(f"{path} exists; --overwrite replaces it.") from error
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror}.") from error


@command.command(name="calibrate")
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
def calibrate(
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
    from toolkit.devices import ssh_client
    from toolkit.errors import InputError
    from toolkit.kernels import calibrate as timing
    from toolkit.target import HOST, resolve
    from toolkit.target.draft import calibrated, check_name

    if device != "local":
        named = ssh_client.parse(device).name
        raise InputError(f"--device {named}: calibrating over ssh is not possible yet; run this command on the device.")
    base = resolve(target or HOST)
    path = Path(file or f"{'my-machine' if target is None else base.name}-calibrated.yaml")
    if path.suffix not in (".yaml", ".yml"):
        raise InputError(f"-o {path}: a profile's file ends in .yaml.")
    is_file = (target or "").endswith((".yaml", ".yml"))  # which may be written anew under its name
    if not is_file or path.stem != base.name:
        check_name(path.stem)
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists; --overwrite replaces it.")
    if not path.parent.is_dir():
        raise InputError(f"Cannot write {path}: there is no folder {path.parent}.")
    counts = list(dict.fromkeys(threads)) or [base.threads]
    if as_json:
        found = timing.of_target(base, counts, seed=seed, rounds=rounds)
    else:
        with output.progress_bar("timing kernels") as progress:
            found = timing.of_target(base, counts, seed=seed, rounds=rounds, progress=progress)
    source = timing.source(found.calibrations, seed, rounds)
    write_new(path, calibrated(path.stem, base, found.calibrations, source), overwrite)
    if as_json:
        made = [each.model_dump(mode="json") for each in found.calibrations]
        output.print_json(
            {"file": str(path), "rounds_differ_by": found.spread, "notes": found.notes, "calibration": made}
        )
        return
    for each in found.calibrations:
        output.print_table(
            f"{each.engine} {each.version}, {each.threads} thread(s): an operator {each.operator_us:.3g} us, "
            f"an inference {each.call_us:.3g} us",
            ("work", "precision", "kernels", "rate, least to most"),
            timing.rates(each),
        )
    for note in found.notes:
        click.echo(f"Note: {note}")
    click.echo(f"Wrote {path}. Use it: --target {path}")


@command.command(name="rules")
@click.argument("name", required=False)
@click.argument("op", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def rules(name: str | None, op: str | None, as_json: bool) -> None:
    """List the rule tables, or show the table NAME, or what it says of the operator OP."""
    from toolkit import rules as tables

    if name is None:
        found = [tables.load(each) for each in tables.names()]
        if as_json:
            output.print_json([table.name for table in found])
            return
        rows = [(t.name, t.title, len(t.operators), t.opsets, t.sources[0].confidence) for t in found]
        output.print_table("Rule tables", ("name", "runtime", "operators", "ONNX", "confidence"), rows)
        return
    table = tables.load(name)
    if op is None:
        _print(table.model_dump(mode="json", exclude_defaults=True), as_json)
        return
    verdict = table.verdict(op.rpartition(":")[2], domain=op.rpartition(":")[0])
    rule = table.operators.get(op)
    _print(
        {
            "operator": op,
            "status": verdict.status,
            "reason": verdict.reason,
            **({"conditions": list(verdict.conditions)} if verdict.conditions else {}),
            **({"rule": rule.model_dump(mode="json", exclude_defaults=True)} if rule else {}),
        },
        as_json,
    )
