"""Bundles on every kind of device that is at hand: one table.

    toolkit devices setup emulator --system && toolkit devices setup browser
    python benchmarks/devices.py BUNDLE … --device local --device 'browser://chromium?threads=2' --device ssh://…

Without `--device` all kinds that need no address are taken, and with `--servers` those that the tests start: an sshd on
the loopback, one whose Python is that of an emulated Cortex-A76, and an adbd on another. A bundle that a device cannot
run has its reason in the table. Writes `benchmarks/devices.md` and the records to `benchmarks/results/devices.json`.
Every row says whether it is measured, emulated or estimated.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from toolkit.bench import run, text
from toolkit.bench.record import Record
from toolkit.bench.steps import Wanted
from toolkit.cache import open_cache
from toolkit.devices import Settings, emulator_setup
from toolkit.errors import ToolkitError
from toolkit.storage import write_atomic, write_json

HERE = Path(__file__).parent
COMMAND = "python benchmarks/devices.py BUNDLE … --servers"
DEVICES = (
    "local",
    "gpu://0",
    "emulator://cortex-a53",
    "emulator://cortex-a72",
    "emulator://cortex-a76",
    "emulator://cortex-a76?mode=system",
    "browser://chromium",
    "browser://chromium?threads=2",
    "browser://chromium?throttle=4",
    "browser://chromium?backend=webgpu",
    "mcu://cortex-m",
    "mcu://ethos-u55-128",
)
HEAD = ("bundle", "engine", "device", "kind", "p50", "start", "peak memory", "count or arena", "answers")


def measured(bundle: str, address: str, wanted: Wanted, settings: Settings) -> tuple[Record | None, str]:
    """(the record, "") or (None, why there is none). Reasons name the bundle, not where it lies."""
    try:
        (record,) = run.bench(bundle, [address], wanted, settings)
    except ToolkitError as error:
        return None, _named(str(error), bundle)
    if record.failure is None:
        return record, ""
    record.failure.error = _named(record.failure.error, bundle)
    return record, record.failure.error


def _named(reason: str, bundle: str) -> str:
    return reason.splitlines()[0].replace(bundle.rstrip("/"), Path(bundle).name)


@contextlib.contextmanager
def servers(settings: Settings) -> Iterator[dict[str, tuple[str, str, Settings]]]:
    """The tests' servers for the time of a block: what to call them, their addresses, and how they are reached."""
    sys.path.insert(0, str(HERE.parent))
    from tests import adbd, sshd

    path = os.environ["PATH"]
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (work / "arm").mkdir()
        here = stack.enter_context(sshd.serving(work / "ssh"))
        arm = stack.enter_context(sshd.serving_arm(work / "arm", settings.cache))
        phone = stack.enter_context(adbd.plugged(work / "adb", settings.cache))
        os.environ["PATH"] = f"{phone.adb.parent}:{path}"
        library = emulator_setup.guest_folder(settings.cache) / "site-packages"
        try:
            yield {
                "x86": ("ssh:// (x86-64, loopback)", here.address, replace(settings, ssh_config=here.config)),
                "arm": ("ssh:// (Cortex-A76, emulated)", arm.address, replace(settings, ssh_config=arm.config)),
                "adb": ("adb:// (Cortex-A76, emulated)", adbd.ADDRESS, replace(settings, library=library)),
            }
        finally:
            os.environ["PATH"] = path


def row(bundle: str, device: str, record: Record | None, why: str) -> tuple[str, ...]:
    """A line of the table, under `HEAD`."""
    if record is None:
        return (Path(bundle).name, "", device, "", "", "", "", "", why)
    unit = "virtual ms" if "virtual" in record.clock else "ms"
    p50 = f"{record.latency.p50_ms} {unit}" if record.latency else ""
    start = record.cold_start or record.warm_start
    counted = f"{record.instructions['total'] / 1e6:.2f} M instructions" if record.instructions else ""
    if record.arena:
        counted = f"arena {record.arena['total_bytes']:,} bytes"
    if record.cycles:
        counted += f", {record.cycles['total']:,.0f} cycles"
    answers = ""
    if record.answers:
        answers = "bit-exact" if record.answers["bit_exact"] else f"{record.answers['largest_difference']:.1e} apart"
    whole = f"{start.process_ms + start.load_ms + start.first_inference_ms:.0f} {unit}" if start else ""
    peak = text.megabytes(record.memory.peak_rss_bytes) if record.memory else ""
    engine = f"{record.bundle.engine} {record.bundle.precision}"
    return (record.bundle.name, engine, device, record.kind, p50, whole, peak, counted, why or answers)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--device", action="append", dest="devices")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--servers", action="store_true")
    parser.add_argument("--ssh-config", type=Path)
    parser.add_argument("--output", type=Path, default=HERE / "devices.md")
    given = parser.parse_args()
    settings = Settings(open_cache(None).folder, ssh_config=given.ssh_config)
    wanted = Wanted(seconds=given.seconds)
    rows: list[tuple[str, ...]] = []
    records: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        reached = {address: ("", address, settings) for address in given.devices or DEVICES}
        if given.servers:
            reached |= stack.enter_context(servers(settings))
        for what, address, chosen in reached.values():
            for bundle in given.bundles:
                record, why = measured(bundle, address, wanted, chosen)
                rows.append(row(bundle, what or address, record, why))
                print(" | ".join(rows[-1]), flush=True)
                if record is not None:
                    records.append(record.model_dump(mode="json"))
    lines = [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD), *(f"| {' | '.join(each)} |" for each in rows)]
    title = (
        f"# Every kind of device\n\n`{COMMAND}`, times with 95 % intervals. Answers are compared\n"
        "with those of this machine's engine. What is emulated or estimated is no time of a real device.\n\n"
    )
    write_atomic(given.output, (title + "\n".join(lines) + "\n"))
    write_json(HERE / "results" / "devices.json", {"command": COMMAND, "records": records})


if __name__ == "__main__":
    main()
