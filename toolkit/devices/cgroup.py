"""A limit on the memory of processes, by a control group of Linux: version 1 or 2, whichever holds the memory here.

What a group may not have beyond its limit is taken back from its page cache first; a process that needs more even so is
ended by the kernel, and the group counts it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import MissingDependencyError

_ROOT = Path("/sys/fs/cgroup")
_EMPTY_SECONDS = 5.0  # ended processes leave their group a moment later


@dataclass(frozen=True)
class MemoryGroup:
    """A control group with a limit of `limit_bytes`, of a version."""

    folder: Path
    version: int
    limit_bytes: int

    def enter(self) -> Callable[[], None]:
        """The `preexec_fn` of a process that is to run in the group, with all that it starts."""
        return functools.partial(_enter, str(self.folder / "cgroup.procs"))

    @property
    def peak_bytes(self) -> int | None:
        """The most that the group had, page cache included; None where the kernel does not say (version 2 before Linux
        5.19)."""
        name = "memory.max_usage_in_bytes" if self.version == 1 else "memory.peak"
        with contextlib.suppress(OSError):
            return int((self.folder / name).read_text())
        return None

    @property
    def killed(self) -> int:
        """How many of its processes the kernel ended for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        for line in (self.folder / name).read_text().splitlines():
            key, _, count = line.partition(" ")
            if key == "oom_kill":
                return int(count)
        return 0


def _enter(procs: str) -> None:
    with open(procs, "w") as stream:  # noqa: PTH123 - between fork and exec, the less the better
        stream.write(str(os.getpid()))


@contextlib.contextmanager
def memory(limit_bytes: int, root: Path = _ROOT) -> Iterator[MemoryGroup]:
    """A new group for the time of a block. Raises MissingDependencyError where none can be made: outside of Linux, or
    without the right to."""
    parent, version = _parent(root)
    group = MemoryGroup(parent / f"toolkit-{uuid.uuid4().hex[:12]}", version, limit_bytes)
    try:
        group.folder.mkdir()
    except OSError as error:
        raise MissingDependencyError(_cannot(f"{group.folder}: {error.strerror}")) from error
    try:
        try:
            _limit(group)
        except OSError as error:
            raise MissingDependencyError(_cannot(f"{error.filename}: {error.strerror}")) from error
        yield group
    finally:
        _remove(group.folder)


def _cannot(why: str) -> str:
    return (
        f"No control group can be made here to limit memory with ({why}). It takes Linux and the right to write under "
        f"{_ROOT}: root, or a container with its own cgroups."
    )


def _parent(root: Path) -> tuple[Path, int]:
    """The group that this process is in, as far as it is seen from here, and the version of its hierarchy."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError as error:
        raise MissingDependencyError(_cannot(f"/proc/self/cgroup: {error.strerror}")) from error
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            mount = root / "memory"
            own = mount / path.lstrip("/")
            return (own if own.is_dir() else mount), 1
    return _with_memory(root, lines), 2


def _with_memory(root: Path, lines: list[str]) -> Path:
    """The nearest group of version 2 whose children may have a limit on memory."""
    path = next((line.split(":", 2)[2] for line in lines if line.startswith("0::")), "/")
    own = root / path.lstrip("/")
    for folder in (own, *own.parents):
        if folder == root.parent:
            break
        with contextlib.suppress(OSError):
            if "memory" in (folder / "cgroup.subtree_control").read_text().split():
                return folder
            (folder / "cgroup.subtree_control").write_text("+memory")
            return folder
    raise MissingDependencyError(_cannot(f"{own}: no group gives its children limits on memory"))


def _limit(group: MemoryGroup) -> None:
    if group.version == 1:
        (group.folder / "memory.limit_in_bytes").write_text(str(group.limit_bytes))
        with contextlib.suppress(OSError):  # where the kernel does not count swap
            (group.folder / "memory.memsw.limit_in_bytes").write_text(str(group.limit_bytes))
        return
    (group.folder / "memory.max").write_text(str(group.limit_bytes))
    with contextlib.suppress(OSError):
        (group.folder / "memory.swap.max").write_text("0")


def _remove(folder: Path) -> None:
    """Remove a group once its processes have left it."""
    until = time.monotonic() + _EMPTY_SECONDS
    while True:
        try:
            folder.rmdir()
            return
        except OSError:
            if time.monotonic() > until:
                return  # something still runs in it; an empty group costs nothing
            time.sleep(0.05)
