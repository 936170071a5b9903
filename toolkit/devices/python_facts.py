"""What a Python is, and on what it runs: one line of JSON.

Given to a device's Python by its standard input. It runs on any Python 3, so that one that is too old can be told so;
without type hints for that.
"""

import json
import os
import platform
import struct
import sys


def machine_of(path):
    """The processor that a program is made for, as the number in its ELF header."""
    with open(path, "rb") as stream:  # noqa: PTH123
        header = stream.read(20)
    return struct.unpack("<H" if header[5:6] == b"\x01" else ">H", header[18:20])[0]


def emulated_by():
    """The name of the program that emulates this processor, None if it is real or nothing tells.

    QEMU's user mode and its like are programs of the real processor. `/proc/self/exe` is what they show to the program
    that they run, so that it finds itself there; the same file under `thread-self` is what the kernel runs.
    """
    try:
        real = "/proc/thread-self/exe"
        name = os.path.basename(os.readlink(real))  # noqa: PTH115, PTH119
        if machine_of(real) != machine_of("/proc/self/exe") or name.startswith("qemu-"):
            return name
    except OSError:
        pass
    return None


def glibc():
    """Its version, None on a system with another C library."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION").split()[1]
    except (AttributeError, IndexError, OSError, ValueError):
        return None


print(
    json.dumps(
        {
            "version": list(sys.version_info[:3]),
            "implementation": platform.python_implementation(),
            "system": platform.system(),
            "machine": platform.machine(),
            "bits": 8 * struct.calcsize("P"),
            "glibc": glibc(),
            "cores": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "emulated_by": emulated_by(),
        }
    )
)
