"""Limits on memory: what stays below runs, what does not is ended and counted, and nothing is left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from toolkit.devices import cgroup
from toolkit.errors import MissingDependencyError

MB = 1 << 20
TAKE = "import sys; taken = bytearray(int(sys.argv[1])); print(len(taken))"


@pytest.fixture
def limited():
    try:
        with cgroup.memory(100 * MB) as group:
            yield group
    except MissingDependencyError as error:
        pytest.skip(str(error))


def take(group: cgroup.MemoryGroup, count: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", TAKE, str(count)]
    return subprocess.run(command, preexec_fn=group.enter(), capture_output=True, text=True)


def test_below_the_limit_nothing_happens(limited: cgroup.MemoryGroup) -> None:
    done = take(limited, 40 * MB)
    assert (done.returncode, done.stdout) == (0, f"{40 * MB}\n")
    assert limited.killed == 0
    assert limited.peak_bytes is None or 40 * MB < limited.peak_bytes < 100 * MB


def test_above_the_limit_the_process_is_ended_and_counted(limited: cgroup.MemoryGroup) -> None:
    done = take(limited, 200 * MB)
    assert done.returncode == -9
    assert limited.killed == 1


def test_the_group_is_gone_afterwards() -> None:
    try:
        with cgroup.memory(100 * MB) as group:
            take(group, MB)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    assert not group.folder.exists()


def test_where_none_can_be_made_the_reason_is_said(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="No control group can be made here"), cgroup.memory(MB, tmp_path):
        pass


def version_2(root: Path, controllers: str) -> None:
    (root / "cgroup.subtree_control").write_text(controllers)


def test_in_version_2_the_limit_is_that_of_its_files(tmp_path: Path) -> None:
    """On files that hold what such a hierarchy does; this machine may have version 1."""
    version_2(tmp_path, "cpu memory")
    folder = cgroup._with_memory(tmp_path, ["0::/"])
    assert folder == tmp_path
    group = cgroup.MemoryGroup(tmp_path, 2, 5 * MB)
    cgroup._limit(group)
    assert (tmp_path / "memory.max").read_text() == str(5 * MB)
    assert (tmp_path / "memory.swap.max").read_text() == "0"
    assert group.peak_bytes is None
    (tmp_path / "memory.peak").write_text("12345\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 2\noom_group_kill 0\n")
    assert (group.peak_bytes, group.killed) == (12345, 2)
