"""A real sshd on the loopback, with keys of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from toolkit.devices import emulator, emulator_setup

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


class Sshd:
    """A server whose commands find programs of `bin` first and make their folders in `temporary`."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        if SSHD is None:
            pytest.skip("openssh-server is not installed")
        self.folder = folder
        self.temporary, self.bin = folder / "temporary", folder / "bin"
        self.temporary.mkdir(parents=True)
        self.bin.mkdir()
        self.config, self.known_hosts = folder / "config", folder / "known_hosts"  # of the client
        host_key, key = keygen(folder / "host_key"), keygen(folder / "key")
        shutil.copy(key.with_suffix(".pub"), folder / "authorized_keys")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}"
        given = {
            "HOME": str(folder),  # where no shell has start-up files, which could set another PATH
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
            "TMPDIR": str(self.temporary),
            **environ,
        }
        (folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {folder / 'authorized_keys'}\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            f"SetEnv {' '.join(f'{name}={value}' for name, value in given.items())}\n"
        )
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {host_key.with_suffix('.pub').read_text()}")
        self.config.write_text(f"Host *\n  IdentityFile {key}\n  UserKnownHostsFile {self.known_hosts}\n")
        self.start()

    def start(self) -> None:
        """Until it answers; it binds its port some milliseconds after it starts."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, run as root, shuts its children in
        assert SSHD is not None
        log = self.folder / "log"
        self._server = subprocess.Popen([SSHD, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(log)])
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            assert self._server.poll() is None, log.read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
        raise AssertionError(log.read_text())

    def stop(self) -> None:
        """As if the cable was cut: the server and all its connections end, what they started does not."""
        sessions = children(self._server.pid)
        self._server.kill()
        self._server.wait()
        for process in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def python(self, command: str) -> None:
        """What `python3` is for its commands."""
        script = self.bin / "python3"
        script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        script.chmod(0o755)

    def left(self) -> list[str]:
        """What lies where commands make their folders."""
        return sorted(path.name for path in self.temporary.iterdir())


def keygen(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def children(parent: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


@contextlib.contextmanager
def serving(folder: Path, **environ: str) -> Iterator[Sshd]:
    """A server for the time of a block, whose python3 is this one. `environ` is of its commands."""
    server = Sshd(folder, environ)
    server.python(f'"{sys.executable}"')
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def serving_arm(folder: Path, cache: Path) -> Iterator[Sshd]:
    """A server whose python3 is that of an emulated Cortex-A76, with all that it starts. Raises MissingDependencyError
    where none can be emulated."""
    guest = emulator_setup.setup(cache)
    cpu = emulator.user_mode("cortex-a76", cache)
    (folder / "view").mkdir()
    cpu._view(folder / "view")
    with serving(folder / "ssh") as server:
        (server.bin / "python3").write_text(
            f'#!/bin/sh\nexport QEMU_CPU=cortex-a76 QEMU_LD_PREFIX="{folder}/view" PYTHONHOME="{guest}/root/usr"\n'
            f'export PYTHONPATH="$PYTHONPATH${{PYTHONPATH:+:}}{guest}/site-packages"\n'
            f'exec {emulator_setup.QEMU} -0 "$0" "{cpu._python()}" "$@"\n'
        )
        yield server
