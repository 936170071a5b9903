"""`toolkit finetune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options, output

if TYPE_CHECKING:
    from toolkit.errors import RefusedError

_UPDATE = ("continue_from", "old_data", "rehearsal", "ewc", "max_forgetting")


@click.command(name="finetune")
@click.argument("model", default="")
@options.data_options
@click.option("-o", "--output", "output_folder", metavar="FOLDER", required=True, help="The new checkpoint.")
@options.training_options
@options.unlabeled_options
@click.option(
    "--continue-from", metavar="PATH", help="Instead of MODEL: a bundle or a trained checkpoint that learns more."
)
@click.option(
    "--old-data", multiple=True, metavar="FILE", help="What it was trained on, if nothing says so or it has moved."
)
@click.option("--rehearsal", type=click.FloatRange(min=0), help="Old examples per new one.  [default: 0.5]")
@click.option("--ewc", type=click.FloatRange(min=0), help="Strength of elastic weight consolidation.  [default: 0]")
@click.option("--max-forgetting", metavar="N%", help="Most points that the old score may lose.  [default: 1%]")
@options.run_options
def command(output_folder: str, as_json: bool, **given: Any) -> None:
    """Fine-tune MODEL, a Hugging Face folder or `demo`, and write a Hugging Face folder.

    \b
    Examples:
      toolkit finetune ./minilm --data reviews.csv -o tuned/
      toolkit finetune --continue-from bundle/ --data new.csv -o updated/
      accelerate launch -m toolkit finetune ./minilm --data reviews.csv -o tuned/
    """
    from toolkit import steps
    from toolkit.cli.convert import interruptible
    from toolkit.errors import InputError

    first, refusal = steps.is_first_process(), None
    update = {name: given.pop(name) for name in _UPDATE}
    texts = {name: given.pop(name) for name in ("unlabeled", "unlabeled_column")}
    updates = update["continue_from"] is not None
    if updates and texts["unlabeled"] is not None:
        raise InputError("--unlabeled does not go with --continue-from: leave one out.")
    if not updates:
        alone = next((name for name, value in update.items() if value not in (None, ())), None)
        if alone is not None:
            raise InputError(f"--{alone.replace('_', '-')} goes with --continue-from.")
    with output.reporting(as_json or not first) as reporter:
        if updates:
            result, refusal = _updated(output_folder, given, update, reporter)
        else:
            result = steps.finetune(output_folder, given, reporter, interruptible, **texts)
    if not first:
        return
    if as_json:
        output.print_json(result)
    else:
        _print(result)
    if refusal is not None:
        raise refusal


def _updated(
    output_folder: str, given: dict[str, Any], update: dict[str, Any], reporter: Any
) -> tuple[dict[str, Any], RefusedError | None]:
    """What a continual update came to, and the refusal if gates refused it."""
    from toolkit import continual
    from toolkit.cli.convert import interruptible
    from toolkit.errors import RefusedError

    try:
        return continual.update(output_folder, given, **update, reporter=reporter, around=interruptible), None
    except RefusedError as error:
        if error.bundle is None:
            raise
        return error.bundle, error


def _print(result: dict[str, Any]) -> None:
    """What a person wants to know after a training."""
    click.echo(
        f"{result['output']}: validation score {result['validation_score']:.4f} after epoch {result['best_epoch']} "
        f"of {result['epochs_run']}."
    )
    if result["trainable"] < result["parameters"]:
        click.echo(
            f"{result['trainable'] / 1e6:.3f} of {result['parameters'] / 1e6:.1f} million weights learned "
            f"({result['trainable'] / result['parameters']:.2%})."
        )
    if "folds" in result:
        click.echo(
            f"The score is the mean of {len(result['folds'])} folds, each answered by a model that learned from the "
            f"others; their standard deviation is {result['validation_score_deviation']:.4f}."
        )
    if "range_test" in result:
        click.echo(
            f"Learning rate {result['learning_rate']:g}, by a range test over {len(result['range_test'])} steps."
        )
    if "self_training" in result:
        _print_self_training(result["self_training"])
    if "continual" in result:
        _print_update(result)
    if result["interrupted"]:
        click.echo("Interrupted: the same command with --overwrite goes on after the last whole epoch.")


def _print_self_training(found: dict[str, Any]) -> None:
    """What a model's own labels brought."""
    kept = "kept" if found["kept"] else "no better, so the first model was kept"
    click.echo(
        f"Self-training: {found['pseudo_labelled']} of {found['unlabeled']} unlabeled examples got a label; validation "
        f"score {found['score_before']:.4f} → {found['score_after']:.4f}, {kept}."
    )


def _print_update(result: dict[str, Any]) -> None:
    """What was forgotten and what was learned."""
    found = result["continual"]
    parts = {f"{name} data": found[name] for name in ("old", "new") if found[name] is not None}
    rows = [
        (
            f"{name} (n={part['examples']})", f"{part['before']:.4f}", f"{part['after']:.4f}",
            f"{100 * (part['after'] - part['before']):+.2f} points",
        )
        for name, part in parts.items()
    ]  # fmt: skip
    verdict = "accepted" if result["accepted"] else "REFUSED by the gates"
    click.echo()
    output.print_table(
        f"{found['score_name']} on examples held out: {verdict}", ("", "before", "after", "change"), rows
    )
    if found["new"] is None:
        click.echo("Nothing measures the new data: the old ones have trained on all of their evaluation examples.")
    click.echo(f"With the new examples came {result['rehearsed']} old ones in every epoch; ewc {found['ewc']:g}.")
    splits = {"train": "training", "validation": "validation", "eval": "evaluation"}
    counts = [f"{result['left_out'][split]} of the {name} part" for split, name in splits.items()]
    left_out = ", ".join(text for text in counts if not text.startswith("0 "))
    if left_out:
        click.echo(f"Left out of the new data, because the old ones have them in another split: {left_out}.")
    for note in found["notes"]:
        click.echo(f"Note: {note}.")
