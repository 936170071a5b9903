"""`toolkit bisect`."""

from __future__ import annotations

import click

from toolkit.cli import options, output


@click.command(name="bisect")
@options.comparison(examples=8)
@click.option("--all", "every", is_flag=True, help="Print every layer, not only those around a difference.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Write a plot of the layers to this .svg file.")
def command(
    first: str,
    second: str,
    data: str | None,
    column: str | None,
    examples: int,
    task: str | None,
    every: bool,
    plot: str | None,
    allow_code: bool,
    as_json: bool,
) -> None:
    """Name the first layer in which two builds of a model part.

    FIRST is right by definition, SECOND is what is looked at: checkpoints, artifact folders, bundles; SECOND also an
    .onnx or .tflite file. Layers are called by the PyTorch modules that they came from.

    \b
    Example:
      toolkit bisect tuned/ model.onnx --data reviews.csv
    """
    from pathlib import Path

    from toolkit import bisect as bisection
    from toolkit import builds
    from toolkit.errors import RefusedError

    expected = builds.open_build(Path(first), task, allow_code=allow_code)
    found = builds.open_build(Path(second), task, like=expected, allow_code=allow_code)
    raw = builds.examples_for(expected, found, Path(data) if data else None, column, examples)
    probes = expected.probe(), found.probe()
    with output.progress_bar("comparing layers") as progress:
        result = bisection.bisect(*probes, builds.inputs_for(expected, found, raw), found.precision, progress)
    if plot:
        bisection.write_plot(result, Path(plot))
    if as_json:
        output.print_json(result.as_dict())
    else:
        rows = [
            (row.module, row.kind, f"{row.own.sqnr_db:.1f}", f"{row.whole.sqnr_db:.1f}", f"{row.own.max_abs:.2g}",
             f"{row.own.cosine:.6f}", "differs" if row in result.faulty else "")
            for row in (result.rows if every else bisection.around(result))
        ]  # fmt: skip
        head = ("module", "operator", "own dB", "in all dB", "own max", "own cosine", "")
        output.print_table(f"{second} beside {first}", head, rows)
        click.echo(
            f"{len(result.rows)} modules compared on {len(raw)} examples; the answers: {result.output.sqnr_db:.1f} dB, "
            f"largest difference {result.output.max_abs:.2g}."
        )
    if result.first is not None:
        holds = f" (it holds {', '.join(result.first.holds)})" if result.first.holds else ""
        raise RefusedError(f"The first layer that differs is {result.first.module}{holds}.")
