"""A device behind adb: a real adbd of Debian's for arm64, under QEMU's user mode, in namespaces of its own.

Its shell is mksh and its programs are toybox's, as those of an Android; there is no Android around them. adb and its
server run in the same network namespace, so that no other server and no other device has to do with it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sshd import children
from toolkit.devices import emulator, emulator_setup
from toolkit.errors import MissingDependencyError

CPU = "cortex-a76"
PORT = 16555  # adb takes those about 5555 for emulators
SERIAL = f"127.0.0.1:{PORT}"
ADDRESS = f"adb://{SERIAL}"
_SUITE = "trixie"
_PACKAGES = ("adbd", "mksh", "toybox", "libstdc++6")
_PROGRAMS = (
    "cat chmod date df dd find grep head ls mkdir mktemp od printf readlink rm rmdir sha256sum sleep stat tail taskset "
    "uname"
)
_QEMU = shutil.which(emulator_setup.QEMU)  # which the kernel starts for each of the device's programs
_WAIT_SECONDS = 20
_PROGRAM = Path(__file__).with_name("adbd_namespace.py")


class Adbd:
    """A device that is plugged in. `tmp` is its /data/local/tmp as it is seen from here, `bin` a folder in which its
    shell looks for programs first."""

    def __init__(self, folder: Path, root: Path, view: Path) -> None:
        self._folder = folder
        self._holder = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child",
             "--mount-proc", sys.executable, "-I", str(_PROGRAM), str(root), str(view), CPU, str(PORT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(folder / "log").open("wb"), text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline().strip() != "ready":
            self.close()
            said = (folder / "log").read_text().strip().splitlines() or ["no reason is given"]
            pytest.skip(f"no adbd can be run here: {said[-1]}")
        self.process = children(self._holder.pid)[0]
        seen = Path(f"/proc/{self.process}/root{root}/data/local")
        self.tmp, self.bin = seen / "tmp", seen / "bin"
        self.adb = folder / "bin" / "adb"
        self.adb.parent.mkdir()
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        enter = " ".join(["nsenter", "--target", str(self.process), "--net", *user, "--"])
        self.adb.write_text(
            f'#!/bin/sh\nexport HOME="{folder}" TMPDIR="{folder}" ADB_MDNS_OPENSCREEN=0\n'
            f'exec {enter} {shutil.which("adb")} "$@"\n'
        )
        self.adb.chmod(0o755)

    def plug(self) -> None:
        """Start adbd and connect to it."""
        self._tell("start")
        deadline = time.monotonic() + _WAIT_SECONDS
        while "connected to" not in (said := self.call("connect", SERIAL)) or self.call("get-state") != "device":
            assert time.monotonic() < deadline, said

    def unplug(self) -> None:
        """End adbd, as if the cable was pulled."""
        self._tell("stop")

    def call(self, *arguments: str) -> str:
        """What adb says."""
        done = subprocess.run([self.adb, *arguments], capture_output=True, text=True, timeout=60, check=False)
        return (done.stdout + done.stderr).strip()

    def left(self) -> list[str]:
        """What lies where programs and files are brought."""
        return sorted(path.name for path in self.tmp.iterdir())

    def running(self, command: str = "program/") -> list[int]:
        """The processes of the device, as this machine numbers them, whose command begins so."""
        found, known = [], [self.process]
        for parent in known:
            known += children(parent)
        for process in known:
            with contextlib.suppress(OSError):
                said = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if said.removeprefix(f"{_QEMU} ").startswith(command):
                    found.append(process)
        return found

    def _tell(self, what: str) -> None:
        assert self._holder.stdin is not None
        assert self._holder.stdout is not None
        print(what, file=self._holder.stdin, flush=True)
        assert self._holder.stdout.readline().strip() == what, (self._folder / "log").read_text()

    def close(self) -> None:
        """Everything ends."""
        if hasattr(self, "adb"):
            self.call("kill-server")
        for process in children(self._holder.pid):
            os.kill(process, 9)
        self._holder.wait()
        for stream in (self._holder.stdin, self._holder.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def plugged(folder: Path, cache: Path) -> Iterator[Adbd]:
    """A device for the time of a block. The test is skipped where there cannot be one."""
    needed = {"adb": "adb", "unshare": "util-linux", "nsenter": "util-linux"}
    missing = [package for program, package in needed.items() if shutil.which(program) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    try:
        emulator_setup.tools()
        root = _root(cache)
        emulator_setup.setup(cache)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    (folder / "view").mkdir(parents=True)
    emulator.user_mode(CPU, cache)._view(folder / "view")
    device = Adbd(folder, root, folder / "view")
    try:
        device.plug()
        yield device
    finally:
        device.close()


def _root(cache: Path) -> Path:
    """The device's files: packages of Debian for arm64, unpacked, made once. Raises MissingDependencyError."""
    folder = cache / f"adbd-{_SUITE}"
    cache.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:  # tests run side by side
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder)
            (folder / "complete").touch()
    return folder


def _make(folder: Path) -> None:
    apt, usr = folder / "apt", folder / "usr"
    for name in ("state/lists/partial", "cache/archives/partial", "sources"):
        (apt / name).mkdir(parents=True)
    (apt / "status").touch()
    listing = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"]
    sources = emulator_setup.run(listing, "reading the package sources").splitlines()
    mirror = next((line.split()[0] for line in sources if line.rstrip().endswith("/debian/ main")), None)
    if mirror is None:
        raise MissingDependencyError("This machine has no Debian mirror among its package sources.")
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources" / "one.list").write_text(f"deb [signed-by={keys}] {mirror} {_SUITE} main\n")
    values = {
        "APT::Architecture": "arm64", "APT::Architectures": "arm64", "Dir::State": f"{apt}/state",
        "Dir::State::status": f"{apt}/status", "Dir::Cache": f"{apt}/cache", "Dir::Etc::sourcelist": "/dev/null",
        "Dir::Etc::sourceparts": f"{apt}/sources", "APT::Sandbox::User": "", "Acquire::Languages": "none",
    }  # fmt: skip
    call = ["apt-get", "-qq", *(part for key, value in values.items() for part in ("-o", f"{key}={value}"))]
    emulator_setup.run([*call, "update"], "reading the package lists for a device")
    install = ["install", "-y", "--no-install-recommends", "--download-only", *_PACKAGES]
    emulator_setup.run([*call, *install], "downloading packages for a device")
    for name in ("lib", "bin", "sbin"):
        (usr / name).mkdir(parents=True)
        (folder / name).symlink_to(f"usr/{name}")
    for archive in (apt / "cache" / "archives").glob("*.deb"):
        emulator_setup.run(["dpkg-deb", "-x", str(archive), str(folder)], "unpacking a package")
    shutil.rmtree(apt)
    # Where this machine's files for QEMU itself and the device's own go; the shell where Android has it.
    for name in ("proc", "sys", "dev", "data/local", "lib64", "usr/lib/x86_64-linux-gnu", "system/bin"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for place in ("system/bin/sh", "usr/bin/sh"):
        (folder / place).symlink_to("/usr/bin/mksh")
    for name in _PROGRAMS.split():
        (usr / "bin" / name).unlink(missing_ok=True)
        (usr / "bin" / name).symlink_to("toybox")
