"""The command line: one file per verb, which parses, calls the Python API and prints. No logic here.

Verbs are imported when they are used, so that `toolkit --help` stays instant.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

import toolkit
from toolkit.errors import ToolkitError

# Verb → one line of help. Adding a verb: one file in this folder and one line here.
_VERBS = {
    "convert": "Take a model all the way to a bundle for a target.",
    "finetune": "Fine-tune a checkpoint on labelled examples.",
    "distill": "Let a small student learn a trained model's answers.",
    "prune": "Take layers, units, heads or tokens out of a checkpoint.",
    "export": "Export a checkpoint to one engine's format.",
    "quantize": "Quantize an exported artifact, or a checkpoint for an engine.",
    "build": "Build a bundle's TensorRT engine on its device.",
    "bench": "Measure a bundle on devices: latency, cold start, memory, energy.",
    "compare": "Time bundles in turn and say which is faster.",
    "report": "Make one page of benchmarks and bundles.",
    "inspect": "Show what a model or a bundle is.",
    "check": "Compare two builds of a model from the raw example to the label.",
    "bisect": "Name the layer in which two builds of a model part.",
    "verify": "Check a bundle's hashes and replay its golden examples.",
    "targets": "List, show, compare and start hardware profiles.",
    "devices": "Set up and list devices beside this machine.",
    "doctor": "Show what is installed and what is missing.",
}


class _Verbs(click.Group):
    """A group that knows its verbs' names and help without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"toolkit.cli.{cmd_name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        import difflib

        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            nearest = difflib.get_close_matches(args[0], _VERBS, n=1)
            hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
            raise click.UsageError(f"No such command '{args[0]}'.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(toolkit.__version__, prog_name="toolkit")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Take a model from the workstation to the device it has to run on, with proof.

    \b
    Example:
      toolkit convert demo --target host
      toolkit convert ./my-model --data reviews.csv --target raspberry-pi-5 -o out/
    """
    ctx.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 refused by a gate or budget, 2 bad input, 3 environment, 130 Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        code: Any = cli.main(args=arguments, prog_name="toolkit", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ToolkitError as error:
        if debug:
            raise
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted. Finished stages are kept; the same command goes on from there.", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; there is nobody to tell
        sys.exit(1)
    except Exception as error:  # a defect of ours: say so in one line, the rest with --debug
        if debug:
            raise
        click.echo(f"Internal error: {type(error).__name__}: {error}\nRun again with --debug for details.", err=True)
        sys.exit(3)
