"""What a folder or a file is: a bundle, a checkpoint, or a model file. Loads no engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from toolkit import checkpoint as checkpoints
from toolkit import model_file, tasks
from toolkit.errors import InputError
from toolkit.runtime import manifest as manifests
from toolkit.tensorrt import rungs

_MEASURED = ("score", "size", "latency")


def inspect(path: Path) -> dict[str, Any]:
    """Facts about a bundle or a checkpoint folder, or a model file. Raises InputError if it is none, or damaged."""
    if path.suffix in model_file.SUFFIXES:
        return model_file.inspect(path)
    if (path / manifests.FILE_NAME).exists():
        manifest = manifests.read(path)
        manifests.verify_files(manifest)
        data = manifest.data
        metrics = data.get("metrics")
        if not isinstance(metrics, dict) or not all(isinstance(metrics.get(key), dict) for key in _MEASURED):
            raise InputError(f"{path / manifests.FILE_NAME}: key 'metrics' is missing or damaged.")
        return {
            "kind": "bundle",
            **{
                key: data[key]
                for key in (
                    "task", "target", "engine", "artifact", "labels", "preprocessing", "source_model",
                    "tool_versions", "accepted", "content_hash",
                )
            },
            "files": {name: entry["bytes"] for name, entry in data["files"].items()},
            "refusals": data.get("refusals", []),
            "metrics": {key: metrics[key] for key in _MEASURED},
            "validation": rungs.with_engines(metrics.get("validation"), path, manifest.artifact),
            "engine_build": metrics.get("engine_build"),
        }  # fmt: skip
    task = tasks.of(checkpoints.check_folder(path))
    found = checkpoints.inspect(path, task)
    dtypes: dict[str, int] = {}
    for dtype, _ in found.tensors.values():
        dtypes[dtype] = dtypes.get(dtype, 0) + 1
    return {
        "kind": "checkpoint",
        "task": task.NAME if found.labels is not None else None,
        "architecture": found.architecture,
        "model_type": found.config["model_type"],
        "parameters": found.parameters,
        "weights_bytes": found.size_bytes,
        "tensors": len(found.tensors),
        "dtypes": dtypes,
        "layers": found.config.get("num_hidden_layers"),
        "hidden_size": found.config.get("hidden_size"),
        "most_tokens": found.model_limit,
        "prompt_tokens": found.prompt_tokens,
        "labels": found.labels,
        "sha256": found.sha256,
    }


def rows(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Facts as (name, value) rows, nested mappings flattened one level."""
    made: list[tuple[str, str]] = []
    for name, value in facts.items():
        if name in ("validation", "engine_build"):
            if value is not None:
                said = rungs.sentence(value) if name == "validation" else value["detail"]
                made.append((name.replace("_", " "), said))
        elif isinstance(value, dict) and not prefix and name != "metrics":
            made += rows(value, f"{name}: ")
        elif name == "metrics":
            score, size = value["score"], value["size"]
            made.append((f"{score['name']} before → after", f"{score['before']:.4f} → {score['after']:.4f}"))
            made.append(("bytes before → after", f"{size['before_bytes']:,} → {size['after_bytes']:,}"))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            made.append((prefix + name, "; ".join(f"{v['name']} {v['dtype']}{v['shape']}" for v in value)))
        elif isinstance(value, list):
            made.append((prefix + name, ", ".join(map(str, value)) or "-"))
        else:
            made.append((prefix + name, f"{value:,}" if isinstance(value, int) and value > 9999 else str(value)))
    return made
