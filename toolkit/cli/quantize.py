"""`toolkit quantize`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import output


@click.command(name="quantize")
@click.argument("artifact")
@click.option(
    "--method",
    default="dynamic-int8",
    show_default=True,
    metavar="NAME",
    help="dynamic-int8, or fp16 for ONNX.",
)
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The quantized artifact folder.")
@click.option("--cache-dir", metavar="FOLDER", help="Stage cache.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(artifact: str, output_folder: str, as_json: bool, **given: Any) -> None:
    """Quantize ARTIFACT, a folder that `toolkit export` wrote.

    \b
    Example:
      toolkit quantize artifact/ -o artifact-int8/
    """
    from toolkit import steps

    with output.reporting(as_json) as reporter:
        result = steps.quantize(artifact, output_folder, reporter=reporter, **given)
    if as_json:
        output.print_json(result)
    else:
        before, after = result["size_before_bytes"] / 1e6, result["size_after_bytes"] / 1e6
        click.echo(f"{result['output']}: {before:.1f} MB → {after:.1f} MB.")
