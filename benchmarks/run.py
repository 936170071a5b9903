"""The suite whose results are followed over time: one command, one record per bundle and device.

    python benchmarks/run.py [--seconds 20] [--device local] [--output FOLDER]
    toolkit report --history benchmarks/results/records -o history.html

The demo's MiniLM after one epoch, in fp32 and int8, for LiteRT and for ONNX Runtime. Records are written to
`FOLDER/FINGERPRINT/ENGINE-PRECISION.json` and replace those of the last run: commit them, and their history is git's.
Those of other devices stay apart by their fingerprints.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from toolkit import conversion
from toolkit.bench import run
from toolkit.bench.steps import Wanted
from toolkit.cache import open_cache
from toolkit.cli.output import reporting
from toolkit.devices import Settings, local
from toolkit.storage import write_json

BUILDS = [(engine, precision) for engine in ("litert", "onnxruntime") for precision in ("fp32", "int8")]
# A profile of one build, so that no gate chooses another one from one day to the next.
PROFILE = """\
schema_version: 1
name: {name}
title: This machine with {name} alone
kind: board
cpu: {{model: any, architecture: {architecture}, isa: [], cores: 1}}
engines:
  - {{name: {engine}, precisions: [{precision}]}}
sources:
  - {{covers: [cpu], source: this machine, confidence: read}}
"""


def bundle(engine: str, precision: str, folder: Path) -> Path:
    """The bundle of a build; its stages come from the cache where they are known."""
    name = f"{engine}-{precision}"
    profile = folder / f"{name}.yaml"
    text = PROFILE.format(name=name, engine=engine, precision=precision, architecture=local.architecture())
    profile.write_text(text, encoding="utf-8")
    with reporting(False) as reporter:
        made = conversion.convert(
            "demo", str(profile), output=str(folder / name), epochs=1, min_score="0", reporter=reporter
        )
    return made.path


def main() -> None:
    """Convert, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--device", action="append", default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "records")
    arguments = parser.parse_args()

    settings = Settings(cache=open_cache(None).folder)
    with tempfile.TemporaryDirectory() as work:
        for engine, precision in BUILDS:
            made = bundle(engine, precision, Path(work))
            with reporting(False) as reporter:
                wanted = Wanted(seconds=arguments.seconds)
                records = run.bench(str(made), arguments.device or ["local"], wanted, settings, reporter)
            for record in records:
                folder = arguments.output / record.device.fingerprint
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / f"{made.name}.json", record.model_dump(mode="json"))
                said = f"{record.latency.p50_ms} ms" if record.latency else "no latency"
                print(f"{made.name} on {record.device.title}: {said}")


if __name__ == "__main__":
    main()
