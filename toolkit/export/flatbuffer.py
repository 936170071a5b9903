"""LiteRT files without repetition: what quantization and several signatures make a converter write many times.

Every signature's graph has its own copy of the scales and zero points of the weights that all graphs share and of the
beginning of the position table, and every tensor has the full path of Python classes that it came from: a quarter of a
small encoder's file. A flatbuffer may point at one place from many, so equal parts are written once. Operators and
answers stay the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ALIGNMENT = 16  # of weights, for the kernels that read them in place
_SMALL = 1024  # bytes: metadata and the like stay in the tables


def compact(path: Path) -> None:
    """Rewrite a LiteRT file with equal quantization parameters stored once and tensor names cut short."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    content = path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    weights: dict[int, bytes] = {}
    for index, buffer in enumerate(model.buffers):
        data = buffer_data(content, buffer)
        if len(data) >= _SMALL:
            # Behind the tables, where they can be aligned; the numbers are put in when it is known where.
            weights[index] = data
            buffer.data, buffer.offset, buffer.size = None, 1, 1
        elif data:
            buffer.data, buffer.offset, buffer.size = list(data), 0, 0
    for graph in model.subgraphs:
        for tensor in graph.tensors:
            tensor.name = ";".join(short_names(tensor.name.decode())).encode()
    with _shared(schema):
        tables = flatbuffer_utils.convert_object_to_bytearray(model)
    end = _aligned(len(tables))
    places: dict[int, int] = {}
    for index, data in sorted(weights.items(), key=lambda item: (-len(item[1]), item[0])):
        # Each signature has its own slice of the position table: the beginning of the longest one's.
        longer = next((other for other in places if weights[other].startswith(data)), None)
        if longer is not None:
            places[index] = places[longer]
            continue
        places[index] = end
        end = _aligned(end + len(data))
    whole = bytearray(end)
    whole[: len(tables)] = tables
    packed = schema.Model.GetRootAs(whole, 0)
    for index, data in weights.items():
        flatbuffer_utils.update_packed_buffer(packed.Buffers(index), offset=places[index], size=len(data))
        whole[places[index] : places[index] + len(data)] = data
    path.write_bytes(whole)


def buffer_data(content: bytes, buffer: Any) -> bytes:
    """A buffer's bytes, which lie in its table or behind all tables."""
    if buffer.offset > 1:
        return content[buffer.offset : buffer.offset + buffer.size]
    return b"" if buffer.data is None else bytes(buffer.data)


def buffer_size(buffer: Any) -> int:
    """A buffer's number of bytes, wherever they lie."""
    if buffer.offset > 1:
        return int(buffer.size)
    return 0 if buffer.data is None else len(buffer.data)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT


def short_name(name: str) -> str:
    """A tensor's name with the attributes of the modules that it came from, without their classes.

    `a.b.BertModel_bert/a.b.BertEncoder_encoder/add;` → `bert/encoder/add`. Of operators that became one, the first's.
    """
    return next(iter(short_names(name)), "")


def short_names(name: str) -> list[str]:
    """The names of all operators that became the one that computes a tensor, each once, shortened."""
    found = [_shortened(part) for part in name.split(";") if not part.isdigit()]
    return list(dict.fromkeys(each for each in found if each))


def _shortened(name: str) -> str:
    parts = []
    for part in name.split("/"):
        last = part.rpartition(".")[2]
        _, sign, attribute = last.partition("_")
        parts.append(attribute if "." in part and sign and last[:1].isupper() else last)
    return "/".join(part for part in parts if part and part != "Logits")


@contextlib.contextmanager
def _shared(schema: Any) -> Iterator[None]:
    """For the time of a block, equal quantization parameters are written once per file."""
    pack = schema.QuantizationParametersT.Pack
    written: dict[Any, int] = {}

    def pack_once(self: Any, builder: Any) -> int:
        values = (self.scale, self.zeroPoint, self.min, self.max)
        if self.detailsType:
            return int(pack(self, builder))
        key = (*(None if v is None else tuple(v) for v in values), self.quantizedDimension)
        if key not in written:
            written[key] = pack(self, builder)
        return written[key]

    schema.QuantizationParametersT.Pack = pack_once
    try:
        yield
    finally:
        schema.QuantizationParametersT.Pack = pack
