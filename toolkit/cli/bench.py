"""`toolkit bench`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import output


@click.command(name="bench")
@click.argument("bundle")
@click.option(
    "--device", default="local", show_default=True, metavar="DEVICE", help="local, or emulator://cortex-a76 and others."
)
@click.option("--threads", type=click.IntRange(min=1), help="Engine threads.  [default: the bundle's]")
@click.option(
    "--data",
    metavar="FILE",
    help="Examples to run: a file or folder of the task.  [default: golden examples]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Measure at least this long.",
)
@click.option("-o", "--output", "output_file", metavar="FILE", help="Also write the record as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--cache-dir", metavar="FOLDER", help="Where an emulated device is kept.")
def command(as_json: bool, output_file: str | None, device: str, cache_dir: str | None, **given: Any) -> None:
    """Measure BUNDLE: on this machine latency, throughput, cold start and memory, on an emulated CPU its instructions.

    \b
    Examples:
      toolkit bench demo-host --seconds 10
      toolkit bench demo-pi5 --device emulator://cortex-a76
    """
    from pathlib import Path

    from toolkit.bench import run
    from toolkit.storage import explained, write_json

    if device != "local":
        record = _count(device, cache_dir, as_json, **given)
    else:
        with output.reporting(as_json) as reporter:
            record = run.bench(given.pop("bundle"), reporter=reporter, **given)
    if output_file:
        with explained("writing the record", Path(output_file)):
            write_json(Path(output_file), record)
    if as_json:
        output.print_json(record)
        return
    if record["kind"] == "emulated":
        _print_count(record)
        return
    found = record["device"]
    output.print_table(
        f"{record['bundle']}: {record['engine']['engine']} {record['precision']}",
        ("", "measured"),
        rows(record),
    )
    click.echo(
        f"Measured on {found['cpu_model']}, {found['cores']} cores, {record['engine']['threads']} thread(s), "
        f"{record['latency']['count']} runs over {record['examples']} examples ({record['examples_from']})."
    )


def _count(
    device: str,
    cache_dir: str | None,
    as_json: bool,
    *,
    bundle: str,
    data: str | None,
    threads: int | None,
    seconds: float,
) -> dict[str, Any]:
    """The instructions of a bundle on an emulated CPU."""
    from pathlib import Path

    from toolkit.bench import instructions
    from toolkit.cache import open_cache
    from toolkit.errors import InputError

    if threads not in (None, 1):
        raise InputError(f"--threads {threads}: on an emulated CPU instructions are counted on one thread.")
    cache = open_cache(Path(cache_dir) if cache_dir else None).folder
    with output.reporting(as_json) as reporter:
        return instructions.count(bundle, device, cache, data=data, reporter=reporter)


def _print_count(record: dict[str, Any]) -> None:
    from toolkit.bench import instructions

    title = f"{record['bundle']}: {record['engine']['engine']} {record['precision']} on {record['device']['name']}"
    output.print_table(title, instructions.HEAD, instructions.rows(record))
    click.echo(instructions.sentence(record))


def rows(record: dict[str, Any]) -> list[tuple[str, str]]:
    """A bench record as table rows."""
    latency, cold, memory = record["latency"], record["cold_start"], record["memory"]

    def megabytes(value: Any) -> str:
        return value if isinstance(value, str) else f"{value / 1e6:.1f} MB"

    return [
        (
            "latency p50 / p90 / p99",
            f"{latency['p50_ms']:.3f} / {latency['p90_ms']:.3f} / {latency['p99_ms']:.3f} ms",
        ),
        (
            "latency mean (min-max)",
            f"{latency['mean_ms']:.3f} ms ({latency['min_ms']:.3f}-{latency['max_ms']:.3f})",
        ),
        ("of it preprocessing, p50", f"{record['preprocessing']['p50_ms']:.3f} ms"),
        ("throughput, one stream", f"{record['throughput_per_s']:.1f} per s"),
        ("cold start: process", f"{cold['process_ms']:.0f} ms"),
        ("cold start: load", f"{cold['load_ms']:.0f} ms"),
        ("cold start: first inference", f"{cold['first_inference_ms']:.1f} ms"),
        ("peak memory (RSS)", megabytes(memory["peak_rss_bytes"])),
        ("bundle's artifact", megabytes(record["artifact_bytes"])),
    ]
