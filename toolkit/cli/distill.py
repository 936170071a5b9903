"""`toolkit distill`."""

from __future__ import annotations

from typing import Any

import click

from toolkit.cli import options, output


@click.command(name="distill")
@click.argument("model")
@options.data_options
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The student.")
@click.option("--layers", type=click.IntRange(min=1), help="Make the student from this many of the teacher's layers.")
@click.option("--student", metavar="FOLDER", help="A checkpoint that is the student, instead.")
@click.option("--teacher", "teachers", multiple=True, metavar="FOLDER", help="A further teacher; may be given again.")
@click.option("--unlabeled", metavar="FILE", help="Texts without labels, too: .txt, a line each, or a table.")
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), default=2.0, show_default=True)
@click.option("--label-weight", "labels_weight", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--hidden-weight", "hidden", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--attention-weight", "attention", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--learning-rate", type=click.FloatRange(min=0, min_open=True), default=1e-4, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@options.run_options
def command(
    output_folder: str,
    as_json: bool,
    layers: int | None,
    student: str | None,
    teachers: tuple[str, ...],
    unlabeled: str | None,
    hidden: float,
    attention: float,
    temperature: float,
    labels_weight: float,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    **given: Any,
) -> None:
    """Let a small student learn the answers of MODEL, a trained classifier, and write a Hugging Face folder.

    \b
    Examples:
      toolkit distill ./tuned --data reviews.csv --layers 3 -o student/
      toolkit distill ./tuned --data reviews.csv --student ./tiny --teacher ./other --unlabeled more.txt -o student/
    """
    from toolkit import steps
    from toolkit.cli.convert import interruptible

    with output.reporting(as_json) as reporter:
        result = steps.distill(
            output_folder, given, teachers=teachers, student=student, layers=layers, hidden=hidden,
            attention=attention, unlabeled=unlabeled, reporter=reporter, around=interruptible,
            parameters={
                "temperature": temperature, "labels_weight": labels_weight, "epochs": epochs,
                "learning_rate": learning_rate, "batch_size": batch_size,
            },
        )  # fmt: skip
    if as_json:
        output.print_json(result)
    else:
        click.echo(
            f"{result['output']}: {result['parameters'] / 1e6:.1f} million weights, validation score "
            f"{result['validation_score']:.4f} after epoch {result['best_epoch']} of {result['epochs_run']}."
        )
