"""What of a folder has to be sent to a device, and what has to go there, by what its `sha256sum` tells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from toolkit.storage import sha256_file


def difference(listed: bytes, files: Mapping[str, Path], place: PurePosixPath) -> tuple[dict[str, Path], list[str]]:
    """(the files that are not there or are others, the paths there that are none of them). `listed` is what `find .
    -exec sha256sum` said in `place`, `files` by their paths below it."""
    there = {}
    for line in listed.decode(errors="replace").splitlines():
        sha256, _, path = line.partition("  ./")
        there[path] = sha256
    changed = {path: file for path, file in files.items() if there.get(path) != sha256_file(file)}
    return changed, [str(place / path) for path in there if path not in files]
