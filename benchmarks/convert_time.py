"""How long the command line takes, and how much memory: `toolkit --help`, and converting a trained checkpoint.

    python benchmarks/convert_time.py [--examples 1000] [--output benchmarks/results/convert_time.json]

The checkpoint is MiniLM fine-tuned on Rotten Tomatoes (made by `toolkit finetune demo`, or taken from the stage
cache); its held-out sentences are the evaluation data. The conversion starts from an empty cache: ONNX and LiteRT
exports, int8 of both, all gates, timing, bundle. Memory is given twice: of the largest process, which is what peers'
figures are, and of all processes together, because two stages may run side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from toolkit import conversion, planning, steps, tasks
from toolkit.devices import local
from toolkit.runner import Runner
from toolkit.storage import write_json

HELP_RUNS = 11


def resident_bytes(root: int) -> int:
    """Proportional set size of a process and its descendants (shared pages counted once)."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        try:
            for line in (Path("/proc") / str(process) / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue
    return total


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command: seconds, peak of the largest process, peak of all processes together."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak = 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(0.1):
            peak = max(peak, resident_bytes(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    return {
        "seconds": seconds,
        "largest_process_bytes": usage.ru_maxrss * 1024,  # of it and the descendants that it waited for
        "all_processes_bytes": peak,
        "exit_code": process.returncode,
        "printed": printed,
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1000, help="held-out sentences to evaluate on")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "convert_time.json")
    arguments = parser.parse_args()
    toolkit_command = [sys.executable, "-m", "toolkit"]

    helps = sorted(watched([*toolkit_command, "--help"])["seconds"] for _ in range(HELP_RUNS))
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        plan = planning.plan(planning.Options(model="demo", output=str(folder / "unused")))
        data = conversion.prepare(Runner(plan.cache, plan.recipe.task, plan.recipe.seed), plan)
        steps.finetune(str(folder / "tuned"), {"model": "demo"})
        examples = tasks.get(plan.recipe.task).read_examples(data.output, "eval")[: arguments.examples]
        names = json.loads((data.output / "labels.json").read_text())
        lines = [json.dumps({"text": e.input, "label": names[e.label]}) for e in examples]
        (folder / "eval.jsonl").write_text("\n".join(lines) + "\n")
        run = watched(
            [
                *toolkit_command, "convert", str(folder / "tuned"), "--data", str(folder / "eval.jsonl"),
                "--target", "host", "--cache-dir", str(folder / "cache"), "-o", str(folder / "bundle"), "--json",
            ]
        )  # fmt: skip
        receipts = [json.loads(path.read_text()) for path in sorted((folder / "bundle" / "receipts").glob("*.json"))]
    summary = json.loads(run.pop("printed"))
    # Forked stages are waited for by another process than this one's child; their receipts have their peaks.
    run["largest_process_bytes"] = max(run["largest_process_bytes"], *(r["peak_rss_bytes"] for r in receipts))
    record: dict[str, Any] = {
        "command": f"python benchmarks/convert_time.py --examples {arguments.examples}",
        "kind": "measured",
        "device": local.describe(),
        "help_seconds": {"median": helps[len(helps) // 2], "min": helps[0], "max": helps[-1]},
        "convert": {
            **run,
            "examples": len(examples),
            "chosen": summary["chosen"],
            "score_before": summary["score"]["before"],
            "score_after": summary["score"]["after"],
            "stages": [{key: receipt[key] for key in ("title", "seconds", "peak_rss_bytes")} for receipt in receipts],
        },
    }
    print(f"toolkit --help: {record['help_seconds']['median']:.3f} s (median of {HELP_RUNS})")
    print(
        f"toolkit convert of a trained checkpoint, {len(examples)} evaluation sentences: {run['seconds']:.1f} s, "
        f"largest process {run['largest_process_bytes'] / 1e9:.2f} GB, "
        f"all together {run['all_processes_bytes'] / 1e9:.2f} GB"
    )
    for stage in record["convert"]["stages"]:
        print(f"  {stage['title']:36}{stage['seconds']:8.1f} s{stage['peak_rss_bytes'] / 1e6:8.0f} MB")
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.output, record)


if __name__ == "__main__":
    main()
