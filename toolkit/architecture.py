"""Encoders cut to a smaller shape: fewer layers, narrower feed-forward parts, fewer heads, tokens or positions.

Every weight's axes have names. Cutting selects along the named axes and builds a model from the config that says so:
the result is a plain checkpoint that `from_pretrained` loads, whatever was cut.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolkit.errors import InputError, missing_extra


@dataclass(frozen=True)
class Family:
    """Architectures whose weights have the same names. `axes`: a pattern of a weight's name below the model's prefix →
    the names of its axes; `config`: the name of an axis or count → the key of the config that has its size."""

    layer: str  # the pattern of a layer's number in a weight's name
    axes: tuple[tuple[str, tuple[str, ...]], ...]
    config: dict[str, str]
    reads: dict[str, str]  # axis → pattern of the modules that read what lies along it
    values: str  # pattern of the modules whose output attention mixes for those that read `heads`


_ENCODER = (
    (r"embeddings\.word_embeddings\.weight", ("vocabulary", "width")),
    (r"embeddings\.position_embeddings\.weight", ("positions", "width")),
    (r"embeddings\.token_type_embeddings\.weight", ("types", "width")),
    (r"embeddings\.LayerNorm\.(weight|bias)", ("width",)),
    (r"pooler\.dense\.weight", ("width", "width")),
    (r"pooler\.dense\.bias", ("width",)),
)
_HEADS = (
    (r"(classifier\.dense|pre_classifier)\.weight", ("width", "width")),
    (r"(classifier\.dense|pre_classifier)\.bias", ("width",)),
    (r"classifier(\.out_proj)?\.weight", ("labels", "width")),
    (r"classifier(\.out_proj)?\.bias", ("labels",)),
)
_BERT = Family(
    layer=r"encoder\.layer\.(\d+)\.",
    axes=(
        *_ENCODER,
        (r"encoder\.layer\.\d+\.attention\.self\.(query|key|value)\.weight", ("heads", "width")),
        (r"encoder\.layer\.\d+\.attention\.self\.(query|key|value)\.bias", ("heads",)),
        (r"encoder\.layer\.\d+\.attention\.output\.dense\.weight", ("width", "heads")),
        (r"encoder\.layer\.\d+\.intermediate\.dense\.weight", ("ffn", "width")),
        (r"encoder\.layer\.\d+\.intermediate\.dense\.bias", ("ffn",)),
        (r"encoder\.layer\.\d+\.output\.dense\.weight", ("width", "ffn")),
        (r"encoder\.layer\.\d+\.(attention\.)?output\.dense\.bias", ("width",)),
        (r"encoder\.layer\.\d+\.(attention\.)?output\.LayerNorm\.(weight|bias)", ("width",)),
        *_HEADS,
    ),
    config={
        "layers": "num_hidden_layers",
        "width": "hidden_size",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    },
    reads={
        "ffn": r"encoder\.layer\.(\d+)\.output\.dense",
        "heads": r"encoder\.layer\.(\d+)\.attention\.output\.dense",
        "width": r"encoder\.layer\.(\d+)\.(attention\.self\.(query|key|value)|intermediate\.dense)",
    },
    values=r"encoder\.layer\.(\d+)\.attention\.self\.value",
)
_DISTILBERT = Family(
    layer=r"transformer\.layer\.(\d+)\.",
    axes=(
        *_ENCODER,
        (r"transformer\.layer\.\d+\.attention\.[qkv]_lin\.weight", ("heads", "width")),
        (r"transformer\.layer\.\d+\.attention\.[qkv]_lin\.bias", ("heads",)),
        (r"transformer\.layer\.\d+\.attention\.out_lin\.weight", ("width", "heads")),
        (r"transformer\.layer\.\d+\.attention\.out_lin\.bias", ("width",)),
        (r"transformer\.layer\.\d+\.ffn\.lin1\.weight", ("ffn", "width")),
        (r"transformer\.layer\.\d+\.ffn\.lin1\.bias", ("ffn",)),
        (r"transformer\.layer\.\d+\.ffn\.lin2\.weight", ("width", "ffn")),
        (r"transformer\.layer\.\d+\.ffn\.lin2\.bias", ("width",)),
        (r"transformer\.layer\.\d+\.(sa|output)_layer_norm\.(weight|bias)", ("width",)),
        *_HEADS,
    ),
    config={
        "layers": "n_layers",
        "width": "dim",
        "heads": "n_heads",
        "ffn": "hidden_dim",
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
    },
    reads={
        "ffn": r"transformer\.layer\.(\d+)\.ffn\.lin2",
        "heads": r"transformer\.layer\.(\d+)\.attention\.out_lin",
        "width": r"transformer\.layer\.(\d+)\.(attention\.[qkv]_lin|ffn\.lin1)",
    },
    values=r"transformer\.layer\.(\d+)\.attention\.v_lin",
)
# Adding a family: one entry.
FAMILIES = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "camembert": _BERT,
    "electra": _BERT,
    "distilbert": _DISTILBERT,
}
# Positions are counted from behind the padding index.
_POSITION_OFFSET = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}


@dataclass(frozen=True)
class Cut:
    """What stays. Indices ascending, into the model as it is; None: everything.

    `ffn` and `heads` have one sequence per layer that stays, all of one length, because a config has one number.
    Heads keep their size, which in these architectures is width / heads: they can only go together with as large a
    share of the width.
    """

    layers: Sequence[int] | None = None
    ffn: Sequence[Sequence[int]] | None = None
    heads: Sequence[Sequence[int]] | None = None
    width: Sequence[int] | None = None
    vocabulary: Sequence[int] | None = None
    positions: int | None = None  # the most tokens of an input


def family(model_type: str) -> Family:
    """The family of a config's `model_type`. Raises InputError for one that cannot be cut."""
    if model_type not in FAMILIES:
        raise InputError(f"Models of the type '{model_type}' cannot be made smaller; known: {', '.join(FAMILIES)}.")
    return FAMILIES[model_type]


def refuse_prompt(config: Mapping[str, Any]) -> None:
    """Refuse to change the shape or the scales of a model with a prompt (`toolkit.adapters.prompts`): what the prompt
    learned would no longer fit. Raises InputError."""
    if config.get("prompt"):
        raise InputError(
            "A model with a prompt can be neither cut nor balanced. Do so with the model that it was made from, and "
            f"then fine-tune with --adapt {config['prompt'].get('method', 'prompt')}; as it is, it can be a teacher."
        )


def shape(config: Any) -> dict[str, int]:
    """Layers, width, heads, ffn, vocabulary and positions of a config. Raises InputError."""
    try:
        return {name: int(getattr(config, key)) for name, key in family(config.model_type).config.items()}
    except AttributeError as error:
        raise InputError(f"A config of the type '{config.model_type}' must name its {error.name}.") from error


def heads_of(sizes: Mapping[str, int], width: int) -> int:
    """How many heads a model of these `sizes` keeps when it is cut to `width`. Raises InputError if heads cannot be
    cut to it."""
    head = sizes["width"] // sizes["heads"]
    if width >= sizes["width"] or width % head:
        raise InputError(
            f"A width of {width} cannot be cut from {sizes['width']}: heads go as a whole, each is {head} wide. "
            f"Choose a multiple of {head} below {sizes['width']}."
        )
    return width // head


def fresh(
    config: Mapping[str, Any], model_class: str, labels: Sequence[str], *, device: str = "cpu", **options: Any
) -> Any:
    """A float32 model with random weights, in the shape that a `config.json` describes and with a head for `labels`.

    Raises InputError for a config that describes no such model.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_extra("torch and transformers", "convert", "Making a model from a config") from error
    given = {key: value for key, value in config.items() if key not in ("id2label", "label2id", "num_labels")}
    try:
        described = transformers.AutoConfig.for_model(
            **given, id2label=dict(enumerate(labels)), label2id={name: index for index, name in enumerate(labels)}
        )
        with torch.device(device):
            return getattr(transformers, model_class).from_config(described, dtype=torch.float32, **options)
    except Exception as error:  # each architecture's config and layers raise what they like
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"The config of the student describes no classifier that can be built: {first}") from error


def cut(model: Any, wanted: Cut) -> Any:
    """A new model of the same class with only the wanted parts of `model`'s weights, in evaluation mode.

    Raises InputError for a model that cannot be cut in this way.
    """
    import torch

    refuse_prompt(vars(model.config))
    kind, old = family(model.config.model_type), shape(model.config)
    layers = list(range(old["layers"]) if wanted.layers is None else wanted.layers)
    _check(wanted, layers, old, model.config.model_type)
    if wanted.width is not None and getattr(model.config, "embedding_size", old["width"]) != old["width"]:
        raise InputError("A model whose embeddings are not as wide as its layers keeps its width and its heads.")
    head = old["width"] // old["heads"]

    def select(axis: str, place: int) -> Any:
        """Indices that stay along an axis, in the layer that will have this place; None: all."""
        if axis == "ffn" and wanted.ffn is not None:
            return torch.as_tensor(list(wanted.ffn[place]))
        if axis == "heads" and wanted.heads is not None:
            return torch.as_tensor([h * head + i for h in wanted.heads[place] for i in range(head)])
        if axis == "width" and wanted.width is not None:
            return torch.as_tensor(list(wanted.width))
        if axis == "vocabulary" and wanted.vocabulary is not None:
            return torch.as_tensor(list(wanted.vocabulary))
        if axis == "positions" and wanted.positions is not None:
            return torch.arange(wanted.positions + _POSITION_OFFSET.get(model.config.model_type, 0))
        return None

    prefix = f"{model.base_model_prefix}."
    weights = {}
    for name, tensor in model.state_dict().items():
        below = name.removeprefix(prefix)
        place = 0
        if number := re.match(kind.layer, below):
            if int(number[1]) not in layers:
                continue
            place = layers.index(int(number[1]))
            name = name.replace(f".{number[1]}.", f".{place}.", 1)
        for dimension, axis in enumerate(_axes(kind, below)):
            chosen = select(axis, place)
            if chosen is not None:
                tensor = tensor.index_select(dimension, chosen)
        weights[name] = tensor.clone()

    config = copy.deepcopy(model.config)
    sizes = {
        "layers": len(layers),
        "ffn": len(wanted.ffn[0]) if wanted.ffn is not None else old["ffn"],
        "heads": len(wanted.heads[0]) if wanted.heads is not None else old["heads"],
        "width": len(wanted.width) if wanted.width is not None else old["width"],
        "vocabulary": len(wanted.vocabulary) if wanted.vocabulary is not None else old["vocabulary"],
        "positions": len(select("positions", 0)) if wanted.positions is not None else old["positions"],
    }
    for axis, size in sizes.items():
        setattr(config, kind.config[axis], size)
    if wanted.width is not None and hasattr(config, "embedding_size"):
        config.embedding_size = sizes["width"]
    if wanted.vocabulary is not None:
        _move_special_tokens(config, list(wanted.vocabulary))
    smaller = type(model)(config)
    smaller.load_state_dict(weights)
    return smaller.eval()


def _axes(kind: Family, name: str) -> tuple[str, ...]:
    for pattern, axes in kind.axes:
        if re.fullmatch(pattern, name):
            return axes
    raise InputError(f"The weight '{name}' is none that this architecture should have; the model cannot be cut.")


def _check(wanted: Cut, layers: list[int], old: dict[str, int], model_type: str) -> None:
    if not layers or max(layers) >= old["layers"]:
        raise InputError(f"The model has {old['layers']} layers; {layers} cannot stay.")
    for name, parts in (("ffn", wanted.ffn), ("heads", wanted.heads)):
        if parts is not None and (len(parts) != len(layers) or len({len(part) for part in parts}) != 1):
            raise InputError(f"Every one of the {len(layers)} layers must keep the same number of {name}.")
    heads = old["heads"] if wanted.heads is None else len(wanted.heads[0])
    width = old["width"] if wanted.width is None else len(wanted.width)
    if width * old["heads"] != heads * old["width"]:
        raise InputError(
            f"{heads} of {old['heads']} heads go with a width of {heads * old['width'] // old['heads']}, not {width}: "
            f"a {model_type} config has no other size for a head."
        )


def _move_special_tokens(config: Any, kept: list[int]) -> None:
    """Let the config's token ids follow the tokens to their new places."""
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "mask_token_id"):
        value = getattr(config, key, None)
        if isinstance(value, int):
            setattr(config, key, kept.index(value) if value in kept else None)


def evenly(layers: int, count: int) -> list[int]:
    """`count` of the layers, evenly spread, the first and the last among them (the last if only one)."""
    if not 1 <= count <= layers:
        raise InputError(f"A student of {count} layers cannot be made from a model with {layers}.")
    if count == 1:
        return [layers - 1]
    return [round(i * (layers - 1) / (count - 1)) for i in range(count)]


def matching(layer: int, student: int, teacher: int) -> int:
    """The teacher's layer that a student's layer (from 1; 0: the embeddings) learns from: as deep in its model."""
    return round(layer * teacher / student)
