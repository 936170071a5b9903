"""Models that come as an ONNX file, without the network that they were exported from.

    config.json          model_type `onnx`, the task, the labels
    model.onnx           the file as it was given, beside it the weights that it has elsewhere
    artifact.json        its description: the folder is an artifact too, and that is how its answers are had
    tokenizer.json, …    what the encoder is made from

There is nothing here to train or to prune: such a model is quantized, checked, measured and bundled.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from toolkit import tasks
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError
from toolkit.export import onnx_file, onnx_fixed
from toolkit.model_file import precision_of
from toolkit.runtime.encoder import SPEC
from toolkit.storage import publish_folder, read_json, sha256_file, sha256_folder, sha256_json, write_json
from toolkit.tasks.task import Task

MODEL_TYPE = "onnx"
MODEL_FILE = "model.onnx"
SUFFIX = ".onnx"
TENSORS = "tensors"  # the task of a model of which nobody says what it does


def is_graph(model: str) -> bool:
    """Whether MODEL is an ONNX file."""
    return Path(model).suffix.lower() == SUFFIX


def task_of(named: str | None, preprocessing: str | None) -> Task:
    """The task of an ONNX file: as named, or that of the folder whose preprocessing it shares. Raises InputError."""
    if preprocessing is None and named not in (None, TENSORS):
        raise InputError(
            "An ONNX file does not say how examples become tensors: name a folder with --preprocessing (tokenizer.json "
            f"or preprocessor files, and config.json with the labels), or leave out --task {named} and give tensors."
        )
    if preprocessing is None:
        return tasks.get(TENSORS)
    config = _config(Path(preprocessing))
    return tasks.get(named) if named else tasks.of(config)


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"--preprocessing {folder} is not a folder.")
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def imported(path: Path, task: Task, preprocessing: str | None, output: str | None, cache: Path) -> Path:
    """A folder of the ONNX file `path`, made once per content in `cache`.

    `preprocessing` is a folder with what the task's encoder is made from, and with the labels in its config.json;
    `output` names the output that holds the answers, by default the first one. Raises InputError.
    """
    model = onnx_file.read(path, weights=False)
    onnx_file.check(path, model)
    shared = _config(Path(preprocessing)) if preprocessing else {}
    _choose_output(path, model, output, only=task.NAME != TENSORS)
    task.finish_graph(model)
    hashes = {each.name: sha256_file(each) for each in onnx_file.files(path, model)}
    more = sha256_folder(Path(preprocessing)) if preprocessing else ""
    destination = cache / "imported" / sha256_json([hashes, more, task.NAME, output, _VERSION])
    if destination.exists():
        return destination
    with publish_folder(destination) as aside:
        _write(path, model, aside / MODEL_FILE)
        described = _described(aside / MODEL_FILE, model)
        config = {key: shared[key] for key in _SHARED if key in shared}
        config |= {"model_type": MODEL_TYPE, "architectures": ["ONNX file"], "task": task.NAME}
        config["max_position_embeddings"] = (described["lengths"] or [Checkpoint(aside, shared, {}, "").model_limit])[0]
        write_json(aside / "config.json", config)
        if preprocessing:
            task.copy_files(Path(preprocessing), aside, {})
        else:
            write_json(aside / SPEC, {"inputs": described["inputs"], "outputs": described["outputs"]})
        write_json(aside / "artifact.json", described)
        task.check_checkpoint(aside, config)
        _check_inputs(path, task, aside, described)
        _check_labels(path, task, config, described)
    return destination


_VERSION = 1
# What of a config speaks of the encoder and the answers, not of the network.
_SHARED = ("id2label", "label2id", "pad_token_id")


def _choose_output(path: Path, model: Any, wanted: str | None, only: bool) -> None:
    """Put the output with the answers first; `only` leaves no other one."""
    outputs = {value.name: value for value in model.graph.output}
    if wanted is not None and wanted not in outputs:
        raise InputError(f"{path} has no output '{wanted}'; its outputs are: {', '.join(outputs)}.")
    first = outputs.pop(wanted or next(iter(outputs)))
    kept = [type(first).FromString(each.SerializeToString()) for each in (first, *([] if only else outputs.values()))]
    del model.graph.output[:]
    model.graph.output.extend(kept)


def _write(path: Path, model: Any, destination: Path) -> None:
    """The file with the outputs that were chosen, and the weights that it has elsewhere."""
    import onnx

    onnx.save(model, str(destination))  # tensors that lie elsewhere are named in it as before
    for name in onnx_file.data_files(path, model):
        (destination.parent / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path.parent / name, destination.parent / name)


def _described(path: Path, model: Any) -> dict[str, Any]:
    from toolkit.export import onnx as onnx_format

    described = onnx_format.describe(path, precision_of(path), "onnxruntime")
    names = {value.name for value in model.graph.initializer}  # before IR version 4, weights were inputs too
    described["inputs"] = [each for each in described["inputs"] if each["name"] not in names]
    described["lengths"] = onnx_fixed.length_of(described["inputs"])
    return described


def _check_inputs(path: Path, task: Task, folder: Path, described: dict[str, Any]) -> None:
    """Refuse a file whose inputs are not what the encoder gives. Raises InputError."""
    names = [each["name"] for each in described["inputs"]]
    known = task.INPUT_NAMES
    if len(known) > 1 and not set(names) <= set(known):
        raise InputError(
            f"{path} takes {', '.join(names)}; the encoder of {task.NAME} gives {', '.join(known)}. Give tensors "
            "without --preprocessing."
        )
    encoder = task.encoder(folder, {}, inputs=names, lengths=described["lengths"])
    sample = encoder.sample(1, (described["lengths"] or [8])[0])
    for each in described["inputs"]:
        given = sample[each["name"]].shape if each["name"] in sample else ()
        wanted = each["shape"]
        if len(given) != len(wanted) or any(
            isinstance(size, int) and size > 1 and size != own for size, own in zip(wanted, given, strict=True)
        ):
            raise InputError(f"{path}: its input '{each['name']}' is {wanted}; the preprocessing gives {list(given)}.")


def _check_labels(path: Path, task: Task, config: dict[str, Any], described: dict[str, Any]) -> None:
    """Refuse a file with another number of answers than there are labels. Raises InputError."""
    if task.ANSWERS != "classes":
        return
    width, names = described["outputs"][0]["shape"][-1:], config.get("id2label")
    if not names:
        raise InputError("--preprocessing: its config.json does not name the labels (id2label).")
    if width and isinstance(width[0], int) and width[0] not in (0, len(names)):
        raise InputError(f"{path} gives {width[0]} answers; --preprocessing names {len(names)} labels.")


def tensors_of(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Names, types and shapes of the weights of the main graph."""
    import onnx

    model = onnx_file.read(folder / MODEL_FILE, weights=False)
    return {
        each.name: (onnx.TensorProto.DataType.Name(each.data_type), tuple(each.dims))
        for each in model.graph.initializer
    }


def precision(folder: Path) -> str:
    """The narrowest numbers that the file computes or stores with: `fp32`, `int8`, …"""
    return str(read_json(folder / "artifact.json")["precision"])


def files_of(folder: Path) -> list[str]:
    """The names of the model's files in a folder."""
    return [str(name) for name in (MODEL_FILE, *read_json(folder / "artifact.json").get("data_files", ()))]
