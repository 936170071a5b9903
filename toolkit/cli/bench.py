"""`toolkit bench`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output


@click.command(name="bench")
@click.argument("bundle")
@click.option(
    "--device",
    "addresses",
    multiple=True,
    default=["local"],
    show_default=True,
    metavar="DEVICE",
    help="Where to run it; may be given several times. `toolkit devices list` names the kinds.",
)
@click.option("--data", metavar="FILE", help="Examples: a file or folder of the task.  [default: golden examples]")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=5.0, show_default=True, help="Time at least this long."
)
@click.option(
    "--protocol",
    type=click.Choice(["quick", "mlperf"]),
    default="quick",
    show_default=True,
    help="mlperf: one stream, 1,024 queries and a minute at least.",
)
@click.option("--threads", type=click.IntRange(min=1), help="Engine threads.  [default: the bundle's]")
@options.limits
@click.option("--batch", type=click.IntRange(min=1), help="Encoded beforehand, in batches of this size.")
@click.option("--length", type=click.IntRange(min=1), help="Encoded beforehand, all of this length.")
@click.option("--sweep", multiple=True, type=options.SWEEP, help="threads=1,2,4, batch=1,8 or length=16,128.")
@click.option("--sustain", type=options.DURATION, metavar="TIME", help="Keep it busy, e.g. 30m, and watch it heat up.")
@click.option("--operators", is_flag=True, help="The time of every operator, too.")
@click.option(
    "--precision",
    type=options.PERCENT,
    metavar="PERCENT",
    help="Refuse a run in which smaller differences than this cannot be seen.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of examples.")
@click.option("-o", "--output", "output_file", metavar="FILE", help="Also write the record as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--cache-dir", metavar="FOLDER", help="Where devices that were set up are kept.")
def command(as_json: bool, output_file: str | None, bundle: str, addresses: tuple[str, ...], **given: Any) -> None:
    """Measure BUNDLE on devices: latency, throughput, cold start, memory, energy; on an emulated CPU its instructions.

    \b
    Examples:
      toolkit bench demo-host --data reviews.csv --seconds 10 -o record.json
      toolkit bench demo-host --threads 2 --cores 0,1 --memory 512MB
      toolkit bench demo-pi5 --device local --device emulator://cortex-a76
      toolkit bench demo-host --sweep threads=1,2 --sweep length=16,64,128
    """
    from pathlib import Path

    from toolkit.bench import run
    from toolkit.bench.steps import Wanted
    from toolkit.errors import StoppedError
    from toolkit.storage import explained, write_json

    sizes = {name: given.pop(name) for name in ("batch", "length")}
    settings = options.device_settings(given)
    wanted = Wanted(
        sizes={name: size for name, size in sizes.items() if size is not None},
        sweep=dict(given.pop("sweep")),
        sustain_seconds=given.pop("sustain"),
        precision_percent=given.pop("precision"),
        **given,
    )
    with output.reporting(as_json) as reporter:
        records = run.bench(bundle, addresses, wanted, settings, reporter)
    written = [record.model_dump(mode="json") for record in records]
    document = written[0] if len(written) == 1 else written
    if output_file:
        with explained("writing the record", Path(output_file)):
            write_json(Path(output_file), document)
    if as_json:
        output.print_json(document)
    else:
        for record in records:
            _print(record)
        if len(records) > 1:
            _print_all(records)
    failed = [record.failure for record in records if record.failure is not None]
    if failed:
        raise StoppedError(failed[0].error, failed[0].exit_code)


def _print(record: Any) -> None:
    from toolkit.bench import text

    output.print_table(text.title(record), ("", record.kind), text.rows(record))
    if record.sweep:
        output.print_table("sweep", text.SWEEP_HEAD, text.sweep_rows(record))
    if record.operators:
        output.print_table(f"operators, by {record.operators_from}", text.OPERATOR_HEAD, text.operator_rows(record))
    click.echo(text.sentence(record))
    for warning in record.warnings:
        click.echo(f"Warning: {warning}.", err=True)


def _print_all(records: list[Any]) -> None:
    from toolkit.bench import text

    click.echo()
    output.print_table(records[0].bundle.name, text.TABLE_HEAD, text.table_rows(records))
