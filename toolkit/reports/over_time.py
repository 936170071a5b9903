"""Records over time: of files, and of every commit that touched them.

Runs of the same measurement on the same device are a series. A change is marked where the intervals of a run, widened
by the noise that the run measured of itself, do not meet those of any run before it since the last change, and the next
run says the same; one run that stands out alone is none.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from toolkit.bench.record import Record
from toolkit.errors import InputError
from toolkit.reports import gather
from toolkit.reports.data import Change, Run, Series

_COUNT_PERCENT = 0.5  # within which instructions repeat


@dataclass(frozen=True)
class Found:
    """A record, and the commit that brought it."""

    record: Record
    commit: str | None = None
    subject: str | None = None


def series(paths: Sequence[Path]) -> tuple[list[Series], list[str]]:
    """(all series of two runs or more, what was left out). Raises InputError if there is none."""
    found: list[Found] = []
    left_out: list[str] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist; give records of `toolkit bench -o`, or a folder of them.")
        found += _of(path, left_out)
    known: dict[tuple[str, str, str], Found] = {}
    for each in found:  # the same record in two commits, or in a commit and in a folder, is one
        identity = each.record.created, each.record.bundle.content_hash, each.record.device.fingerprint
        known.setdefault(identity, each)
    groups: dict[tuple[Any, ...], list[Found]] = {}
    for each in sorted(known.values(), key=lambda each: each.record.created):
        groups.setdefault(_key(each.record), []).append(each)
    made = [one for group in groups.values() for one in _series(group)]
    if not made:
        singles = (
            f"{len(known)} records, no two of them of the same measurement on the same device" if known else "none"
        )
        raise InputError(f"A history takes two records of the same measurement on the same device; found: {singles}.")
    return made, left_out


def _of(path: Path, left_out: list[str]) -> Iterator[Found]:
    """The records of a file or a folder: those of its commits first, so that what is in one carries its name."""
    for commit, subject, name, text in _committed(path):
        yield from _records(text, f"{name} at {commit[:10]}", left_out, commit, subject)
    for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        yield from _records(text, str(file), left_out)


def _records(
    text: str, place: str, left_out: list[str], commit: str | None = None, subject: str | None = None
) -> Iterator[Found]:
    """The records of a JSON document; a folder may hold others, and those of older versions, which are named."""
    try:
        document = gather.parsed(text, place)
    except InputError as error:
        left_out.append(str(error))
        return
    for each in document if isinstance(document, list) else [document]:
        if not isinstance(each, Mapping) or "bundle" not in each or "protocol" not in each:
            continue
        try:
            record = gather.record_of(each, place)
        except InputError as error:
            left_out.append(str(error))
            continue
        if record.failure is None:
            yield Found(record, commit, subject)
        else:
            left_out.append(f"{place}: the run failed ({record.failure.kind})")


def _git(folder: Path, *arguments: str, given: bytes = b"") -> bytes | None:
    """What git says of a repository; None where there is no git, or the folder is in no repository."""
    command = ["git", "-C", str(folder), "--no-pager", "-c", "core.fsmonitor=false", *arguments]
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _committed(path: Path) -> Iterator[tuple[str, str, str, str]]:
    """(commit, its subject, file, its text) of every version of the JSON files at a path, the oldest first."""
    folder, spec = (path, ".") if path.is_dir() else (path.parent, path.name)
    said = _git(
        folder, "log", "--reverse", "--no-renames", "--no-ext-diff", "--diff-filter=AM", "--name-only", "-z",
        "--format=%x01%H%x02%s%x02", "--", f":(literal){spec}" if spec != "." else ".",
    )  # fmt: skip
    wanted: list[tuple[str, str, str]] = []
    for part in (said or b"").decode(errors="replace").split("\x01")[1:]:
        commit, subject, names = part.split("\x02", 2)
        wanted += [(commit, subject, name) for name in names.replace("\n", "\0").split("\0") if name.endswith(".json")]
    if not wanted:
        return
    requests = "".join(f"{commit}:{name}\n" for commit, _, name in wanted if "\n" not in name)
    content = _git(folder, "cat-file", "--batch", given=requests.encode()) or b""
    for commit, subject, name in wanted:
        head, _, content = content.partition(b"\n")
        parts = head.split()
        if len(parts) != 3 or parts[1] != b"blob":
            continue
        size = int(parts[2])
        yield commit, subject, name, content[:size].decode(errors="replace")
        content = content[size + 1 :]


def _key(record: Record) -> tuple[Any, ...]:
    """What must be the same in two runs of one series."""
    bundle, protocol = record.bundle, record.protocol
    return (
        bundle.name, bundle.task, bundle.engine, bundle.precision, record.device.fingerprint, record.kind, record.clock,
        protocol.name, protocol.threads, str(protocol.cores), protocol.memory_limit_bytes, str(protocol.sizes),
        protocol.examples, protocol.examples_from,
    )  # fmt: skip


def _series(group: Sequence[Found]) -> Iterator[Series]:
    """What is followed of one measurement: latency, instructions, and the size of the file if it is not always the
    same."""
    timed = [each for each in group if each.record.latency is not None]
    if len(timed) > 1:
        runs = [_run(each, *_latency(each.record)) for each in timed]
        yield _made(timed, "latency, p50", "milliseconds", runs)
    counted = [each for each in group if each.record.instructions]
    if len(counted) > 1:
        totals = [_total(each.record.instructions or {}) / 1e6 for each in counted]
        runs = [_run(each, total, total, total, _COUNT_PERCENT) for each, total in zip(counted, totals, strict=True)]
        yield _made(counted, "instructions of an inference", "millions", runs)
    sizes = [each.record.bundle.artifact_bytes / 1e6 for each in group]
    if len(set(sizes)) > 1:
        runs = [_run(each, size, size, size, 0.0) for each, size in zip(group, sizes, strict=True)]
        yield _made(group, "size of the artifact", "MB", runs)


def _latency(record: Record) -> tuple[float, float, float, float | None]:
    assert record.latency is not None  # noqa: S101 - asked for those that have one
    found = record.latency.p50_ms
    return found.value, found.low, found.high, record.noise.floor_percent if record.noise else None


def _total(instructions: Mapping[str, float]) -> float:
    return instructions.get("total") or instructions.get("instructions") or sum(instructions.values())


def _run(found: Found, value: float, low: float, high: float, floor: float | None) -> Run:
    return Run(
        when=found.record.created, commit=found.commit, subject=found.subject, value=value, low=low, high=high,
        floor_percent=floor, toolkit=found.record.toolkit,
    )  # fmt: skip


def _made(group: Sequence[Found], what: str, unit: str, runs: list[Run]) -> Series:
    record = group[-1].record
    protocol = record.protocol
    threads = "1 thread" if protocol.threads in (None, 1) else f"{protocol.threads} threads"
    return Series(
        name=f"{record.bundle.name}, {record.bundle.engine} {record.bundle.precision}",
        device=record.device.title,
        fingerprint=record.device.fingerprint,
        how=f"Protocol {protocol.name}, {threads}, {protocol.examples} examples ({protocol.examples_from})",
        kind=record.kind,
        what=what,
        unit=unit,
        runs=runs,
        changes=changes(runs),
    )


def _ends(run: Run) -> tuple[float, float]:
    """A run's interval, widened by its noise floor."""
    wider = 1 + (run.floor_percent or 0.0) / 100
    return run.low / wider, run.high * wider


def _apart(level: Sequence[Run], run: Run) -> int:
    """1 if a run lies above all that was so far, -1 below, 0 if intervals meet."""
    low, high = _ends(run)
    if low > max(_ends(each)[1] for each in level):
        return 1
    return -1 if high < min(_ends(each)[0] for each in level) else 0


def changes(runs: Sequence[Run]) -> list[Change]:
    """Where times become others."""
    found: list[Change] = []
    level = list(runs[:1])
    for place in range(1, len(runs)):
        side = _apart(level, runs[place])
        after = runs[place + 1] if place + 1 < len(runs) else None
        if side == 0:
            level.append(runs[place])
        elif after is None or _apart(level, after) == side:
            values = [runs[place].value, *([after.value] if after else [])]
            ratio = median(values) / median(each.value for each in level)
            found.append(Change(place=place, ratio=ratio, confirmed=after is not None))
            level = [runs[place]]
    return found
