"""Devices: places where a bundle runs. One file per kind, with the same few names.

    SCHEME                                      what its addresses begin with; "local" is an address by itself
    connect(address, settings) -> Device        reach it; what is wrong with the address or the device is told here

A device is asked to `describe` itself, given files by `push`, made to `run` the steps of a benchmark, asked for what it
wrote by `pull`, and left by `close`, which removes what was put there. What the steps are and what they give is in
`toolkit.bench.measure`; a device that cannot do one of them does not name it among its `steps`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from toolkit.errors import InputError

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """What a user can say of how devices are used. `cores` are the numbers of those to run on; `cache` is a folder of
    this machine where what a device needs is kept."""

    cache: Path
    cores: tuple[int, ...] = ()
    memory_bytes: int | None = None
    timeout_seconds: float | None = None  # of one step
    keep: bool = False  # leave on the device what was put there
    python: str | None = None  # of a device behind ssh
    wheels: Path | None = None  # a folder of those that a device behind ssh may need
    ssh_config: Path | None = None
    runner: Path | None = None  # a program of the user's for a device without Python
    library: Path | None = None  # of the engine, for such a device, or an archive or a folder that holds it
    compiler: str | None = None  # of what runs on such a device
    checkpoint: Path | None = None  # that a bundle was made from, for PyTorch on a GPU

    @property
    def limits(self) -> dict[str, Any]:
        """The limits of a request to `toolkit.bench.runner`."""
        given = {"cores": list(self.cores) or None, "memory_bytes": self.memory_bytes}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class Outcome:
    """What running a request gave: a result per step, None for those that were not reached; how it failed, if it did
    (`kind`, `error`, `exit_code`); the state of the device before and after; what else ran on it."""

    results: list[dict[str, Any] | None]
    failed: dict[str, Any] | None = None
    conditions: dict[str, Any] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)


class Device(Protocol):
    """A place that was reached."""

    address: str
    kind: Literal["measured", "emulated", "estimated"]  # of what it gives
    clock: str
    here: bool  # it takes this machine's processors, so that nothing else of the kind may run at the time
    steps: frozenset[str]

    def describe(self) -> dict[str, Any]:
        """What it is: hardware, system, versions of the engines. The same device describes itself in the same way."""

    def push(self, source: Path, name: str) -> str:
        """Bring a folder there, as far as it is not there already; its path there. Raises InputError."""

    def run(self, steps: list[dict[str, Any]], progress: Progress) -> Outcome:
        """Run the steps of a benchmark. What ended before something failed is in the outcome."""

    def pull(self, name: str) -> bytes:
        """A file that a run wrote. Raises InputError if there is none."""

    def close(self) -> None:
        """Leave it; what was put there is removed, unless it is to be kept."""


class DeviceModule(Protocol):
    """What every file of a kind of devices offers."""

    SCHEME: str

    def connect(self, address: str, settings: Settings) -> Device: ...


LOCAL = "local"
# Adding a kind of devices: one file in this folder and one line here.
_MODULES: Mapping[str, str] = {
    LOCAL: "toolkit.devices.local",
    "emulator": "toolkit.devices.emulator",
    "browser": "toolkit.devices.browser",
    "ssh": "toolkit.devices.ssh",
    "adb": "toolkit.devices.adb",
    "mcu": "toolkit.devices.mcu",
    "gpu": "toolkit.devices.gpu",
}


def schemes() -> list[str]:
    """What addresses begin with."""
    return [scheme if scheme == LOCAL else f"{scheme}://" for scheme in _MODULES]


def connect(address: str, settings: Settings) -> Device:
    """Reach the device at an address. Raises InputError for one that is none, MissingDependencyError if it is not
    reached or something is missing here."""
    scheme = address.partition("://")[0]
    if scheme not in _MODULES or (scheme == LOCAL) != (address == LOCAL):
        raise InputError(f"'{address}' is no device; an address begins with {', '.join(schemes())}.")
    module = cast(DeviceModule, importlib.import_module(_MODULES[scheme]))
    return module.connect(address, settings)
