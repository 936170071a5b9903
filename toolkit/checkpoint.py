"""Checkpoints: PyTorch models on disk as Hugging Face folders. Looked at without torch.

`inspect` reads `config.json` and the headers of the safetensors files, which is enough to plan a conversion and
to refuse what cannot be used, in milliseconds.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import architecture, modules
from toolkit.errors import InputError, missing_extra
from toolkit.storage import explained, publish_folder, read_json, sha256_file, sha256_folder, sha256_json

if TYPE_CHECKING:
    from toolkit.tasks.task import Task

PROMPT_WEIGHT = "prompt_embeddings"  # of a model with a prompt (`toolkit.adapters.prompts`)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HEADER_LIMIT = 100_000_000  # the safetensors format's own limit


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder that has been looked at and can be loaded."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, tuple[str, tuple[int, ...]]]  # name → (dtype, shape)
    sha256: str
    labels: list[str] | None = None  # label names in index order if it was trained for its task

    @property
    def architecture(self) -> str:
        return str((self.config.get("architectures") or ["unknown"])[0])

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for _, shape in self.tensors.values())

    @property
    def size_bytes(self) -> int:
        if self.is_graph:
            return int(read_json(self.folder / "artifact.json")["size_bytes"])
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    @property
    def is_graph(self) -> bool:
        """Whether it came as an ONNX file (`toolkit.graphs`)."""
        return bool(self.config.get("model_type") == "onnx")

    @property
    def engine(self) -> str:
        """What runs it as it is."""
        return "onnxruntime" if self.is_graph else "torch"

    @property
    def kind(self) -> str:
        """What people call it."""
        return "ONNX file as given" if self.is_graph else "float checkpoint"

    @property
    def layers(self) -> int:
        """How many layers the config tells; 0 if it tells none."""
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layers") or 0)

    @property
    def vocabulary(self) -> int:
        """How many tokens the config tells; 0 if it tells none."""
        return int(self.config.get("vocab_size") or 0)

    @property
    def width(self) -> int:
        """The size of a token's vector; 0 if the config tells none."""
        return int(self.config.get("hidden_size") or self.config.get("dim") or 0)

    @property
    def heads(self) -> int:
        """How many attention heads a layer has by the config; 0 if it tells none."""
        return int(self.config.get("num_attention_heads") or self.config.get("n_heads") or 0)

    @property
    def prompt_tokens(self) -> int:
        """How many virtual tokens stand in front of a text."""
        return int((self.config.get("prompt") or {}).get("tokens", 0))

    @property
    def model_limit(self) -> int:
        """The most tokens that the model's position table takes; a prompt needs some of them."""
        positions = self.config.get("max_position_embeddings") or self.config.get("n_positions") or 512
        offset = 2 if self.config.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
        return int(positions) - offset - self.prompt_tokens

    def with_prompt(self, method: str, tokens: int) -> Checkpoint:
        """As it will be described when it has a prompt."""
        return replace(self, config={**self.config, "prompt": {"method": method, "tokens": tokens}})


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor names, dtypes and shapes of a safetensors file. Raises InputError if the file is damaged."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(_HEADER_LIMIT, max(size - 8, 0)):
            raise InputError(f"{path} is not a safetensors file, or it was cut off in its header.")
        try:
            header = json.loads(stream.read(length))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise InputError(f"{path} is not a safetensors file: its header is damaged.") from error
    try:
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        tensors = {name: (str(e["dtype"]), tuple(map(int, e["shape"]))) for name, e in header.items()}
    except (AttributeError, KeyError, TypeError, IndexError, ValueError) as error:
        raise InputError(f"{path} is not a safetensors file: its header is damaged.") from error
    if 8 + length + end != size:
        raise InputError(
            f"{path} is damaged: it has {size:,} bytes, its header describes {8 + length + end:,}. "
            "It was probably cut off while copying; get it again."
        )
    return tensors


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; a folder with pickles only is refused with the way out."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
            raise InputError(f"{index} is damaged: its weight_map does not name files of this folder.")
        names = sorted(set(weight_map.values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise InputError(f"{folder}: the index names {missing[0]}, which is not there.")
        return [folder / name for name in names]
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise InputError(
            f"{folder} holds its weights as a pickle ({pickles[0].name}), which can run code when it is read; "
            "refused. If you trust its source, --allow-pickle reads it once with weights_only=True and goes on "
            "with a safetensors copy."
        )
    raise InputError(f"{folder} has no weights: no .safetensors file beside its config.json.")


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint folder. Raises InputError if the folder is not one."""
    if not folder.exists():
        raise InputError(
            f"Model {folder} does not exist. Give a folder with config.json, weights and tokenizer, or `demo`."
        )
    if folder.is_file() and folder.suffix == ".onnx":
        raise InputError(f"{folder} is an ONNX file; there is nothing in it that can be trained or cut.")
    if folder.is_file():
        kind = "a pickle that can run code when it is read" if folder.match("*.p*t*") or folder.suffix in (
            ".bin", ".ckpt"
        ) else "a single file"  # fmt: skip
        raise InputError(
            f"{folder} is {kind}; a model is a folder with config.json, safetensors weights and tokenizer. "
            "Put a weights file beside its config.json and tokenizer.json, and read it with --allow-pickle."
        )
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(f"{folder} is an adapter, not a model: give its base as MODEL, with --adapter {folder}.")
        raise InputError(f"{folder} is not a model: it has no config.json.")
    return _read_config(folder / "config.json")


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    if "model_type" not in config:
        raise InputError(f"{path} names no model_type; it is not a transformers model.")
    if "auto_map" in config:
        raise InputError(f"{path.parent} needs code of its own to be run (auto_map in {path.name}); refused.")
    return config


def refuse_code(folder: Path, allowed: bool) -> None:
    """Refuse a folder whose network is Python code, unless the user allowed to run it. Raises InputError."""
    config = folder / "config.json"
    if allowed or not config.is_file():
        return
    if read_json(config).get("model_type") == modules.MODEL_TYPE and not modules.is_ours(folder / modules.CODE):
        raise InputError(
            f"{folder} holds Python code ({modules.CODE}) that has to be run to load the model; refused. If you trust "
            "it, add --allow-code."
        )


def inspect(folder: Path, task: Task) -> Checkpoint:
    """Look at a checkpoint folder: config, tensor headers, what its encoder is made from, content hash.

    Raises InputError for a folder that is not a model, damaged or pickled weights, or a missing tokenizer.
    """
    config = check_folder(folder)
    tensors, weights = _weights(folder, config)
    task.check_checkpoint(folder, config)
    names = ["config.json", modules.CODE, *task.FILES, *weights]
    hashes = {name: sha256_file(folder / name) for name in names if (folder / name).exists()}
    try:
        found = Checkpoint(folder, config, tensors, sha256_json(hashes), task.labels(config, tensors))
        _ = (found.architecture, found.model_limit)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder / 'config.json'} is damaged: architectures, id2label, max_position_embeddings or prompt is not "
            "what is written there."
        ) from error
    written = tensors[PROMPT_WEIGHT][1][-2] if PROMPT_WEIGHT in tensors else 0
    if written != found.prompt_tokens:
        raise InputError(
            f"{folder} is damaged: config.json tells of a prompt of {found.prompt_tokens} tokens, the weights have one "
            f"of {written}."
        )
    return found


def _weights(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, tuple[str, tuple[int, ...]]], list[str]]:
    """(name → type and shape of the weights, the names of the files that hold them). Raises InputError."""
    if config["model_type"] == "onnx":
        from toolkit import graphs

        return graphs.tensors_of(folder), graphs.files_of(folder)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    files = weight_files(folder)
    for path in files:
        tensors.update(read_header(path))
    return tensors, [path.name for path in files]


def bare(path: Path, tokenizer: Path, task: Task, labels: list[str]) -> Checkpoint:
    """A model without weights yet, in the shape that the config file `path` describes, with a head for `labels`.

    The folder is where its tokenizer lies: beside the config, or else the folder `tokenizer`. Raises InputError.
    """
    from toolkit.runtime.text import TextEncoder

    config = _read_config(path)
    config.pop("prompt", None)  # which is made of weights
    with contextlib.redirect_stderr(io.StringIO()):  # libraries that torch finds say what they lack
        model = architecture.fresh(config, task.MODEL_CLASS, labels, device="meta")  # shapes without memory
    folder = path.parent if (path.parent / "tokenizer.json").is_file() else tokenizer
    tokens = TextEncoder(folder / "tokenizer.json", max_length=1, inputs=()).size
    if tokens > int(config.get("vocab_size", tokens)):
        raise InputError(
            f"{path}: its vocab_size is {config['vocab_size']}, but the tokenizer of {folder} has {tokens} tokens."
        )
    tensors = {name: ("F32", tuple(tensor.shape)) for name, tensor in model.state_dict().items()}
    return Checkpoint(folder, config, tensors, task.encoder_sha256(folder))


def from_pickle(folder: Path, cache: Path) -> Path:
    """A safetensors copy of a pickled checkpoint, made once per content, read with `weights_only=True`."""
    check_folder(folder)
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    if list(folder.glob("*.safetensors")) or not pickles:
        return folder
    destination = cache / "imported" / sha256_folder(folder)
    if destination.exists():
        return destination
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise missing_extra("torch", "convert", "Reading a pickled checkpoint") from error
    tensors: dict[str, Any] = {}
    for path in pickles:
        if path.name in ("training_args.bin", "optimizer.pt", "scheduler.pt"):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises UnpicklingError, RuntimeError and more for a bad file, and its
            # text advises to read the file without weights_only
            raise InputError(
                f"{path} cannot be read with weights_only=True: it is damaged, or it holds more than tensors and "
                "could run code. It is not loaded any other way; get the model as safetensors."
            ) from error
        if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise InputError(f"{path} is not a state dict of tensors.")
        tensors.update({name: value.clone().contiguous() for name, value in state.items()})
    with explained("keeping the safetensors copy", destination), publish_folder(destination) as aside:
        for path in folder.iterdir():
            if path.is_file() and path.suffix in (".json", ".txt", ".model"):
                shutil.copy(path, aside / path.name)
        save_file(tensors, str(aside / "model.safetensors"), metadata={"format": "pt"})
    return destination
