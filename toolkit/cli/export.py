"""`toolkit export`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output


@click.command(name="export")
@click.argument("model")
@click.option("--engine", type=click.Choice(options.ENGINES), required=True)
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The artifact folder.")
@click.option("--lengths", default="32,64,128", show_default=True, help="Input lengths of a LiteRT file.")
@click.option("--opset", type=click.IntRange(min=13), help="ONNX opset.")
@click.option("--cache-dir", metavar="FOLDER", help="Stage cache.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
@click.option("--task", metavar="NAME", help="What the model does.  [default: what it was trained for]")
@click.option("--adapter", metavar="FOLDER", help="Merge this adapter of peft into MODEL first.")
@options.graph_options
@options.fix_option
@click.option("--allow-code", is_flag=True, help="Run the Python code that a model folder brings.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    model: str, output_folder: str, lengths: str, fix: tuple[tuple[str, Any], ...], as_json: bool, **given: Any
) -> None:
    """Export MODEL, a trained checkpoint or an ONNX file, to the format of one engine.

    \b
    Example:
      toolkit export tuned/ --engine litert --lengths 32,128 -o artifact/
      toolkit export theirs.onnx --engine tensorrt --opset 17 -o artifact/
    """
    from toolkit import steps

    with output.reporting(as_json) as reporter:
        given |= {"lengths": options.lengths(lengths) or [], "fix": options.sizes(fix, "--fix")}
        result = steps.export(model, output_folder, reporter=reporter, **given)
    if as_json:
        output.print_json(result)
    else:
        click.echo(f"{result['output']}: {result['precision']}, {result['size_bytes'] / 1e6:.1f} MB.")
        if isinstance(result.get("slimmed"), str):
            click.echo(f"The graph was not slimmed: {result['slimmed']}.")
        if isinstance(result.get("raised"), str):
            click.echo(f"Its opset is as it was: {result['raised']}.")
