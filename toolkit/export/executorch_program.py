"""The exported program of a model: what is lowered to an ExecuTorch file, and what its quantized forms are made of.

An ExecuTorch file holds weights as its backend wants them and cannot be quantized. So the float artifact keeps the
program beside it: the graph as JSON and the weights in one safetensors file. `torch.export.save` would write pickles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import InputError

FILE = "program.safetensors"
LENGTH = "length"
BACKEND = "XnnpackBackend"
_GRAPH = "program"
_PARAMETER, _BUFFER, _CONSTANT = "parameter:", "buffer:", "constant:"  # what the names of tensors begin with
TRACED_AT = 32  # tokens: what a dynamic length is while the graph is traced
_LEAST = 2  # tracers make 1 a constant
_PRODUCTS = "padding as an addend, attention as two products"  # a name in transformers' registries


def attend_in_products(model: Any) -> None:
    """Let an encoder's attention be two batched products and a softmax, which XNNPACK has.

    Torch's own attention is decomposed with a guard for rows that mask everything: eight operators more for each layer
    that XNNPACK has not, between which it is left and entered again. Behind `add_padding_mask_once`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **given: Any) -> Any:
        plain = mask is None and not getattr(module, "is_causal", False)
        if not plain and (mask is None or mask.dtype != query.dtype):
            return sdpa_attention_forward(module, query, key, value, mask, **given)
        groups = query.shape[1] // key.shape[1]
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        batch, heads, length, width = query.shape  # one example at a time: a batch of 1
        scaling = given.get("scaling") or width**-0.5
        queries, keys, values = (each.reshape(batch * heads, -1, each.shape[-1]) for each in (query, key, value))
        scores = torch.bmm(queries * scaling, keys.transpose(1, 2))
        if mask is not None:
            scores = scores + mask.reshape(-1, mask.shape[2], mask.shape[3])
        found = torch.bmm(torch.softmax(scores, -1), values)
        return found.reshape(batch, heads, length, -1).transpose(1, 2), None

    before = getattr(model.config, "_attn_implementation", None) if hasattr(model, "config") else None
    if before in AttentionMaskInterface():
        AttentionInterface.register(_PRODUCTS, attention)
        AttentionMaskInterface.register(_PRODUCTS, AttentionMaskInterface()[before])
        model.set_attn_implementation(_PRODUCTS)


def exported(module: Any, inputs: Mapping[str, Any], dynamic: Mapping[str, Sequence[int]], longest: int) -> Any:
    """The exported program of a module. `dynamic` are the axes of each input whose size is the length: from 2 to
    `longest`. Without the stack traces, which name places on this machine."""
    length = torch.export.Dim(LENGTH, min=_LEAST, max=longest) if longest > _LEAST else None
    shapes = {name: dict.fromkeys(dynamic.get(name, ()), length) or None for name in inputs}
    with torch.no_grad():
        program = torch.export.export(
            module, (), kwargs=dict(inputs), dynamic_shapes=shapes if length is not None else None, strict=False
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def inputs_of(program: Any) -> tuple[dict[str, Any], dict[str, list[int]], int]:
    """(inputs that a program can be run with, their dynamic axes, the longest length; 0 if nothing is dynamic)."""
    wanted = program.graph_signature.user_inputs
    given, dynamic = {}, {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in wanted:
            value = node.meta["val"]
            axes = [axis for axis, size in enumerate(value.shape) if not isinstance(size, int)]
            shape = [size if isinstance(size, int) else 0 for size in value.shape]
            given[node.name], dynamic[node.name] = (shape, value.dtype), axes
    most = [int(each.upper) for each in program.range_constraints.values()]
    longest = min(most) if most else 0
    inputs = {
        name: torch.ones([size or min(TRACED_AT, longest) for size in shape], dtype=dtype)
        for name, (shape, dtype) in given.items()
    }
    return inputs, dynamic, longest


def save(program: Any, path: Path) -> None:
    """Write a program: its graph in the header of a safetensors file, its weights and constants in it."""
    from safetensors.torch import save_file
    from torch._export.serde import serialize as serde

    written = serde.serialize(
        program, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
    )
    tensors = {f"{_CONSTANT}{name}": value for name, value in program.constants.items()}
    for name, value in program.state_dict.items():
        tensors[f"{_PARAMETER if isinstance(value, torch.nn.Parameter) else _BUFFER}{name}"] = value
    # Weights that share their memory are written for each name: a file of this format has no two names for one.
    plain = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    save_file(plain, str(path), metadata={_GRAPH: written.exported_program.decode()})


def read(path: Path) -> Any:
    """The program of a file. Raises InputError."""
    from safetensors import SafetensorError, safe_open
    from torch._export.serde import serialize as serde

    if not path.is_file():
        raise InputError(
            f"{path.parent} has no {path.name}, which its quantized forms are made from; export the checkpoint again."
        )
    try:
        with safe_open(str(path), "pt") as stream:
            graph = stream.metadata()[_GRAPH]
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        parameters, buffers, constants = (
            {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
            for kind in (_PARAMETER, _BUFFER, _CONSTANT)
        )
        state = {name: torch.nn.Parameter(value, requires_grad=False) for name, value in parameters.items()}
        return serde.deserialize(serde.SerializedArtifact(graph.encode(), state | buffers, constants, None))
    except (SafetensorError, serde.SerializeError, KeyError, TypeError, ValueError, AssertionError) as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} cannot be read by torch {torch.__version__}: {first}") from error


def lowered(program: Any) -> bytes:
    """The ExecuTorch file of a program: everything that XNNPACK takes for XNNPACK, the rest for portable kernels."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    made = to_edge_transform_and_lower(
        program, transform_passes=[_with_one_size_open], partitioner=[XnnpackPartitioner()]
    )
    return bytes(made.to_executorch().buffer)


def _with_one_size_open(graph_module: Any) -> Any:
    """A pass: views in which one size is dynamic leave that open, as -1, which XNNPACK takes. It takes none with a size
    that is computed, and would be left and entered again at each."""
    from executorch.exir.dialects._ops import ops
    from torch.fx.passes.infra.pass_base import PassResult

    changed = False
    for node in graph_module.graph.nodes:
        if node.target == ops.edge.aten.view_copy.default:
            shape = list(node.meta["val"].shape)
            places = [place for place, size in enumerate(shape) if not isinstance(size, int)]
            if len(places) == 1:
                shape[places[0]] = -1
                node.args, changed = (node.args[0], shape), True
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return PassResult(graph_module, changed)
