"""Vela, Arm's compiler for Ethos-U NPUs, asked for its estimate of a file: cycles, memory, and where operators go.

It runs in a process of its own, in a temporary folder that takes what it writes.
"""

from __future__ import annotations

import configparser
import csv
import subprocess
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from toolkit.errors import InputError

PACKAGE = "ethos-u-vela"
_CONFIGURATION = "Arm/vela.ini"  # as Vela names it
_SECONDS = 300
_MEMORIES = ("sram", "dram", "on_chip_flash", "off_chip_flash")


def version() -> str:
    """`Vela 5.2.0`."""
    return f"Vela {metadata.version(PACKAGE)}"


def check(system: str, memory: str) -> None:
    """Raises InputError for a name of a configuration that Vela does not bring."""
    known = configparser.ConfigParser()
    file = resources.files("ethosu") / "config_files" / "Arm" / "vela.ini"
    known.read_string(file.read_text(encoding="utf-8"))
    for kind, section, name in (("system", "System_Config.", system), ("memory", "Memory_Mode.", memory)):
        names = [each.removeprefix(section) for each in known.sections() if each.startswith(section)]
        if name not in names:
            raise InputError(f"{version()} knows no {kind}={name}; it knows {', '.join(names)}.")


def estimate(model: Path, accelerator: str, system: str, memory: str) -> dict[str, Any]:
    """What Vela expects of one inference. Raises InputError if it does not take the file."""
    with tempfile.TemporaryDirectory(prefix="toolkit-vela-") as work:
        command = [
            sys.executable, "-m", "ethosu.vela", str(model.resolve()), "--output-dir", work,
            "--accelerator-config", accelerator, "--config", _CONFIGURATION, "--system-config", system,
            "--memory-mode", memory, "--verbose-performance",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS, cwd=work)
        except subprocess.TimeoutExpired as error:
            raise InputError(f"{version()} did not end within {_SECONDS} s on {model}.") from error
        summary = Path(work) / f"{model.stem}_summary_{system}.csv"
        layers = Path(work) / f"{model.stem}_per-layer.csv"
        if done.returncode or not summary.is_file():
            said = (done.stderr or done.stdout).strip().splitlines() or [f"it ended with code {done.returncode}"]
            raise InputError(f"{version()} does not take {model} for {accelerator}: {said[-1].strip()}")
        with summary.open(newline="", encoding="utf-8") as stream:
            (row,) = csv.DictReader(stream)
        operators = _operators(layers.read_text(encoding="utf-8")) if layers.is_file() else []
    hertz, total = float(row["core_clock"]), int(float(row["cycles_total"]))
    return {
        "by": f"estimate of {version()}",
        "accelerator": accelerator,
        "system": row["system_config"],
        "memory": row["memory_mode"],
        "clock_hz": hertz,
        "total": total,
        "npu": int(float(row["cycles_npu"])),
        "access": {name: int(float(row[f"cycles_{name}_access"])) for name in _MEMORIES},
        "ms": round(total / hertz * 1e3, 6),
        "memory_bytes": {name: round(float(row[f"{name}_memory_used"]) * 1024) for name in _MEMORIES},
        "weights_bytes": int(float(row["total_original_weights"])),
        "encoded_weights_bytes": int(float(row["total_npu_encoded_weights"])),
        "macs": int(float(row["nn_macs"])),
        "operators": operators,
    }


def _operators(table: str) -> list[dict[str, Any]]:
    """The rows of Vela's table of operators, whose last column is a name that may hold commas. What the CPU runs has
    no cycles: Vela does not know them."""
    head, *rows = table.splitlines()
    columns = head.split(",")
    found = []
    for line in rows:
        row = dict(zip(columns, line.split(",", len(columns) - 1), strict=True))
        on_npu = row["Target"] == "NPU"
        found.append(
            {
                "name": row["Name"],
                "kind": row["Original Operator"],
                "runs_as": row["NNG Operator"],
                "where": "npu" if on_npu else "cpu",
                "cycles": int(row["Op Cycles"]) if on_npu else None,
                "macs": int(row["MAC Count"]) if on_npu else None,
            }
        )
    return found
