"""What ten `kill -9` cost a conversion of a fine-tuned checkpoint: which finished stages are repeated (none should be),
and whether the bundle is the one that an undisturbed run writes.

    python benchmarks/kill_resume.py CHECKPOINT DATA [--kills 10] [--seed 0] [--keep FOLDER]

Prints a table and writes benchmarks/results/kill_resume.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "kill_resume.json"
sys.path.insert(0, str(ROOT))

from toolkit import bundle as bundles  # noqa: E402
from toolkit.devices import local  # noqa: E402
from toolkit.storage import sha256_file, sha256_folder, write_json  # noqa: E402


def start(checkpoint: Path, data: Path, cache: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [
        sys.executable, "-m", "toolkit", "convert", checkpoint, "--data", data, "--cache-dir", cache, "-o", output,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOOLKIT_CACHE": str(cache)}
    with (cache.parent / "log.txt").open("ab") as log:
        return subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)


def finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait() != 0:
        sys.exit(f"The conversion ended with code {process.returncode}; see {folder / 'log.txt'}.")


def stages(cache: Path) -> dict[str, tuple[str, int]]:
    """Key → title and time of the receipt of every finished stage. Exits if an entry is not whole."""
    found = {}
    for entry in (cache / "stages").glob("*"):
        receipt = json.loads((entry / "receipt.json").read_text(encoding="utf-8"))
        if sha256_folder(entry / "output") != receipt["output_sha256"]:
            sys.exit(f"{entry} is not what its receipt says.")
        found[entry.name] = (receipt["title"], (entry / "receipt.json").stat().st_mtime_ns)
    return found


def left_running(cache: Path) -> int:
    """Processes whose environment still names the cache, two seconds after the kill."""
    time.sleep(2)
    count = 0
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it may end while it is looked at
            count += f"TOOLKIT_CACHE={cache}\0".encode() in path.read_bytes()
    return count


def describe(bundle: Path) -> dict[str, Any]:
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    return {
        "chosen": manifest["metrics"]["chosen"],
        "content_hash": manifest["content_hash"],
        "model_sha256": sha256_file(bundle / manifest["artifact"]["path"]),
        "verify_failures": bundles.verify(bundle)["failures"],
    }


def experiment(checkpoint: Path, data: Path, kills: int, seed: int, folder: Path) -> dict[str, Any]:
    for name in ("undisturbed", "killed"):
        (folder / name).mkdir(parents=True)
    began = time.monotonic()
    calm = folder / "undisturbed"
    finish(start(checkpoint, data, calm / "cache", calm / "bundle"), calm)
    seconds = time.monotonic() - began
    cache, output = folder / "killed" / "cache-1", folder / "killed" / "bundle"
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    before: dict[str, tuple[str, int]] = {}
    bundles_after_kills = []
    while len(rows) < kills:
        process = start(checkpoint, data, cache, output)
        delay = draw.uniform(0.05, 0.7) * seconds
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:  # through before all kills were made: the rest are made on the way of another conversion
            finish(process, output.parent)
            bundles_after_kills.append(describe(output))
            shutil.rmtree(output)
            cache, before = output.parent / f"cache-{len(bundles_after_kills) + 1}", {}
            continue
        running = left_running(cache)
        after = stages(cache)
        rows.append(
            {
                "kill": len(rows) + 1,
                "conversion": len(bundles_after_kills) + 1,
                "seconds_into_the_run": round(delay, 2),
                "stages_finished_before": len(before),
                "stages_finished_after": len(after),
                "stages_repeated": [title for key, (title, at) in before.items() if after.get(key) != (title, at)],
                "processes_left": running,
                "output_left": output.exists() or any(p.name.startswith(".") for p in output.parent.iterdir()),
            }
        )
        before = after
        print_row(rows[-1])
    finish(start(checkpoint, data, cache, output), output.parent)
    after = stages(cache)
    bundles_after_kills.append(describe(output))
    return {
        "checkpoint": checkpoint.name,
        "examples": sum(1 for _ in data.open(encoding="utf-8")),
        "seed": seed,
        "device": local.describe(),
        "undisturbed_seconds": round(seconds, 1),
        "kills": rows,
        "stages_repeated_by_the_last_run": [t for key, (t, at) in before.items() if after.get(key) != (t, at)],
        "undisturbed": describe(calm / "bundle"),
        "after_kills": bundles_after_kills,
    }


def print_row(row: dict[str, Any]) -> None:
    repeated = ", ".join(row["stages_repeated"]) or "none"
    print(
        f"{row['kill']:>4}  {row['conversion']:>10}  {row['seconds_into_the_run']:>12.2f}  "
        f"{row['stages_finished_before']:>15}  {row['stages_finished_after']:>14}  {repeated:<15}  "
        f"{row['processes_left']:>14}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Work in this folder and keep it.")
    given = parser.parse_args()
    print("kill  conversion  seconds into  finished before  finished after  repeated         processes left")
    with tempfile.TemporaryDirectory() as aside:
        result = experiment(
            given.checkpoint.resolve(), given.data.resolve(), given.kills, given.seed, given.keep or Path(aside)
        )
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    write_json(RESULT, result)
    same = all(bundle == result["undisturbed"] for bundle in result["after_kills"])
    print(f"Bundles after the kills: {'the same as' if same else 'DIFFERENT from'} the undisturbed one ({RESULT}).")
    good = all(not r["stages_repeated"] and not r["processes_left"] and not r["output_left"] for r in result["kills"])
    return 0 if same and good and not result["stages_repeated_by_the_last_run"] else 1


if __name__ == "__main__":
    sys.exit(main())
