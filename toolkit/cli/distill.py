"""`toolkit distill`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output

_LEARNING = ("teachers", "student", "layers", "width", "hidden", "attention", "unlabeled", "unlabeled_column")


@click.command(name="distill")
@click.argument("model")
@options.data_options
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The student.")
@click.option("--layers", type=click.IntRange(min=1), help="Make the student from this many of the teacher's layers.")
@click.option("--width", type=click.IntRange(min=1), help="Make it this wide: the heads that matter least go.")
@click.option(
    "--student",
    metavar="PATH",
    help="The student, instead: a checkpoint; a config.json or FILE.py:FUNCTION: random weights.",
)
@click.option("--teacher", "teachers", multiple=True, metavar="FOLDER", help="A further teacher; may be given again.")
@options.unlabeled_options
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option("--label-weight", "labels_weight", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--hidden-weight", "hidden", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--attention-weight", "attention", type=click.FloatRange(min=0), default=0.0, show_default=True)
@options.training(epochs=4, learning_rate=1e-4)
@options.run_options
def command(output_folder: str, as_json: bool, **given: Any) -> None:
    """Let a small student learn the answers of MODEL, a trained checkpoint, and write a Hugging Face folder.

    \b
    Examples:
      toolkit distill ./tuned --data reviews.csv --layers 3 --width 192 -o student/
      toolkit distill ./tuned --data reviews.csv --student ./tiny --teacher ./other --unlabeled more.txt -o student/
    """
    from toolkit import steps
    from toolkit.cli.convert import interruptible

    learning = {name: given.pop(name) for name in _LEARNING}
    parameters = {name: given.pop(name) for name in ("temperature", "labels_weight", *options.TRAINING)}
    with output.reporting(as_json) as reporter:
        result = steps.distill(
            output_folder, given, **learning, parameters=parameters, reporter=reporter, around=interruptible
        )
    if as_json:
        output.print_json(result)
    else:
        click.echo(
            f"{result['output']}: {result['parameters'] / 1e6:.1f} million weights, validation score "
            f"{result['validation_score']:.4f} after epoch {result['best_epoch']} of {result['epochs_run']}."
        )
