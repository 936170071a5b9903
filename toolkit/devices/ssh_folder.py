"""The one folder of a device behind ssh that everything is brought to. Only what is not there already is sent."""

from __future__ import annotations

import io
import tarfile
import threading
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

from toolkit.devices import brought, ssh_client
from toolkit.errors import InputError, MissingDependencyError

KEPT = "toolkit-bench"  # in the home of the user there
NO_SPACE = "no space is left on the disk there"
_UPLOAD_SECONDS = 3600.0
_CHUNK = 1 << 18

# Scripts for the device's own shell; what they work on comes as arguments.
_MAKE_FOLDER = (
    'if [ -n "$1" ]; then mkdir -p -- "$HOME/$1" && cd -- "$HOME/$1" && pwd; '
    'else for at in "$TMPDIR" /var/tmp /tmp; do [ -n "$at" ] && [ -w "$at" ] && '
    'exec mktemp -d "$at/toolkit-bench-XXXXXX"; done; echo "no folder can be written to" >&2; exit 1; fi'
)  # /tmp is memory on many boards: what is read from there is no cold start
_HASHES = (
    'mkdir -p -- "$1" && cd -- "$1" || exit 1; '
    'find . -type f ! -path "*/__pycache__/*" -exec sha256sum -- "{}" + 2>/dev/null; exit 0'
)


def shell(ssh: ssh_client.Ssh, script: str, *arguments: str, timeout_seconds: float = 60) -> Any:
    """Run a script of the device's shell."""
    return ssh.run(["sh", "-c", script, "sh", *arguments], timeout_seconds=timeout_seconds)


class Folder:
    """A folder that was made there: a new one, or with `keep` the one of before. `closing` is set when the device is
    left, and ends what is being sent. Raises InputError if none can be made."""

    def __init__(self, connection: ssh_client.Connection, name: str, keep: bool, closing: threading.Event) -> None:
        self._connection, self._name, self._closing = connection, name, closing
        made = shell(connection.ssh(), _MAKE_FOLDER, KEPT if keep else "")
        if made.returncode:
            raise InputError(f"{name}: cannot make a folder: {ssh_client.last_line(made.stderr)}.")
        self.path = PurePosixPath(made.stdout.decode().strip().splitlines()[-1])

    def bring(self, files: Mapping[str, Path], name: str) -> None:
        """Make the folder `name` in it hold these files and no others. Raises InputError."""
        place = self.path / name
        listed = shell(self._connection.ssh(), _HASHES, str(place), timeout_seconds=600)
        if listed.returncode:
            raise InputError(f"{self._name}: cannot make {place}: {ssh_client.last_line(listed.stderr)}.")
        changed, surplus = brought.difference(listed.stdout, files, place)
        ssh = self._connection.ssh()
        if surplus:
            ssh.run(["rm", "-f", "--", *surplus])
        if not changed:
            return
        command = ["tar", "-xf", "-", "-C", str(place)]
        done = ssh.feed(command, lambda stream: self._pack(changed, stream), _UPLOAD_SECONDS)
        if done.returncode:
            size = sum(file.stat().st_size for file in changed.values()) / 1e6
            said = NO_SPACE if self.is_full(place) else ssh_client.last_line(done.stderr.partition(b"\n")[0])
            raise InputError(f"{self._name}: cannot write {size:.1f} MB to {place}: {said}.")

    def _pack(self, files: Mapping[str, Path], stream: IO[bytes]) -> None:
        """Write files as a tar archive, until the device is left."""
        with tarfile.open(fileobj=_Watched(stream, self._closing), mode="w|", bufsize=_CHUNK) as archive:
            for path, file in sorted(files.items()):
                entry = archive.gettarinfo(file.resolve(), path)
                entry.uid = entry.gid = 0
                entry.uname = entry.gname = ""
                with file.open("rb") as content:
                    archive.addfile(entry, content)

    def is_full(self, place: PurePosixPath) -> bool:
        """Whether the disk of a folder there has no space left."""
        told = self._connection.ssh().run(["df", "-Pk", "--", str(place)]).stdout.decode(errors="replace").split()
        return len(told) > 5 and told[-3] == "0"


class _Watched(io.RawIOBase):
    """A stream that is written to until an event."""

    def __init__(self, stream: IO[bytes], until: threading.Event) -> None:
        self._stream, self._until = stream, until

    def write(self, data: Any) -> int:
        if self._until.is_set():
            raise MissingDependencyError("The device was left.")
        return self._stream.write(data)
