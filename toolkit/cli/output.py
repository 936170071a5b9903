"""How the verbs print: progress bars on stderr, tables and JSON on stdout."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def console(stderr: bool = False) -> Any:
    """A rich console that does not break lines of a pipe."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, highlight=False, width=200)
    return made


def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in head:
        table.add_column(escape(name), overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row))
    console().print(table)


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Any]:
    """One bar on stderr; what is yielded takes how much is done and how much there is."""
    with ProgressReporter() as reporter:
        reporter.started(title)
        yield lambda done, total: reporter.progress(title, done, total, "")


class ProgressReporter:
    """One bar per running stage, one line per finished one, on stderr."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> ProgressReporter:
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()

    def started(self, title: str) -> None:
        with self._guard:
            self._tasks[title] = self._progress.add_task(title, total=None, text="")

    def progress(self, title: str, done: int, total: int, text: str) -> None:
        with self._guard:
            if title in self._tasks:
                self._progress.update(self._tasks[title], completed=done, total=total, text=text)

    def _remove(self, title: str) -> None:
        with self._guard:
            if title in self._tasks:
                self._progress.remove_task(self._tasks.pop(title))

    def finished(self, title: str, receipt: Mapping[str, Any], cached: bool) -> None:
        self._remove(title)
        took = "from the cache" if cached else f"{receipt['seconds']:.1f} s"
        memory = receipt.get("peak_rss_bytes")
        peak = f", peak {memory / 1e6:.0f} MB" if memory and not cached else ""
        self._progress.print(f"  [green]done[/] {title} ({took}{peak})")

    def failed(self, title: str, reason: str) -> None:
        # The reason follows once: as the error that ends the run, or as the candidate's outcome.
        self._remove(title)
        self._progress.print(f"  [red]failed[/] {title}")


@contextlib.contextmanager
def reporting(quiet: bool) -> Iterator[Any]:
    """A reporter for the time of a block: bars, or silence for `--json`."""
    from toolkit.runner import Silent

    if quiet:
        yield Silent()
    else:
        with ProgressReporter() as reporter:
            yield reporter
