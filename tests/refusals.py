"""What every refusal must look like: one message, the right exit code, nothing half-written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from toolkit import cli

Done = subprocess.CompletedProcess[str]


def assert_refused(done: Done, *words: str, code: int = 2) -> None:
    """The command ended with `code` and one message that holds all the words."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Internal error" not in done.stderr
    messages = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(messages) == 1, done.stderr
    for word in words:
        assert word in messages[0]
    assert done.stderr.count(messages[0].removeprefix("Error: ")) == 1  # said once
    assert done.stdout == ""


def assert_nothing_half_written(output: Path, cache: Path | None = None) -> None:
    assert not output.exists()
    if output.parent.is_dir():
        assert [path.name for path in output.parent.iterdir() if ".partial-" in path.name] == []
    if cache is not None and cache.exists():
        assert list((cache / "work").iterdir()) == []


def in_process(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Done:
    """The command line without a process of its own, for what ends before anything is run."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    said = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, int(ended.value.code or 0), said.out, said.err)
