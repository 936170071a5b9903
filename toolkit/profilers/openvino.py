"""OpenVINO's performance counters: one per node that its plugin runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from toolkit.engines import Arrays
from toolkit.engines import openvino as engine
from toolkit.profilers import Operator

SOURCE = "OpenVINO's performance counters"


def profile(path: Path, threads: int, inputs: Sequence[Arrays], runs: int) -> list[Operator]:
    """Every node that the plugin executed: mean over `runs` runs of each of `inputs`."""
    loaded = engine.load(path, threads, counters=True)
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    kinds: dict[str, tuple[str, str]] = {}
    for given in inputs:
        loaded.run(given)
        for _ in range(runs):
            loaded.run(given)
            for node in loaded.counters():
                if node.status.name != "EXECUTED":
                    continue
                kinds[node.node_name] = node.node_type, node.exec_type
                seconds[node.node_name] += node.real_time.total_seconds()
                calls[node.node_name] += 1
    loaded.close()
    made = runs * len(inputs)
    return [
        Operator(name, kind, seconds[name] / calls[name], calls[name] / made, where)
        for name, (kind, where) in kinds.items()
    ]
