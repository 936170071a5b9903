"""Holds the namespaces of a device, and starts and stops its adbd: the first process in them, as their root.

    adbd_namespace.py ROOT VIEW CPU PORT

Lines on its input, `start` and `stop`, are said back when that is done; `ready` comes first. Standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

_ADBD = "/usr/lib/android-sdk/platform-tools/adbd"
_ARM64 = (
    r":arm64:M::\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff:%s:F"
)
_DISK = "size=300m"


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def switch_loopback_on() -> None:
    set_flags, up = 0x8914, 1
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sh14x", b"lo", up))


def make_files(root: str, view: str) -> None:
    """The device's files, with those of this machine that QEMU itself needs; what is written is gone in the end."""
    for name in ("/lib64", "/usr/lib/x86_64-linux-gnu"):
        mount("--bind", name, root + name)
    mount("--rbind", "/proc", f"{root}/proc")
    mount("--bind", f"{view}/proc/cpuinfo", f"{root}/proc/cpuinfo")
    mount("--bind", f"{view}/sys", f"{root}/sys")
    mount("--rbind", "/dev", f"{root}/dev")
    mount("-t", "tmpfs", "-o", _DISK, "tmpfs", f"{root}/data/local")
    for name in ("tmp", "bin"):
        Path(f"{root}/data/local/{name}").mkdir()


def forbid_vsock() -> None:
    """Sockets of virtual machines belong to no network namespace, and adbd listens at them, too."""
    load, equal, give = 0x20, 0x15, 0x06
    call_of_socket, family, error, allow = 41, 40, 0x00050000 | 97, 0x7FFF0000
    program = [
        (load, 0, 0, 0), (equal, 0, 3, call_of_socket), (load, 0, 0, 16), (equal, 0, 1, family),
        (give, 0, 0, error), (give, 0, 0, allow),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    filtering = Filter(len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, by_filter = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(set_seccomp, by_filter, ctypes.byref(filtering), 0, 0):
        raise OSError(ctypes.get_errno(), "no filter of system calls")


def start(root: str, cpu: str, port: str) -> int:
    process = os.fork()
    if not process:
        become_adbd(root, cpu, port)
    return process


def become_adbd(root: str, cpu: str, port: str) -> NoReturn:
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)
    os.chroot(root)
    os.chdir("/")
    environ = {
        "PATH": "/data/local/bin:/usr/bin:/usr/sbin", "HOME": "/data", "QEMU_CPU": cpu, "ADBD_PORT": port,
        "TMPDIR": "/data/local/tmp",
    }  # fmt: skip
    os.execve(_ADBD, [_ADBD], environ)


def main(root: str, view: str, cpu: str, port: str) -> None:
    switch_loopback_on()
    mount("-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc")
    Path("/proc/sys/fs/binfmt_misc/register").write_text(_ARM64 % shutil.which("qemu-aarch64"))
    make_files(root, view)
    forbid_vsock()
    print("ready", flush=True)
    adbd = 0
    for line in sys.stdin:
        if line.strip() == "start":
            adbd = start(root, cpu, port)
        else:
            os.kill(adbd, signal.SIGKILL)
            os.waitpid(adbd, 0)
        print(line.strip(), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
