"""An adapter folder as `peft` writes it (`adapter_config.json`, `adapter_model.safetensors`), merged into its base.

The merge is proved like one of our own, on made-up inputs: numbers of a sum of products agree on any. The outcome is a
plain checkpoint, made once per content of both folders. Only JSON and safetensors are read, and of the config only what
is understood here, so that nothing in an adapter can name code to be run or files to be opened.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import checkpoint as checkpoints
from toolkit import hub, modules, tasks
from toolkit.adapters import merge
from toolkit.cache import Cache
from toolkit.checkpoint import Checkpoint
from toolkit.errors import InputError, missing_extra
from toolkit.storage import explained, publish_folder, read_json, sha256_file, sha256_json, write_json
from toolkit.tasks.task import Task

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
RECORD = "merged_adapter.json"  # beside the merged weights: what was merged, and the proof
_VERSION = 1  # raised whenever the same folders would give another checkpoint
_SEEN = "merged_adapters"  # in the config of a merged checkpoint: the hashes of the adapters that are in it

# What a config tells besides what is computed.
_BESIDE = {
    "peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
}  # fmt: skip
_LAYERS = {"target_modules", "exclude_modules", "modules_to_save"}
_RANKS = {*_LAYERS, "r", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"}
_LORA = {
    *_RANKS, "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "use_dora", "lora_bias",
    "init_lora_weights",
}  # fmt: skip
_ADALORA = {"target_r", "init_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"}
_PRODUCTS = {*_RANKS, "alpha", "rank_dropout", "module_dropout", "use_effective_conv2d", "init_weights"}
# Methods that merge, and what is understood of their configs. Adding one: one entry.
_METHODS = {
    "LORA": _LORA,
    "ADALORA": _LORA | _ADALORA,
    "IA3": {*_LAYERS, "feedforward_modules", "fan_in_fan_out", "init_ia3_weights"},
    "LOHA": _PRODUCTS,
    "LOKR": {*_PRODUCTS, "decompose_both", "decompose_factor", "rank_dropout_scale"},
}
# Ways to begin that leave the base as it is; others take away from it what the adapter begins as.
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal", "eva")
_TASKS = {"SEQ_CLS": "text-classification", "TOKEN_CLS": "token-classification"}
_PREFIX = "base_model.model."
# What gives the logits in the heads of transformers; its rows are the labels.
_HEAD = re.compile(rf"{re.escape(_PREFIX)}(?:classifier|score)(?:\.out_proj|\.\d+)?\.weight")
_ROWS, _LENGTH = 8, 24  # of the made-up inputs


@dataclass(frozen=True)
class Adapter:
    """An adapter folder that has been looked at."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # name → (dtype, shape)
    sha256: str  # of the weights

    @property
    def method(self) -> str:
        return str(self.config["peft_type"])

    @property
    def classes(self) -> int | None:
        """How many labels the head knows that it brings; None if it brings none."""
        heads = [shape[0] for name, (_, shape) in self.tensors.items() if _HEAD.fullmatch(name) and len(shape) == 2]
        return heads[0] if heads else None


def read(folder: Path) -> Adapter:
    """Look at an adapter folder. Raises InputError for what is none, or none that can be merged."""
    if not folder.is_dir():
        raise InputError(f"--adapter {folder} is no folder; an adapter is one with {CONFIG} and {WEIGHTS}.")
    if not (folder / CONFIG).is_file():
        hint = " It is a model: give it as MODEL." if (folder / "config.json").is_file() else ""
        raise InputError(f"--adapter {folder} is no adapter: it has no {CONFIG}.{hint}")
    config = read_json(folder / CONFIG)
    _check_config(folder, config)
    if not (folder / WEIGHTS).is_file():
        if (folder / PICKLE).is_file():
            raise InputError(
                f"--adapter {folder} holds its weights as a pickle ({PICKLE}), which can run code when it is read; "
                "refused. Whoever trusts it loads it with peft and calls save_pretrained, which writes safetensors."
            )
        raise InputError(f"--adapter {folder} has no weights: there is no {WEIGHTS}.")
    return Adapter(folder, config, checkpoints.read_header(folder / WEIGHTS), sha256_file(folder / WEIGHTS))


def _check_config(folder: Path, config: dict[str, Any]) -> None:
    """Refuse a method that does not merge, and settings that are not understood."""
    method = config.get("peft_type")
    if not isinstance(method, str) or method not in _METHODS:
        said = f"of the type {method!r}" if method else "of no type (peft_type)"
        raise InputError(
            f"--adapter {folder}: {CONFIG} tells of an adapter {said}, which cannot be merged; known: "
            f"{', '.join(_METHODS)}."
        )
    beginning = config.get("init_lora_weights")
    if beginning not in _BEGINNINGS:
        raise InputError(
            f"--adapter {folder} began with {beginning!r}, which changes the base; it fits no other. Save it as a "
            "plain LoRA: peft's save_pretrained with path_initial_model_for_weight_conversion."
        )


def _settings(adapter: Adapter, config_class: Any) -> dict[str, Any]:
    """What is understood of the adapter's config. Raises InputError if it asks for more."""
    known = _METHODS[adapter.method]
    usual = {
        field.name: field.default_factory() if field.default_factory is not MISSING else field.default
        for field in fields(config_class)
    }
    for name, value in adapter.config.items():
        if name not in known | _BESIDE and name != "runtime_config" and value and value != usual.get(name):
            raise InputError(
                f"--adapter {adapter.folder}: {CONFIG} asks for {name}, which cannot be merged, or is not known here."
            )
    given = {name: value for name, value in adapter.config.items() if name in known and name != "init_lora_weights"}
    return {**given, "task_type": adapter.config.get("task_type"), "inference_mode": True}


# Whether it belongs to the base


def _check_base(adapter: Adapter, base: Checkpoint, task: Task, model: str) -> None:
    """Refuse an adapter that can be seen to be made for another model, or for another task. `model` is what the user
    named. Shapes and names of weights are compared when they are loaded."""
    if base.config.get("model_type") == modules.MODEL_TYPE:
        raise InputError(f"--adapter {adapter.folder}: adapters are those of transformers models; {model} is none.")
    if base.prompt_tokens:
        raise InputError(f"--adapter {adapter.folder}: {model} has a prompt, which the adapter was not trained with.")
    if adapter.sha256 in _merged_before(base):
        raise InputError(f"--adapter {adapter.folder} is merged into {model} already.")
    kind = adapter.config.get("task_type")
    if kind not in (None, "FEATURE_EXTRACTION", *_TASKS):
        raise InputError(f"--adapter {adapter.folder} was trained for {kind}; known here: {', '.join(_TASKS)}.")
    if kind in _TASKS and _TASKS[kind] != task.NAME:
        raise InputError(f"--adapter {adapter.folder} was trained for {kind}; add --task {_TASKS[kind]}.")
    _check_named(adapter, base, model)


def _merged_before(base: Checkpoint) -> list[str]:
    """The hashes of the adapters that are in a checkpoint already."""
    found = base.config.get(_SEEN)
    return [str(each) for each in found] if isinstance(found, list) else []


def _check_named(adapter: Adapter, base: Checkpoint, model: str) -> None:
    """Compare what the adapter calls its base with what is known of ours: the weights, where it names a folder that is
    there; a hub's name and revision, where ours came from a hub."""
    named, revision = adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")
    if not isinstance(named, str) or not named:
        return
    hint = "If they are the same, say so in its base_model_name_or_path."
    if Path(named).is_dir():
        if _weights_sha256(Path(named)) not in (None, _weights_sha256(base.folder)):
            raise InputError(
                f"--adapter {adapter.folder} was made for {named}, whose weights are not those of {model}. {hint}"
            )
        return
    known, known_revision = _origin(base.folder, model)
    if known is not None and known.rpartition("/")[2].lower() != named.rstrip("/").rpartition("/")[2].lower():
        raise InputError(f"--adapter {adapter.folder} was made for {named}, not for {known}. {hint}")
    if known_revision and re.fullmatch("[0-9a-f]{40}", str(revision)) and revision != known_revision:
        raise InputError(
            f"--adapter {adapter.folder} was made for the revision {revision} of {named}; {model} is {known_revision}."
        )


def _weights_sha256(folder: Path) -> str | None:
    """The hash of a model's weights; None where they cannot be read here."""
    try:
        return sha256_json([sha256_file(path) for path in checkpoints.weight_files(folder)])
    except InputError:
        return None


def _origin(folder: Path, model: str) -> tuple[str | None, str | None]:
    """(hub id, revision) of a model that came from a hub, as far as is known."""
    if hub.is_id(model):
        return model, None
    parts = folder.resolve().parts  # …/models--organisation--name/snapshots/REVISION, as huggingface_hub keeps them
    if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
        return parts[-3].removeprefix("models--").replace("--", "/"), parts[-1]
    return None, None


# Merging


def merged(
    folder: Path, adapter_folder: Path, task: Task, cache: Cache, *, model: str, labels: Sequence[str] | None = None
) -> Path:
    """A checkpoint folder of the base in `folder` with the adapter merged into it, made once per content.

    `model` is what the user called the base. `labels` name those of the head that the adapter brings; None: the names
    that a `config.json` beside it, or else the base, has. Raises InputError.
    """
    adapter, base = read(adapter_folder), checkpoints.inspect(folder, task)
    _check_base(adapter, base, task, model)
    names = _labels(adapter, base, labels)
    key = sha256_json(
        {
            "version": _VERSION, "base": base.sha256, "adapter": adapter.sha256, "config": adapter.config,
            "task": task.NAME, "labels": names,
        }
    )  # fmt: skip
    destination = cache.folder / "imported" / key
    with cache.lock(key):
        if not destination.exists():
            with explained("keeping the merged model", destination), publish_folder(destination) as aside:
                _merge(adapter, base, task, names, aside)
    return destination


def record(folder: Path) -> dict[str, Any]:
    """`adapter`: what was merged into a checkpoint folder, and the proof; empty if nothing was."""
    return {"adapter": read_json(folder / RECORD)} if (folder / RECORD).is_file() else {}


def _labels(adapter: Adapter, base: Checkpoint, wanted: Sequence[str] | None) -> list[str] | None:
    """The label names of the merged model; None if neither the adapter nor the base has a head."""
    count = adapter.classes
    if count is None:
        return base.labels
    if wanted is not None:
        if len(wanted) != count:
            raise InputError(
                f"--labels names {len(wanted)} labels, but the head of {adapter.folder} knows {count} of them."
            )
        return list(wanted)
    beside = adapter.folder / "config.json"
    for config in (read_json(beside) if beside.is_file() else {}, base.config):
        names = config.get("id2label")
        if isinstance(names, dict) and sorted(names) == sorted(str(index) for index in range(count)):
            return [str(names[name]) for name in sorted(names, key=int)]
    return [f"LABEL_{index}" for index in range(count)]


def _merge(adapter: Adapter, base: Checkpoint, task: Task, labels: list[str] | None, output: Path) -> None:
    """Write the merged checkpoint to `output`. Raises InputError for an adapter that does not fit."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # libraries that peft finds say what they lack
            import peft  # noqa: F401
            import torch
    except ImportError as error:
        raise missing_extra("peft", "peft", "--adapter") from error
    torch.manual_seed(0)  # what peft makes at random is all read over
    model = _base_model(adapter, base, task, labels)
    model.config.update({_SEEN: [*_merged_before(base), adapter.sha256]})
    given = _made_up(model, base, task)

    def answers(model: Any) -> Any:
        with torch.no_grad():
            result = model.eval()(**given)
        return (result.logits if hasattr(result, "logits") else result.last_hidden_state).numpy()

    proof = merge.save(_adapted(adapter, model), output, answers)
    task.copy_files(base.folder, output, {})
    if (base.folder / "README.md").is_file():  # which names the licence
        shutil.copy(base.folder / "README.md", output / "README.md")
    made_from = {"name": adapter.folder.resolve().name, "method": adapter.method.lower(), "sha256": adapter.sha256}
    write_json(output / RECORD, {**made_from, "base_sha256": base.sha256, **proof})


def _base_model(adapter: Adapter, base: Checkpoint, task: Task, labels: list[str] | None) -> Any:
    """The base as the adapter knew it: with a head for the labels, or an encoder without any."""
    from toolkit.engines import torch as torch_engine

    if labels is None:
        return torch_engine.load_model(base.folder, tasks.get("sentence-similarity"))  # its models are encoders
    if adapter.classes is None:
        return torch_engine.load_model(base.folder, task)
    model, new = torch_engine.load_with_head(base.folder, task, labels)
    lost = sorted(name for name in new if _PREFIX + name not in adapter.tensors)
    if lost:
        raise InputError(
            f"--adapter {adapter.folder} needs {lost[0]}, which is neither among its weights nor among those of "
            f"{base.folder}."
        )
    return model


def _adapted(adapter: Adapter, model: Any) -> Any:
    """`model` with the adapter, by peft. Raises InputError for layers and weights that are not those of the model."""
    import peft
    import torch
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING
    from safetensors.torch import load_file

    method = peft.PeftType(adapter.method)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    settings = _settings(adapter, config_class)
    tensors = load_file(str(adapter.folder / WEIGHTS))
    spoilt = [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]
    if spoilt:
        raise InputError(f"--adapter {adapter.folder} is damaged: {spoilt[0]} holds values that are no numbers.")
    other = f"--adapter {adapter.folder} was made for another model than this {model.config.model_type}"
    try:
        with warnings.catch_warnings(action="ignore"):
            adapted = peft.get_peft_model(model, config_class(**settings))
            found: Any = peft.set_peft_model_state_dict(adapted, tensors)
    except KeyError as error:
        raise InputError(f"{other}: it lacks the weight {error.args[0]}.") from error
    except (AttributeError, TypeError) as error:  # of a setting that is not of its kind
        raise InputError(f"--adapter {adapter.folder}: {CONFIG} is damaged: {error}") from error
    except (RuntimeError, ValueError) as error:  # torch's for shapes, and peft's own
        if str(error).startswith(("Target modules", "No modules were targeted")):
            targets = settings.get("target_modules") or ()
            named = targets if isinstance(targets, str) else ", ".join(sorted(targets))
            raise InputError(f"{other}: it belongs to layers called {named}, of which there is none.") from error
        lines = [line.strip() for line in str(error).splitlines()]
        raise InputError(f"{other}: {next((line for line in lines if 'mismatch' in line), lines[0])}") from error
    own = (PEFT_TYPE_TO_PREFIX_MAPPING[method], "modules_to_save.")
    missing = [name for name in found.missing_keys if any(part in name for part in own)]
    # A head's bias is saved twice where all biases are.
    strange = [name for name in found.unexpected_keys if not name.endswith(".modules_to_save.bias")]
    for what, names in (("lacks", missing), ("has, and the model has not,", strange)):
        if names:
            raise InputError(f"{other}: it {what} {len(names)} weights, for example {names[0]}.")
    return adapted.eval()


def _made_up(model: Any, base: Checkpoint, task: Task) -> dict[str, Any]:
    """Inputs of the right shape, drawn by chance."""
    import torch

    from toolkit.engines.torch import input_names

    generator = np.random.default_rng(0)
    encoder = task.encoder(base.folder, {}, inputs=input_names(model, task))
    given = {}
    for name, array in encoder.sample(_ROWS, min(_LENGTH, base.model_limit)).items():
        if name == "input_ids":
            array = generator.integers(0, model.get_input_embeddings().num_embeddings, array.shape)
        elif name != "attention_mask":
            array = generator.normal(size=array.shape).astype(np.float32) if array.dtype.kind == "f" else 0 * array
        given[name] = torch.from_numpy(array)
    return given
