"""ONNX Runtime's session profiler: an event per node and run."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from toolkit.engines import Arrays
from toolkit.engines import onnxruntime as engine
from toolkit.profilers import Operator

SOURCE = "ONNX Runtime's session profiler"
_SUFFIX = "_kernel_time"


def profile(path: Path, threads: int, inputs: Sequence[Arrays], runs: int) -> list[Operator]:
    """Every node that runs, after what the runtime fused: mean over `runs` runs of each of `inputs`."""
    with tempfile.TemporaryDirectory(prefix="toolkit-profile-") as folder:
        loaded = engine.load(path, threads, profile=Path(folder) / "profile")
        for given in inputs:
            loaded.run(given)  # to warm up; its events are taken off below
        for _ in range(runs):
            for given in inputs:
                loaded.run(given)
        events = json.loads(Path(loaded.end_profiling()).read_text(encoding="utf-8"))
        loaded.close()
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    kinds: dict[str, tuple[str, str | None]] = {}
    skipped: Counter[str] = Counter()
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(_SUFFIX):
            continue
        node = name.removesuffix(_SUFFIX)
        kinds[node] = str(event["args"]["op_name"]), event["args"].get("provider")
        skipped[node] += 1
        if skipped[node] > len(inputs):
            seconds[node] += event["dur"] / 1e6
            calls[node] += 1
    made = runs * len(inputs)
    return [
        Operator(node, kind, seconds[node] / calls[node], calls[node] / made, where)
        for node, (kind, where) in kinds.items()
        if calls[node]
    ]
