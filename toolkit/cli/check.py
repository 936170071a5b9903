"""`toolkit check`."""

from __future__ import annotations

import click

from toolkit.cli import options, output


@click.command(name="check")
@options.comparison(examples=64)
def command(
    first: str,
    second: str,
    data: str | None,
    column: str | None,
    examples: int,
    task: str | None,
    allow_code: bool,
    as_json: bool,
) -> None:
    """Compare two builds of a model step by step, from the raw example to the label.

    FIRST is right by definition, SECOND is what is looked at: checkpoints, artifact folders, bundles; SECOND also an
    .onnx, .tflite or .pte file, which is then fed as FIRST is. Names the first step that differs.

    \b
    Example:
      toolkit check tuned/ demo-host --data reviews.csv
    """
    from pathlib import Path

    from toolkit import builds
    from toolkit import check as checks
    from toolkit.errors import RefusedError

    expected = builds.open_build(Path(first), task, allow_code=allow_code)
    found = builds.open_build(Path(second), task, like=expected, allow_code=allow_code)
    raw = builds.examples_for(expected, found, Path(data) if data else None, column, examples)
    with output.progress_bar("comparing") as progress:
        result = checks.check(expected, found, raw, progress)
    if as_json:
        output.print_json(result.as_dict())
    else:
        rows = [
            (step.name, "same" if not step.differ else f"differs in {step.differ} of {step.examples}", step.what)
            for step in result.steps
        ]
        output.print_table(f"{second} beside {first}", ("step", "", "what"), rows)
        click.echo(f"{result.changed} of {result.examples} answers change from end to end.")
    if result.first is not None:
        step = result.first
        hint = f" `toolkit bisect {first} {second}` says in which layer." if step.name == checks.MODEL else ""
        raise RefusedError(f"The builds part at the step '{step.name}': {step.what}.{hint}")
