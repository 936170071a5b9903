"""`toolkit convert`."""

from __future__ import annotations

import contextlib
import shlex
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import options, output

if TYPE_CHECKING:
    from toolkit.runner import Runner


@click.command(name="convert")
@click.argument("model", default="")
@click.option(
    "--target",
    default="host",
    show_default=True,
    metavar="NAME",
    help="Hardware profile, alias or .yaml file; NAME@IMAGE for one image of it.",
)
@options.data_options
@click.option("-o", "--output", metavar="FOLDER", help="The bundle.  [default: MODEL-TARGET]")
@click.option(
    "--min-score",
    default="99%",
    show_default=True,
    help="Least score: 0.83, or 99% of the float checkpoint's.",
)
@click.option("--max-latency", type=options.MILLISECONDS, help="Latency budget, such as 20ms.")
@click.option("--max-size", type=options.MEGABYTES, help="Size budget of the artifact, such as 25MB.")
@click.option("--max-memory", type=options.MEGABYTES, help="Memory budget of a process that runs it, such as 150MB.")
@click.option(
    "--compress/--no-compress",
    default=None,
    help="Whether to distill and prune.  [default: if a budget is not met without]",
)
@options.unlabeled_options
@click.option("--finetune/--no-finetune", default=None, help="Whether to train.  [default: if the model is untrained]")
@options.training_options
@click.option("--recipe", metavar="FILE", help="Rerun a bundle's recipe.yaml instead of naming model, data and target.")
@click.option("--dry-run", is_flag=True, help="Print the recipe and the reason for each step, and stop.")
@options.graph_options
@options.fix_option
@options.run_options
def command(
    as_json: bool,
    dry_run: bool,
    max_latency: float | None,
    max_size: float | None,
    max_memory: float | None,
    fix: tuple[tuple[str, Any], ...],
    **given: Any,
) -> None:
    """Take MODEL, a Hugging Face folder, an ONNX file or `demo`, all the way to a bundle for a target.

    \b
    Examples:
      toolkit convert demo --target host
      toolkit convert ./my-model --data reviews.csv --target raspberry-pi-5 -o out/
      toolkit convert ./my-model --data eval.jsonl --target jetson --max-latency 20ms --dry-run
      toolkit convert ./my-model --data reviews.csv --max-size 9MB --unlabeled more.txt -o small/
      toolkit convert theirs.onnx --data tensors/ --target jetson -o theirs-jetson/
      toolkit convert --recipe out/recipe.yaml -o again/
    """
    from toolkit import planning
    from toolkit.errors import RefusedError

    given["fix"] = options.sizes(fix, "--fix")
    wanted = planning.options(max_latency_ms=max_latency, max_size_mb=max_size, max_memory_mb=max_memory, **given)
    plan = planning.plan(wanted)
    if dry_run:
        if as_json:
            output.print_json(plan.recipe.model_dump(mode="json"))
        else:
            click.echo(plan.recipe.to_yaml(), nl=False)
        return
    refusal = None
    try:
        bundle = run_with_progress(plan, quiet=as_json)
    except RefusedError as error:
        if error.bundle is None:
            raise
        bundle, refusal = error.bundle, error
    summary = {**bundle.summary, "content_hash": bundle.manifest["content_hash"]}
    if as_json:
        output.print_json(summary)
    else:
        print_summary(summary)
    if refusal is not None:
        raise refusal


def run_with_progress(plan: Any, quiet: bool) -> Any:
    """Carry the plan out with bars."""
    from toolkit import conversion
    from toolkit.runner import Runner

    with output.reporting(quiet) as reporter:
        runner = Runner(plan.cache, plan.recipe.task, plan.recipe.seed, reporter, plan.options.force)
        with interruptible(runner):
            return conversion.run(plan, runner=runner)


@contextlib.contextmanager
def interruptible(runner: Runner) -> Iterator[None]:
    """For the time of a block, the first Ctrl-C ends a training early, the second everything."""

    def on_interrupt(*_: Any) -> None:
        if runner.training():
            click.echo("Stopping after this batch and keeping the best epoch; Ctrl-C again ends all.", err=True)
            runner.interrupt()
            signal.signal(signal.SIGINT, lambda *_: runner.stop())
        else:
            runner.stop()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def print_summary(summary: dict[str, Any]) -> None:
    """What a person wants to know after a conversion."""
    from toolkit import report

    verdict = "accepted" if summary["accepted"] else "REFUSED by the gates"
    click.echo()
    output.print_table(
        f"{summary['chosen']} for {summary['target']}: {verdict}",
        ("", "before (float checkpoint)", "after (this bundle)"),
        report.before_and_after(summary),
    )
    click.echo(f"Latency: {summary['latency']['how']}.")
    for limit, given_by in summary["budgets"]["given_by"].items():
        click.echo(f"Budget from the target's profile: {given_by} is {summary['budgets'][limit]:g}.")
    found = summary["compression"]
    if found:
        click.echo()
        if found["steps"]:
            output.print_table(f"Compression, judged as {found['basis']}", report.CHAIN_HEAD, report.chain_rows(found))
        click.echo(f"Compression: {found['outcome']}.")
    click.echo(f"Behaviour: {summary['behaviour']['sentence']}.")
    if summary["validation"]:
        from toolkit.tensorrt import rungs

        click.echo(f"{rungs.sentence(summary['validation'])}.")
        for rung, step in summary["validation"]["steps"].items():
            click.echo(f"  {rung}: {step['detail']}")
    if summary["engine_build"]:
        click.echo(f"Engine: {summary['engine_build']['detail']}.")
    click.echo()
    output.print_table(
        "Candidates",
        ("candidate", "size", summary["score"]["name"], "latency", "outcome"),
        [
            (
                c["name"],
                report.size_text(c["size_bytes"]),
                report.score_text(c),
                report.latency_text(c["latency"]),
                c["outcome"],
            )
            for c in summary["candidates"]
        ],
    )
    for skipped in summary["skipped"]:
        click.echo(f"Not tried: {skipped['what']}: {skipped['reason']}.")
    dropped = ", ".join(f"{count} {why}" for why, count in summary["data"]["dropped"].items())
    if dropped:
        click.echo(f"Rows left out of the data: {dropped}.")
    bundle = summary["bundle"]
    click.echo(f"Bundle: {bundle} ({summary['seconds']:.0f} s), content {summary['content_hash'][:12]}")
    click.echo(f"Report: {bundle}/report.html")
    if summary["command"]:
        click.echo(f"For the device, in {bundle}: {summary['command']}")
    click.echo(f"Next:   toolkit bench {shlex.quote(bundle)}")
