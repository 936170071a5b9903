"""`toolkit finetune`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output


@click.command(name="finetune")
@click.argument("model")
@options.data_options
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The new checkpoint.")
@options.training_options
@options.run_options
def command(output_folder: str, as_json: bool, **given: Any) -> None:
    """Fine-tune MODEL, a Hugging Face folder or `demo`, and write a Hugging Face folder.

    \b
    Examples:
      toolkit finetune ./minilm --data reviews.csv -o tuned/
      accelerate launch -m toolkit finetune ./minilm --data reviews.csv -o tuned/
    """
    from toolkit import steps
    from toolkit.cli.convert import interruptible

    first = steps.is_first_process()
    with output.reporting(as_json or not first) as reporter:
        result = steps.finetune(output_folder, given, reporter, interruptible)
    if not first:
        return
    if as_json:
        output.print_json(result)
    else:
        click.echo(
            f"{result['output']}: validation score {result['validation_score']:.4f} after epoch {result['best_epoch']} "
            f"of {result['epochs_run']}."
        )
        if result["trainable"] < result["parameters"]:
            click.echo(
                f"{result['trainable'] / 1e6:.3f} of {result['parameters'] / 1e6:.1f} million weights learned "
                f"({result['trainable'] / result['parameters']:.2%})."
            )
        if result["interrupted"]:
            click.echo("Interrupted: the same command with --overwrite goes on after the last whole epoch.")
