"""`toolkit prune`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output

_PARAMETERS = (
    "layers", "ffn", "heads", "channels", "multiple", "coverage", "vocabulary", "positions", "sparsity", "importance",
)  # fmt: skip
SHARE = click.FloatRange(min=0, max=1, max_open=True)


@click.command(name="prune")
@click.argument("model")
@options.data_options
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The smaller checkpoint.")
@click.option("--layers", type=click.IntRange(min=1), help="How many layers stay, evenly spread.")
@click.option("--ffn", type=SHARE, default=0.0, help="Share of the feed-forward units that goes.")
@click.option("--heads", type=SHARE, default=0.0, help="Share of the heads that goes, and of the width with them.")
@click.option("--channels", type=SHARE, default=0.0, help="Share of every convolution's channels that goes.")
@click.option(
    "--multiple", type=click.IntRange(min=1),
    help="Round the ffn width or the channels to it.  [default: 32 for the ffn, 8 for channels]",
)  # fmt: skip
@click.option("--coverage", type=click.FloatRange(min=0, max=1), help="Keep tokens that are this share of the data.")
@click.option("--vocabulary", type=click.IntRange(min=1), help="The most tokens that stay.")
@click.option("--positions", is_flag=True, help="Drop positions beyond the truncation length.")
@click.option(
    "--sparsity", type=click.Choice(["2:4"]),
    help="Set two of every four weights to zero, for the sparse tensor cores of TensorRT targets.",
)  # fmt: skip
@click.option(
    "--importance", type=click.Choice(["taylor", "fisher", "magnitude"]), default="taylor", show_default=True,
    help="How it is decided what goes.",
)  # fmt: skip
@click.option("--from-labels", is_flag=True, help="Recover on the labels instead of the model's own answers.")
@options.unlabeled_options
@options.training(epochs=2, learning_rate=5e-5, least_epochs=0, help="Of recovery.")
@options.run_options
def command(
    output_folder: str,
    as_json: bool,
    from_labels: bool,
    unlabeled: str | None,
    unlabeled_column: str | None,
    **given: Any,
) -> None:
    """Take parts out of MODEL, a trained checkpoint, let it recover, and write a Hugging Face folder.

    \b
    Examples:
      toolkit prune ./tuned --data reviews.csv --coverage 0.99 --positions -o smaller/
      toolkit prune ./tuned --data reviews.csv --ffn 0.5 --layers 4 -o smaller/
      toolkit prune ./mobilenet --data photos/ --channels 0.4 --epochs 6 -o narrower/
    """
    from toolkit import steps
    from toolkit.cli.convert import interruptible

    parameters = {name: given.pop(name) for name in (*_PARAMETERS, *options.TRAINING)}
    with output.reporting(as_json) as reporter:
        result = steps.prune(
            output_folder, given, learn_from_itself=not from_labels, parameters=parameters, reporter=reporter,
            unlabeled=unlabeled, unlabeled_column=unlabeled_column, around=interruptible,
        )  # fmt: skip
    if as_json:
        output.print_json(result)
        return
    click.echo(f"{result['output']}: {result['parameters'] / 1e6:.1f} million weights.")
    output.print_table(
        "Shape",
        ("", "before", "after"),
        [(name, str(size), str(result["shape"][name])) for name, size in result["shape_before"].items()],
    )
    if thinned := result["sparsity"]:
        click.echo(
            f"{thinned['removed'] / 1e6:.1f} of {thinned['weights'] / 1e6:.1f} million weights in "
            f"{thinned['matrices']} matrices are zero, in the pattern {thinned['pattern']}."
        )
    if "validation_score" in result:
        click.echo(f"Validation score {result['validation_score']:.4f} after recovery.")
