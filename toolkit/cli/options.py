"""Options that several verbs share, and the parsers of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from toolkit.adapters import METHODS
from toolkit.engines import FORMAT_OF

ENGINES = tuple(FORMAT_OF)  # that a checkpoint is exported for
F = TypeVar("F", bound=Callable[..., Any])


class Quantity(click.ParamType[float]):
    """A number with an optional unit, turned into the unit that the API wants."""

    def __init__(self, name: str, units: dict[str, float]) -> None:
        self.name = name
        self._units = units

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
        if not match or match.group(2).lower() not in self._units or float(match.group(1)) <= 0:
            known = ", ".join(unit for unit in self._units if unit)
            self.fail(f"'{value}' is not a positive number with a unit of {known}.", param, ctx)
        return float(match.group(1)) * self._units[match.group(2).lower()]


MILLISECONDS = Quantity("latency", {"": 1.0, "ms": 1.0, "us": 1e-3, "s": 1e3})
MEGABYTES = Quantity("size", {"": 1.0, "mb": 1.0, "kb": 1e-3, "gb": 1e3})
DURATION = Quantity("time", {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0})


class Percent(click.ParamType[float]):
    """A number above 0, with or without a percent sign."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", str(value))
        if not match or float(match.group(1)) <= 0:
            self.fail(f"'{value}' is not a percentage above 0.", param, ctx)
        return float(match.group(1))


PERCENT = Percent()


class Numbers(click.ParamType[tuple[int, ...]]):
    """Comma-separated whole numbers; a range as 0-3."""

    name = "0,1,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        found: list[int] = []
        for part in str(value).split(","):
            match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
            if not match:
                self.fail(f"'{part}' is not a whole number.", param, ctx)
            found += range(int(match[1]), int(match[2] or match[1]) + 1)
        return tuple(dict.fromkeys(found))


class Sweep(click.ParamType[tuple[str, tuple[int, ...]]]):
    """NAME=1,2,4 with NAME threads, batch or length."""

    name = "name=1,2,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, sign, numbers = str(value).partition("=")
        if not sign or name not in ("threads", "batch", "length"):
            self.fail(f"'{value}' is not threads=…, batch=… or length=….", param, ctx)
        found = Numbers().convert(numbers, param, ctx)
        if 0 in found:
            self.fail(f"'{value}': 0 is none.", param, ctx)
        return name, found


SWEEP = Sweep()


def limits(command: F) -> F:
    """What a device may use of itself, and how long."""
    for option in reversed(
        [
            click.option("--cores", type=Numbers(), metavar="0,1,…", help="Run on these cores only."),
            click.option("--memory", type=MEGABYTES, metavar="SIZE", help="Give it this much memory, e.g. 512MB."),
            click.option("--timeout", type=DURATION, metavar="TIME", help="End a step that takes longer."),
            click.option("--keep", is_flag=True, help="Leave on a device what the next run can use again."),
            click.option("--python", metavar="PATH", help="Of a device behind ssh.  [default: python3]"),
            click.option("--wheels", metavar="FOLDER", help="Of what its Python lacks.  [default: downloaded]"),
            click.option("--ssh-config", metavar="FILE", help="Of ssh, instead of your own."),
            click.option("--library", metavar="FILE", help="Of a device behind adb: the engine's library for it."),
            click.option("--compiler", metavar="PROGRAM", help="Of what runs on a device behind adb, e.g. the NDK's."),
            click.option("--runner", metavar="FILE", help="Run this there instead, e.g. a benchmark_model."),
            click.option("--checkpoint", metavar="FOLDER", help="For gpu://0?with=torch: what BUNDLE was made from."),
        ]
    ):
        command = option(command)
    return command


def device_settings(given: dict[str, Any]) -> Any:
    """The `toolkit.devices.Settings` of a command's options, which are taken out of `given`."""
    from pathlib import Path

    from toolkit.cache import open_cache
    from toolkit.devices import Settings

    cache, memory = given.pop("cache_dir"), given.pop("memory")
    wheels, ssh_config = given.pop("wheels"), given.pop("ssh_config")
    library, runner, checkpoint = given.pop("library"), given.pop("runner"), given.pop("checkpoint")
    return Settings(
        cache=open_cache(Path(cache) if cache else None).folder,
        cores=given.pop("cores") or (),
        memory_bytes=int(memory * 1e6) if memory is not None else None,
        timeout_seconds=given.pop("timeout"),
        keep=given.pop("keep"),
        python=given.pop("python"),
        wheels=Path(wheels) if wheels else None,
        ssh_config=Path(ssh_config) if ssh_config else None,
        runner=Path(runner) if runner else None,
        library=Path(library) if library else None,
        compiler=given.pop("compiler"),
        checkpoint=Path(checkpoint) if checkpoint else None,
    )


class Condition(click.ParamType[tuple[str, str]]):
    """COLUMN=VALUE."""

    name = "column=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        column, sign, wanted = str(value).partition("=")
        if not sign or not column:
            self.fail(f"'{value}' is not COLUMN=VALUE.", param, ctx)
        return column, wanted


class Setting(click.ParamType[tuple[str, Any]]):
    """NAME=VALUE, the value as YAML reads it: a number, yes or no, a [list], or text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        import yaml

        name, sign, text = str(value).partition("=")
        if not sign or not name:
            self.fail(f"'{value}' is not NAME=VALUE.", param, ctx)
        try:
            return name, yaml.safe_load(text)
        except yaml.YAMLError:
            return name, text


class Names(click.ParamType[list[str]]):
    """Comma-separated names."""

    name = "a,b,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        if isinstance(value, list):
            return value
        names = [part.strip() for part in str(value).split(",")]
        if not all(names) or len(set(names)) != len(names):
            self.fail(f"'{value}' is not a list of different names.", param, ctx)
        return names


def lengths(text: str | None) -> list[int] | None:
    """`32,64` as numbers. Raises InputError."""
    from toolkit.errors import InputError

    if text is None:
        return None
    try:
        wanted = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise InputError(f"--lengths '{text}' is not a list of numbers like 32,64,128.") from error
    if min(wanted) < 4:
        raise InputError(f"--lengths '{text}': an input length is at least 4.")
    return wanted


def sizes(given: tuple[tuple[str, Any], ...], option: str = "--size") -> dict[str, int]:
    """`--size NAME=N` as a dictionary. Raises InputError."""
    from toolkit.errors import InputError

    for name, size in given:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"{option} {name}={size}: a size is a whole number from 1 on.")
    return dict(given)


def data_options(function: F) -> F:
    """What every verb that reads labelled examples takes."""
    for option in reversed(
        [
            click.option("--data", metavar="FILE", help="Labelled examples: CSV, TSV, JSON lines or Parquet."),
            click.option("--task", metavar="NAME", help="What the model does.  [default: what it was trained for]"),
            click.option("--text-column", metavar="NAME", help="Column of the text, if not found by name."),
            click.option("--label-column", metavar="NAME", help="Column of the label, if not found by name."),
            click.option("--labels", type=Names(), help="Label names, in the order of the label values."),
            click.option("--where", multiple=True, type=Condition(), help="Use only rows with this value."),
            click.option("--drop-missing", is_flag=True, help="Leave out rows that have no label."),
            click.option("--max-length", type=click.IntRange(min=8), help="Truncate texts to this many tokens."),
            click.option("--option", multiple=True, type=Setting(), help="A setting of the task: docs/tasks.md."),
        ]
    ):
        function = option(function)
    return function


def comparison(*, examples: int) -> Callable[[F], F]:
    """What every verb that compares two builds of a model takes; `examples` is how many it looks at by default."""

    def decorate(function: F) -> F:
        data = "Raw examples: a file or folder as for `convert`. Without it, a bundle's golden examples."
        code = "Run the network that a checkpoint brings as Python code."
        for option in reversed(
            [
                click.argument("first"),
                click.argument("second"),
                click.option("--data", help=data),
                click.option("--column", help="The column of the examples, where it is not found by name."),
                click.option(
                    "--examples", default=examples, show_default=True, type=click.IntRange(1), help="How many, at most."
                ),
                click.option("--task", help="What the models do, where their folders do not say."),
                click.option("--allow-code", is_flag=True, help=code),
                click.option("--json", "as_json", is_flag=True, help="Print JSON."),
            ]
        ):
            function = option(function)
        return function

    return decorate


TRAINING = ("epochs", "learning_rate", "batch_size", "tensorboard", "track")  # what `training` adds


def training(*, epochs: int, learning_rate: float, least_epochs: int = 1, help: str = "") -> Callable[[F], F]:
    """What every verb that trains takes, with the defaults of its stage. `help` says what the epochs are for."""

    def decorate(function: F) -> F:
        for option in reversed(
            [
                click.option(
                    "--epochs", type=click.IntRange(min=least_epochs), default=epochs, show_default=True, help=help
                ),
                click.option(
                    "--learning-rate",
                    type=click.FloatRange(min=0, min_open=True),
                    default=learning_rate,
                    show_default=True,
                ),
                click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True),
                click.option("--tensorboard", metavar="FOLDER", help="Write TensorBoard logs of the training."),
                click.option(
                    "--track",
                    type=click.Choice(["wandb", "mlflow"]),
                    multiple=True,
                    help="Report the training to Weights & Biases or MLflow, as their environment variables say.",
                ),
            ]
        ):
            function = option(function)
        return function

    return decorate


def training_options(function: F) -> F:
    """What every verb that fine-tunes takes."""
    for option in reversed(
        [
            click.option(
                "--adapt", type=click.Choice(METHODS), default="full", show_default=True,
                help="Which weights learn: all, the head, an adapter that is merged in the end, or a prompt.",
            ),
            click.option("--rank", type=click.IntRange(min=1), default=8, show_default=True, help="Of lora, adalora."),
            click.option("--training", multiple=True, type=Setting(), help="Another one: docs/verbs/finetune.md."),
            click.option("--augment", multiple=True, type=Setting(), help="Change training examples: docs/tasks.md."),
        ]
    ):  # fmt: skip
        function = option(function)
    return training(epochs=3, learning_rate=1e-4)(function)


def unlabeled_options(function: F) -> F:
    """Texts without labels, for the stages that learn from a teacher's answers."""
    for option in reversed(
        [
            click.option(
                "--unlabeled", metavar="FILE", help="Texts without labels, too: .txt, a line each, or a table."
            ),
            click.option("--unlabeled-column", metavar="NAME", help="Column of its text, if not found by name."),
        ]
    ):
        function = option(function)
    return function


def graph_options(function: F) -> F:
    """What every verb takes whose MODEL may be an ONNX file."""
    for option in reversed(
        [
            click.option(
                "--preprocessing",
                metavar="FOLDER",
                help="Of a MODEL that is an ONNX file: where its tokenizer or image settings, and its labels, lie.",
            ),
            click.option("--graph-output", metavar="NAME", help="Of an ONNX file: the output with the answers."),
        ]
    ):
        function = option(function)
    return function


def fix_option(function: F) -> F:
    """What every verb takes that exports to ONNX."""
    text = "Fix an open axis of the ONNX file: batch=1, length=128."
    return click.option("--fix", multiple=True, type=Setting(), help=text)(function)


def run_options(function: F) -> F:
    """What every verb that runs stages takes."""
    for option in reversed(
        [
            click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True),
            click.option(
                "--cache-dir",
                metavar="FOLDER",
                help="Stage cache.  [default: $TOOLKIT_CACHE or ~/.cache/toolkit]",
            ),
            click.option("--force", is_flag=True, help="Run every stage again, cached or not."),
            click.option("--overwrite", is_flag=True, help="Replace an existing output."),
            click.option(
                "--allow-pickle", is_flag=True, help="Read a pickled checkpoint once, with weights_only=True."
            ),
            click.option("--allow-code", is_flag=True, help="Run the Python code that a model folder brings."),
            click.option("--weights", metavar="FILE", help="Weights of a MODEL that is given as FILE.py:FUNCTION."),
            click.option("--adapter", metavar="FOLDER", help="Merge this adapter of peft into MODEL first."),
            click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        ]
    ):
        function = option(function)
    return function
