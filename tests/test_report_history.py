"""`toolkit report --history`: which records are a series, and where a change is marked."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import run_toolkit
from tests.reporting import Page, made_up, written
from toolkit import reports
from toolkit.bench.record import Failure, Noise, Record, Value
from toolkit.errors import InputError
from toolkit.reports import over_time
from toolkit.reports.data import Run


@pytest.fixture(scope="module")
def record() -> Record:
    return made_up()


def again(record: Record, day: int, p50: float, half: float = 0.02, floor: float = 0.5) -> Record:
    """The record of another day."""
    made = record.model_copy(deep=True)
    assert made.latency is not None
    made.created = f"2026-01-{day:02d}T10:00:00+00:00"
    made.latency.p50_ms = Value(value=p50, low=p50 - half, high=p50 + half)
    made.noise = Noise(floor_percent=floor, ratio=1.0, low=0.99, high=1.01, rounds=8)
    return made


def run(value: float, half: float = 0.02, floor: float = 0.0) -> Run:
    return Run(
        when="2026-01-01", commit=None, subject=None, value=value, low=value - half, high=value + half,
        floor_percent=floor, toolkit="0",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "places"),
    [
        ([run(3.0), run(3.01), run(3.0)], []),
        ([run(3.0), run(3.01), run(3.5), run(3.5), run(3.49)], [2]),
        ([run(3.0), run(3.0), run(2.5), run(2.51), run(3.0), run(3.0)], [2, 4]),
        ([run(3.0), run(3.5), run(3.0), run(3.0)], []),  # one that stands out alone
        ([run(3.0), run(3.5), run(2.5), run(3.0)], []),  # two that contradict each other
        ([run(3.0), run(3.0), run(3.03), run(3.03)], []),  # intervals meet
        ([run(3.0, floor=10), run(3.0), run(3.2, floor=10), run(3.2)], []),  # noise
        ([run(3.0)], []),
    ],
)
def test_changes_are_where_intervals_say_so(runs: list[Run], places: list[int]) -> None:
    found = over_time.changes(runs)
    assert [change.place for change in found] == places
    assert all(change.confirmed for change in found)


def test_the_last_run_waits_for_another_to_confirm_it() -> None:
    (change,) = over_time.changes([run(3.0), run(3.0), run(3.6)])
    assert (change.place, change.confirmed) == (2, False)
    assert change.ratio == pytest.approx(1.2)


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Test", "-c", "user.email=test@example.com", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_folder_under_git_has_the_record_of_every_commit(record: Record, tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "results" / "records"
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    commits = []
    for day, p50 in enumerate((3.0, 3.01, 3.5, 3.51), start=1):
        written(folder, "demo.json", again(record, day, p50))
        (folder / "other.json").write_text('{"not": "a record"}')
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"Day {day} <b>")
        commits.append(git(folder, "rev-parse", "HEAD"))
    written(folder, "demo.json", again(record, 5, 3.5))  # not committed yet
    (series,) = reports.make([folder], history=True).history
    assert [each.commit for each in series.runs] == [*commits, None]
    assert [each.subject for each in series.runs[:2]] == ["Day 1 <b>", "Day 2 <b>"]
    assert [each.value for each in series.runs] == [3.0, 3.01, 3.5, 3.51, 3.5]
    assert [change.place for change in series.changes] == [2]
    assert reports.make([folder / "demo.json"], history=True).history == [series]  # a single file has its commits, too


def test_other_devices_protocols_and_engines_are_other_series(record: Record, tmp_path: Path) -> None:
    records = [again(record, day, 3.0) for day in range(1, 5)]
    records[1].device.fingerprint = "another"
    records[2].protocol.threads = 2
    records[3].bundle.engine = "another"
    with pytest.raises(InputError, match="4 records, no two of them"):
        reports.make([written(tmp_path, "records.json", *records)], history=True)
    records[0].device.fingerprint = "another"
    (series,) = reports.make([written(tmp_path, "records.json", *records)], history=True).history
    assert (series.fingerprint, len(series.runs)) == ("another", 2)


def test_what_is_left_out_is_named(record: Record, tmp_path: Path) -> None:
    records = [again(record, day, 3.0) for day in (1, 2, 3)]
    records[2].failure = Failure(kind="memory", error="out of memory", exit_code=1)
    written(tmp_path, "records.json", *records)
    (tmp_path / "older.json").write_text('{"bundle": "x", "protocol": {}, "schema_version": 1}')
    made = reports.make([tmp_path], history=True)
    assert len(made.history[0].runs) == 2
    assert len(made.left_out) == 2
    assert "older toolkit" in made.left_out[0]
    assert "the run failed (memory)" in made.left_out[1]


def test_the_verb_draws_a_history(record: Record, tmp_path: Path) -> None:
    records = [again(record, day, p50) for day, p50 in enumerate((3.0, 3.0, 3.5, 3.5), start=1)]
    files = [written(tmp_path, f"{place}.json", each) for place, each in enumerate(records)]
    done = run_toolkit("report", "--history", *files, "-o", tmp_path / "history.html", "-o", tmp_path / "history.csv")
    assert done.returncode == 0, done.stderr
    assert "4 runs; last change +16.7 %" in done.stdout
    found = Page((tmp_path / "history.html").read_text())
    assert len(found.named("svg")) == 2
    assert "▲ +16.7 %" in "".join(found.text)
    assert (tmp_path / "history.csv").read_text().count("\n") == 5
