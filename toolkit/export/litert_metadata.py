"""What tools of TensorFlow Lite read about a model from its own file: what its inputs and outputs are, how images are
normalized, labels and vocabulary.

The description is a flatbuffer of its own (metadata_schema.fbs of TensorFlow Lite Support) in a buffer of the model,
which the model's list of metadata calls TFLITE_METADATA. The files that it names are a ZIP archive behind the model:
`unzip -l model.tflite` lists them, and interpreters do not look there.

Quantizing keeps both: the numbers are those of the values before an input is quantized.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.tasks.description import ModelDescription, TensorDescription

NAME = b"TFLITE_METADATA"
VOCABULARY = "vocab.txt"
_IDENTIFIER = b"M001"
_PARSER = "1.1.0"  # the oldest reader that knows all of it: BertTokenizerOptions came with it
_AXIS_LABELS, _VOCABULARY_FILE = 2, 5  # of AssociatedFileType
_IMAGE = 2  # of ContentProperties
_COLOR = {3: 1, 1: 2}  # channels → ColorSpaceType
_NORMALIZATION, _BERT_TOKENIZER = 1, 4  # of ProcessUnitOptions
_FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # that ZIP knows: the same files give the same bytes


def add(model: Any, description: ModelDescription) -> dict[str, bytes]:
    """Put a description into a model, as objects of its schema. Returns the files that belong behind it, by name."""
    graph = model.subgraphs[0]
    signature = next(entry for entry in model.signatureDefs if entry.subgraphIndex == 0)
    names = {int(entry.tensorIndex): entry.name.decode() for entry in (*signature.inputs, *signature.outputs)}
    inputs = [description.inputs.get(names[int(i)]) or TensorDescription(names[int(i)]) for i in graph.inputs]
    outputs = [description.output] * len(graph.outputs)
    _put(model, _Writer().model(description, inputs, outputs))
    return _files(description)


def carry(source: Any, model: Any) -> None:
    """Put what the file `source` says of itself into `model`, both as objects."""
    entry = next((entry for entry in source.metadata or () if entry.name == NAME), None)
    if entry is not None:
        _put(model, bytes(source.buffers[entry.buffer].data))


def _put(model: Any, content: bytes) -> None:
    from ai_edge_litert import schema_py_generated as schema

    entry = next((entry for entry in model.metadata or () if entry.name == NAME), None)
    if entry is None:
        entry = schema.MetadataT()
        entry.name, entry.buffer = NAME, len(model.buffers)
        model.metadata = [*(model.metadata or ()), entry]
        model.buffers.append(schema.BufferT())
    model.buffers[entry.buffer].data = np.frombuffer(content, np.uint8)


def _files(description: ModelDescription) -> dict[str, bytes]:
    tensors = (*description.inputs.values(), description.output)
    lines = {each.labels_file: each.labels for each in tensors} | {VOCABULARY: description.vocabulary}
    return {name: "".join(f"{line}\n" for line in found).encode() for name, found in lines.items() if found}


def append_files(path: Path, files: Mapping[str, bytes]) -> None:
    """Append files to a model as a ZIP archive, stored as they are; nothing if there are none."""
    if not files:
        return
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content, "a") as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(name, _FIRST_DAY)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    path.write_bytes(content.getvalue())


def appended_files(path: Path) -> dict[str, bytes]:
    """The files behind a model; none if there is no archive."""
    if not zipfile.is_zipfile(path):
        return {}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


class _Writer:
    """Writes the tables of metadata_schema.fbs that we use. Numbers of fields are those of the schema."""

    def __init__(self) -> None:
        import flatbuffers

        self.builder = flatbuffers.Builder(1024)

    def model(
        self, described: ModelDescription, inputs: Sequence[TensorDescription], outputs: Sequence[TensorDescription]
    ) -> bytes:
        vocabulary = self._associated(VOCABULARY, "the tokens, one a line", _VOCABULARY_FILE, described.vocabulary)
        tokenizer = self._tables([vocabulary]) if vocabulary else None
        unit = None
        if tokenizer is not None:
            unit = self._tables([self._table(2, {0: ("byte", _BERT_TOKENIZER), 1: self._table(1, {0: tokenizer})})])
        graph = self._table(10, {
            2: self._tables([self._tensor(each) for each in inputs]),
            3: self._tables([self._tensor(each) for each in outputs]),
            4: self._tables([vocabulary]) if vocabulary else None,
            5: unit,
        })  # fmt: skip
        whole = self._table(8, {
            0: self._text(described.name), 1: self._text(described.description), 3: self._tables([graph]),
            7: self._text(_PARSER),
        })  # fmt: skip
        self.builder.Finish(whole, file_identifier=_IDENTIFIER)
        return bytes(self.builder.Output())

    def _tensor(self, described: TensorDescription) -> int:
        content = unit = stats = None
        if described.channels:
            properties = self._table(2, {0: ("byte", _COLOR.get(described.channels, 0))})
            content = self._table(3, {0: ("byte", _IMAGE), 1: properties})
        if described.mean:
            options = self._table(2, {0: self._floats(described.mean), 1: self._floats(described.std)})
            unit = self._tables([self._table(2, {0: ("byte", _NORMALIZATION), 1: options})])
        if described.low:
            stats = self._table(2, {0: self._floats(described.high), 1: self._floats(described.low)})
        said = f"what the numbers of {described.name} are, one a line"
        labels = self._associated(described.labels_file, said, _AXIS_LABELS, described.labels)
        return self._table(7, {
            0: self._text(described.name), 1: self._text(described.description), 3: content, 4: unit, 5: stats,
            6: self._tables([labels]) if labels else None,
        })  # fmt: skip

    def _associated(self, name: str, description: str, kind: int, lines: Sequence[str]) -> int | None:
        if not lines:
            return None
        return self._table(5, {0: self._text(name), 1: self._text(description), 2: ("byte", kind)})

    def _table(self, size: int, fields: Mapping[int, Any]) -> int:
        """A table of `size` fields: by number an offset, ("byte", value), or None for one that is left out."""
        self.builder.StartObject(size)
        for number, value in fields.items():
            if isinstance(value, tuple):
                self.builder.PrependUint8Slot(number, value[1], 0)
            elif value is not None:
                self.builder.PrependUOffsetTRelativeSlot(number, value, 0)
        return int(self.builder.EndObject())

    def _text(self, text: str) -> int | None:
        return int(self.builder.CreateString(text)) if text else None

    def _tables(self, offsets: Sequence[int]) -> int:
        self.builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())

    def _floats(self, values: Sequence[float]) -> int:
        return int(self.builder.CreateNumpyVector(np.asarray(values, np.float32)))
