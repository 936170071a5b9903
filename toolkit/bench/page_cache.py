"""Files out of the page cache, so that a start reads them from the disk as the first one after a boot does.

Linux gives up a file's clean pages when it is asked to, which takes no rights; pages that a running process has mapped
stay. Nothing else on the machine loses its cache. Standard library only, because it runs on the device.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


def files_of(folders: Iterable[Path], packages: Iterable[str]) -> Iterator[Path]:
    """All files below folders and in the folders of installed packages."""
    places = list(folders)
    for package in packages:
        found = importlib.util.find_spec(package)
        places += [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    for place in places:
        yield from (path for path in place.rglob("*") if path.is_file())


def drop(paths: Iterable[Path]) -> float | None:
    """Drop the pages of files; the share of their bytes that is still in memory. None where that cannot be done."""
    if not hasattr(os, "posix_fadvise"):
        return None
    total = left = 0
    for path in paths:
        try:
            with path.open("rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if not size:
                    continue
                os.fdatasync(stream.fileno())  # a page that is not on the disk yet stays
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                left += _resident(stream.fileno(), size)
                total += size
        except OSError:
            continue  # not ours to read
    return left / total if total else None


def _resident(descriptor: int, size: int) -> int:
    """Bytes of a file that are in memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address in (None, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "mmap")
    pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
    try:
        if libc.mincore(address, size, pages):
            raise OSError(ctypes.get_errno(), "mincore")
    finally:
        libc.munmap(address, size)
    return min(size, sum(byte & 1 for byte in pages.raw) * mmap.PAGESIZE)
