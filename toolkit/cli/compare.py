"""`toolkit compare`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output


@click.command(name="compare")
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--device", default="local", show_default=True, metavar="DEVICE", help="Where to run them.")
@click.option("--data", metavar="FILE", help="Examples.  [default: the first bundle's golden examples]")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=20.0, show_default=True, help="About this long.")
@click.option("--threads", type=click.IntRange(min=1), help="Engine threads.  [default: each bundle's]")
@options.limits
@click.option(
    "--baseline",
    metavar="RECORD",
    help="A record of `toolkit bench -o` to hold one BUNDLE against: of another commit, on this very device.",
)
@click.option(
    "--fail-if-slower",
    type=options.PERCENT,
    metavar="PERCENT",
    help="Exit with code 1 if a bundle is slower than the first by more, or if the run cannot tell.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of bundles and examples.")
@click.option("-o", "--output", "output_file", metavar="FILE", help="Also write the record as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--cache-dir", metavar="FOLDER", help="Where devices that were set up are kept.")
def command(
    as_json: bool,
    output_file: str | None,
    bundles: tuple[str, ...],
    device: str,
    baseline: str | None,
    fail_if_slower: float | None,
    **given: Any,
) -> None:
    """Time BUNDLEs in turn and say which is faster: the ratio with its 95 % interval, and faster, slower or undecided.

    \b
    Examples:
      toolkit compare demo-fp32 demo-int8
      toolkit compare old-bundle new-bundle --fail-if-slower 3%
      toolkit bench demo-host -o before.json; toolkit compare demo-host --baseline before.json
    """
    from pathlib import Path

    from toolkit.bench import compare, run
    from toolkit.bench.steps import Wanted
    from toolkit.errors import InputError, StoppedError
    from toolkit.storage import explained, write_json

    if baseline is not None and len(bundles) != 1:
        raise InputError("--baseline is what one bundle is held against; name a single BUNDLE.")
    settings = options.device_settings(given)
    record: Any
    if baseline is not None:
        stored = compare.read(Path(baseline))
        seconds = stored.protocol.seconds or given["seconds"]
        wanted = Wanted(sizes=stored.protocol.sizes or {}, **{**given, "seconds": seconds})
        with output.reporting(as_json) as reporter:
            record = run.bench(bundles[0], [device], wanted, settings, reporter)[0]
        ratios, noise = ([compare.with_stored(record, stored)] if record.failure is None else []), record.noise
        document = {"record": record.model_dump(mode="json"), "ratios": [each.model_dump() for each in ratios]}
    else:
        with output.reporting(as_json) as reporter:
            record = compare.compare(bundles, device, Wanted(**given), settings, reporter)
        ratios, noise, document = record.ratios, record.noise, record.model_dump(mode="json")
    if output_file:
        with explained("writing the record", Path(output_file)):
            write_json(Path(output_file), document)
    if as_json:
        output.print_json(document)
    elif baseline is not None:
        _print_stored(ratios, baseline)
    else:
        _print(record)
    if record.failure is not None:
        raise StoppedError(record.failure.error, record.failure.exit_code)
    if fail_if_slower is not None:
        compare.refuse_slower(ratios, noise, fail_if_slower)


def _print(record: Any) -> None:
    from toolkit.bench import text

    output.print_table(f"on {record.device.title}", text.COMPARE_HEAD, text.comparison_rows(record))
    click.echo(
        f"{record.kind.capitalize()}, {record.protocol.rounds} rounds in turn over {record.protocol.examples} examples "
        f"({record.protocol.examples_from})."
    )
    for warning in record.warnings:
        click.echo(f"Warning: {warning}.", err=True)


def _print_stored(ratios: list[Any], baseline: str) -> None:
    for ratio in ratios:
        click.echo(
            f"{ratio.bundle} takes {ratio.ratio:.3f} times as long as {baseline} says "
            f"({ratio.low:.3f}-{ratio.high:.3f}): {ratio.verdict}. Not in turn: what changed on the machine since then "
            "is in the ratio."
        )
