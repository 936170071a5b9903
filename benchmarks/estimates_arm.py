"""Estimates for Arm targets against the instructions that emulated CPUs of theirs take.

    toolkit devices setup emulator
    python benchmarks/estimates_arm.py

The models are those of `benchmarks/estimates.py` with random weights, in float and in int8, through ONNX Runtime and
LiteRT, on one core. A count is no time, so what is compared is the order of things: for each CPU one factor turns
estimated milliseconds into instructions, the median over all cases, and what is told is how far the single cases lie
from it. Writes a record to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import estimates
from estimates import Case

from toolkit import estimate
from toolkit.cache import open_cache
from toolkit.devices import emulator
from toolkit.runner import library_versions
from toolkit.storage import write_json

# The emulated CPU and the profile of a board that has it.
BOARDS = {"cortex-a53": "imx8mp", "cortex-a72": "raspberry-pi-4", "cortex-a76": "raspberry-pi-5"}
TOKENS = 64


def row(case: Case, device: emulator.Emulator, profile: str) -> dict[str, Any] | None:
    """A case's instructions and its estimate; None if the profile does not have its engine."""
    target = estimates.like(profile, 1, [])
    if case.engine not in [engine.name for engine in target.engines]:
        return None
    engine, operations = target.engine(case.engine), case.operations()
    found = estimate.latency(target, engine, case.precision, operations)
    counted = device.count(case.engine, case.path, [estimates.named(case)], runs=1)[0].instructions
    return {
        "case": case.name,
        "multiply_adds": sum(each.multiply_adds for each in operations),
        "instructions": counted,
        "estimate_ms": None if found is None else round(found.ms, 4),
    }


def with_factors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of a CPU, each with its distance from the common factor, and how far they lie in the median and at
    worst."""
    known = [each for each in rows if each["estimate_ms"]]
    rates = [each["instructions"]["total"] / each["estimate_ms"] for each in known]
    common = statistics.median(rates)
    for each, rate in zip(known, rates, strict=True):
        each["off"] = round(max(rate / common, common / rate), 2)
    off = sorted(each["off"] for each in known)
    return {
        "cases": len(known),
        "instructions_per_ms": round(common),
        "median_factor_off": statistics.median(off),
        "worst_factor_off": off[-1],
        "rows": rows,
    }


def main() -> None:
    """Count, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpus", nargs="+", choices=list(BOARDS), default=list(BOARDS))
    parser.add_argument("--work", help="keep the models here")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "estimates_arm.json")
    given = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(given.work or folder)
        work.mkdir(exist_ok=True)
        every = estimates.cases(work, argparse.Namespace(vad=None, paraphrase=None))
        chosen = [case for case in every if case.sizes.get("length", TOKENS) == TOKENS]
        for cpu in given.cpus:
            device = emulator.user_mode(cpu, open_cache(None).folder)
            rows = []
            for case in chosen:
                found = row(case, device, BOARDS[cpu])
                if found is not None:
                    print(
                        f"{cpu} {case.name:50} {found['instructions']['total'] / 1e6:9.2f} M instructions, "
                        f"estimate {found['estimate_ms']} ms",
                        flush=True,
                    )
                    rows.append(found)
            runs.append({"cpu": cpu, "profile": BOARDS[cpu], "device": device.describe(), **with_factors(rows)})
            print(
                f"{cpu}: {runs[-1]['cases']} cases, off by {runs[-1]['median_factor_off']} in the median, "
                f"{runs[-1]['worst_factor_off']} at worst"
            )
    command = "python benchmarks/estimates_arm.py"
    versions = library_versions(estimates.LIBRARIES)
    write_json(given.output, {"command": command, "kind": "emulated", "versions": versions, "runs": runs})


if __name__ == "__main__":
    main()
