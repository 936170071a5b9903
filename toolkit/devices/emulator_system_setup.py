"""What a whole emulated Arm machine consists of, beside the guest of user mode: a kernel of Debian and a disk.

    system-KEY/
      kernel              Debian's kernel for virtual machines
      initrd              a shell and the kernel's drivers, which mount the disks and start the benchmark
      root.ext4           the guest's Python, the engines and the bytecode of what they import
      system.json         what is in it

Nothing is installed on this machine, and nothing needs its root user.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from toolkit.cache import open_cache
from toolkit.devices import emulator, emulator_setup
from toolkit.devices.emulator_setup import SYSTEM_QEMU, run
from toolkit.errors import MissingDependencyError
from toolkit.storage import publish_folder, sha256_file, sha256_json, write_json

FILE_NAME = "system.json"
INIT = Path(__file__).with_name("emulator_init.sh")
TOOLS = (SYSTEM_QEMU, "mke2fs")
_VERSION = 1
_KERNEL, _SHELL = "linux-image-cloud-arm64", "busybox-static"
# In the order in which they are loaded; `emulator_init.sh` has them too.
_DRIVERS = (
    "virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk",
    "virtio_console",
)  # fmt: skip
_BLOCK = 4096
# What starts in the guest, so that it need not compile it anew each time.
_IMPORTS = (
    "argparse, csv, ctypes.util, email.parser, fcntl, hashlib, importlib.metadata, importlib.resources, mmap, numpy, "
    "PIL.Image, platform, secrets, shutil, signal, subprocess, tempfile, threading, typing, unicodedata, uuid, zipfile"
)


def system_folder(cache: Path) -> Path:
    """Where the system lies, set up or not."""
    key = sha256_json([_VERSION, emulator_setup.guest_folder(cache).name, sha256_file(INIT), list(_DRIVERS), _IMPORTS])
    return cache / "devices" / f"system-{key[:16]}"


def is_ready(cache: Path) -> bool:
    """Whether the system is set up."""
    return (system_folder(cache) / FILE_NAME).is_file()


def read(folder: Path) -> dict[str, Any]:
    """What a system is made of."""
    found: dict[str, Any] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    return found


def setup(cache: Path, on_step: Callable[[int, int, str], None] = lambda done, of, text: None) -> Path:
    """Make the system, unless it is there. The guest of user mode must be. Raises MissingDependencyError."""
    found = emulator_setup.tools((*emulator_setup.SETUP_TOOLS, "apt-cache", *TOOLS))
    folder, guest = system_folder(cache), emulator_setup.guest_folder(cache)
    with open_cache(cache).lock(folder.name):
        if not is_ready(cache):
            _make(folder, guest, found["mke2fs"], on_step)
    return folder


def _make(folder: Path, guest: Path, mke2fs: str, on_step: Callable[[int, int, str], None]) -> None:
    with publish_folder(folder) as aside:
        on_step(0, 3, "downloading a kernel for arm64")
        unpacked, kernel = _download(aside)
        (image,) = unpacked.glob("boot/vmlinuz-*")
        shutil.move(image, aside / "kernel")
        (aside / "initrd").write_bytes(archive(_boot_files(unpacked)))
        shutil.rmtree(unpacked)
        on_step(1, 3, "compiling what the engines import")
        root = _root(guest, aside / "guest")
        on_step(2, 3, "making a disk of it")
        make_image(root, aside / "root.ext4", mke2fs)
        shutil.rmtree(aside / "guest")
        write_json(aside / FILE_NAME, {"kernel": kernel, "disk_bytes": (aside / "root.ext4").stat().st_size})
        on_step(3, 3, "done")


def _download(aside: Path) -> tuple[Path, str]:
    """(the kernel's and the shell's packages, unpacked; the kernel's package with its version)."""
    state, unpacked = aside / "apt", aside / "unpacked"
    options = emulator_setup.package_state(state)
    said = run(["apt-cache", *options, "depends", _KERNEL], "looking for a kernel for arm64")
    match = re.search(r"Depends: (linux-image-\S+)", said)
    if match is None:
        raise MissingDependencyError(f"The packages for arm64 have no {_KERNEL}, as Debian's have.")
    run(["apt-get", *options, "download", match.group(1), _SHELL], "downloading a kernel for arm64", state)
    for package in state.glob("*.deb"):
        run(["dpkg-deb", "-x", str(package), str(unpacked)], "unpacking a package")
    shutil.rmtree(state)
    return unpacked, match.group(1).removeprefix("linux-image-")


def _boot_files(unpacked: Path) -> dict[str, bytes | None]:
    """What the initrd holds: name → content, None for a folder."""
    (modules,) = (unpacked / "lib" / "modules").iterdir()
    drivers = {path.stem: path for path in modules.rglob("virtio*.ko")}
    folders: dict[str, bytes | None] = dict.fromkeys(("dev", "proc", "sys", "guest", "drivers"))
    return {
        **folders,
        "init": INIT.read_bytes(),
        "busybox": (unpacked / "bin" / "busybox").read_bytes(),
        **{f"drivers/{name}.ko": drivers[name].read_bytes() for name in _DRIVERS},
    }


def archive(files: dict[str, bytes | None]) -> bytes:
    """A cpio archive as Linux unpacks it at its start."""
    made = bytearray()
    for number, (name, content) in enumerate([*files.items(), ("TRAILER!!!", b"")], start=1):
        mode = 0o040755 if content is None else 0o100755
        data = content or b""
        encoded = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        made += b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
        made += bytes(-len(made) % 4) + data
        made += bytes(-len(made) % 4)
    return bytes(made)


class _Compiling(emulator.Emulator):
    """User mode, in which Python keeps the bytecode that it makes."""

    def _environment(self) -> dict[str, str]:
        found = super()._environment()
        del found["PYTHONDONTWRITEBYTECODE"]
        return found


def _root(guest: Path, copy: Path) -> Path:
    """The file system of the guest: its files without a second copy of them, and the bytecode of `_IMPORTS`."""
    shutil.copytree(guest, copy, symlinks=True, copy_function=os.link)
    done = _Compiling("cortex-a72", copy).python(["-c", f"import {_IMPORTS}"])
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it gives no reason"]
        raise MissingDependencyError(f"Setting up the emulator, compiling: {said[-1]}")
    root = copy / "root"
    python = emulator_setup.read(guest)["python"]
    site = root / "usr" / "local" / "lib" / f"python{python}"
    site.mkdir(parents=True)
    (copy / "site-packages").rename(site / "dist-packages")
    (root / "python").symlink_to(f"usr/bin/python{python}")
    for name in ("dev", "proc", "sys", "mnt", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return root


def make_image(folder: Path, image: Path, mke2fs: str) -> None:
    """A file system image that holds what is in a folder. Raises MissingDependencyError."""
    sizes = [path.lstat().st_size for path in folder.rglob("*")]
    blocks = sum(-(-size // _BLOCK) + 1 for size in sizes)
    command: Sequence[str] = (
        mke2fs, "-q", "-t", "ext4", "-b", str(_BLOCK), "-m", "0", "-N", str(len(sizes) + 64), "-O", "^has_journal",
        "-d", str(folder), str(image), str(blocks + blocks // 16 + len(sizes) // 8 + 512),
    )  # fmt: skip
    run(command, f"making a disk of {folder}")
