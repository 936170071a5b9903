"""Benching a bundle on devices: have each run the steps, make the records."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import bundle as bundles
from toolkit import devices, tasks
from toolkit.bench import assembly
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted, planned
from toolkit.devices import Device, Settings
from toolkit.errors import InputError, ToolkitError
from toolkit.runner import Reporter, Silent
from toolkit.runtime import manifest as manifests
from toolkit.runtime.manifest import Manifest

_EXAMPLES = 64  # at most, of those that are given: every round runs all of them to warm up
_MOST = 2000  # that are read


def examples_of(manifest: Manifest, data: str | None, seed: int = 0, most: int = _EXAMPLES) -> tuple[list[Any], str]:
    """(examples as JSON that the bundle's pipeline can read, where they come from). Raises InputError."""
    if data is None:
        return [entry["input"] for entry in bundles.golden_of(manifest)], "the bundle's golden examples"
    path = Path(data)
    if not path.exists():
        raise InputError(f"Data file {path} does not exist.")
    found = tasks.get(manifest.task).examples_of(path, _MOST)
    if not found:
        raise InputError(f"{path} holds no examples.")
    if len(found) > most:
        chosen = sorted(np.random.default_rng(seed).permutation(len(found))[:most])
        found = [found[int(place)] for place in chosen]
    return found, path.name


def read_bundle(folder: Path) -> Manifest:
    """The manifest of a whole bundle. Raises InputError."""
    manifest = manifests.read(folder)
    manifests.verify_files(manifest)
    return manifest


def bench(
    bundle: str,
    addresses: Sequence[str] = (devices.LOCAL,),
    wanted: Wanted | None = None,
    settings: Settings | None = None,
    reporter: Reporter | None = None,
) -> list[Record]:
    """Measure a bundle on devices and return a record for each, in their order.

    Devices that take this machine's processors are used one after the other, all others side by side. What was measured
    before something failed is in the record, with its `failure`. Raises InputError for a damaged bundle or an address
    that is none, MissingDependencyError for a device that is not reached; what keeps a device from running anything at
    all is raised if there is no other device, whose record would be lost.
    """
    wanted, reporter = wanted or Wanted(), reporter or Silent()
    manifest = read_bundle(Path(bundle))
    examples, origin = examples_of(manifest, wanted.data, wanted.seed)
    with contextlib.ExitStack() as stack:
        settings = settings or Settings(cache=Path(stack.enter_context(tempfile.TemporaryDirectory())))
        reached = stack.enter_context(connected(addresses, settings))

        def one(device: Device) -> Record | ToolkitError:
            try:
                return _bench(device, manifest, examples, origin, wanted, settings, reporter)
            except ToolkitError as error:
                return error

        with ThreadPoolExecutor(max_workers=max(1, len(reached))) as pool:
            away = {device.address: pool.submit(one, device) for device in reached if not device.here}
            try:
                here = {device.address: one(device) for device in reached if device.here}
                found = [away[d.address].result() if d.address in away else here[d.address] for d in reached]
            except BaseException:
                for device in reached:  # ends what still runs elsewhere: its thread is waited for
                    device.close()
                raise
        errors = [each for each in found if isinstance(each, ToolkitError)]
        if len(errors) == len(found):
            raise errors[0]
        protocol = assembly.protocol_of(wanted, settings, manifest, len(examples), origin)
        return [
            assembly.failed(device, manifest, protocol, each) if isinstance(each, ToolkitError) else each
            for device, each in zip(reached, found, strict=True)
        ]


@contextlib.contextmanager
def connected(addresses: Sequence[str], settings: Settings) -> Iterator[list[Device]]:
    """The devices at addresses, which are left at the end of the block."""
    with contextlib.ExitStack() as stack:
        reached = []
        for address in dict.fromkeys(addresses):
            device = devices.connect(address, settings)
            stack.callback(device.close)
            reached.append(device)
        yield reached


def _bench(
    device: Device,
    manifest: Manifest,
    examples: list[Any],
    origin: str,
    wanted: Wanted,
    settings: Settings,
    reporter: Reporter,
) -> Record:
    """One record."""
    title = f"bench {manifest.folder.name} on {device.address}"
    reporter.started(title)
    try:
        place = device.push(manifest.folder, "bundle")
        steps = [step for step in planned(manifest, place, examples, wanted, settings) if step["what"] in device.steps]
        if not steps:
            raise InputError(f"{device.address} can do nothing of what is wanted.")
        outcome = device.run(steps, lambda done, total, text: reporter.progress(title, done, total, text))
        facts = device.describe()
    except BaseException as error:
        reporter.failed(title, str(error))
        raise
    protocol = assembly.protocol_of(wanted, settings, manifest, len(examples), origin)
    return assembly.assembled(device, facts, manifest, protocol, steps, outcome, wanted)
