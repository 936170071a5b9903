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

import numpy as np

_ALIGNMENT = 16  # of weights, for the kernels that read them in place


def read(path: Path) -> Any:
    """A file as objects of its schema, with the weights in its buffers, in the tables or behind them as they lie."""
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for buffer in model.buffers:
        data = buffer_data(content, buffer)
        buffer.data, buffer.offset, buffer.size = np.frombuffer(data, np.uint8) if data else None, 0, 0
    return model


def write(path: Path, model: Any, short: bool = True) -> None:
    """Write objects as a file with equal parts stored once and tensor names cut short. Changes the names in `model`, if
    they are to be `short`.

    Weights stand in the tables: interpreters on microcontrollers, and those before TensorFlow Lite 2.14, take no notice
    of weights that lie behind them.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    for tensor in (tensor for graph in model.subgraphs if short for tensor in graph.tensors):
        tensor.name = ";".join(short_names(tensor.name.decode())).encode()
    with _shared(schema):
        path.write_bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def compact(path: Path) -> None:
    """Rewrite a LiteRT file with equal parts stored once and tensor names cut short."""
    write(path, read(path))


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
    """For the time of a block, equal quantization parameters and equal weights are written once per file, weights
    aligned: the schema asks for it, and its Python code does not do it."""
    pack, pack_buffer = schema.QuantizationParametersT.Pack, schema.BufferT.Pack
    written: dict[Any, int] = {}
    vectors: dict[bytes, int] = {}

    def pack_once(self: Any, builder: Any) -> int:
        values = (self.scale, self.zeroPoint, self.min, self.max)
        if self.detailsType:
            return int(pack(self, builder))
        key = (*(None if v is None else tuple(v) for v in values), self.quantizedDimension)
        if key not in written:
            written[key] = pack(self, builder)
        return written[key]

    def pack_aligned(self: Any, builder: Any) -> int:
        data = b"" if self.data is None else bytes(self.data)
        if data and data not in vectors:
            builder.StartVector(1, len(data), _ALIGNMENT)
            builder.head -= len(data)
            builder.Bytes[builder.head : builder.head + len(data)] = data
            vectors[data] = builder.EndVector()
        schema.BufferStart(builder)
        if data:
            schema.BufferAddData(builder, vectors[data])
        return int(schema.BufferEnd(builder))

    schema.QuantizationParametersT.Pack, schema.BufferT.Pack = pack_once, pack_aligned
    try:
        yield
    finally:
        schema.QuantizationParametersT.Pack, schema.BufferT.Pack = pack, pack_buffer
