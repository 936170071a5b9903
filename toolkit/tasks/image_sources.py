"""Where labelled images come from: a folder per class, a table of paths or bytes, IDX files, a saved data set."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit import data
from toolkit.errors import InputError
from toolkit.runtime import image

COLUMNS = ("image", "path", "file", "filename", "file_name", "image_path", "filepath")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
STORED = "images"  # folder of the prepared data
_BYTES = 0x08  # the type byte of IDX files whose values are bytes
_STARTS = {
    b"\xff\xd8": ".jpg", b"GIF8": ".gif", b"BM": ".bmp", b"RIFF": ".webp", b"II*\0": ".tiff", b"MM\0*": ".tiff"
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """An image before it is checked: what the decoder takes, its label, and what to call it."""

    content: Any
    label: str
    name: str
    path: Path | None  # None: it is in no file of its own


def find(path: Path, parameters: Mapping[str, Any]) -> Iterator[Found]:
    """All images of a folder, a table, an IDX file or a saved data set. `parameters` are those of `prepare`. Raises
    InputError."""
    if path.is_dir():
        yield from _of_dataset(path) if (path / "dataset_info.json").is_file() else _of_folder(path)
    elif is_idx(path):
        yield from _of_idx(path)
    else:
        yield from _of_table(path, parameters)


def _of_folder(path: Path) -> Iterator[Found]:
    """A folder per class."""
    classes = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    if not classes:
        raise InputError(f"{path} has no folders; --data takes a folder with one folder of images per class.")
    for folder in classes:
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                yield Found(file, folder.name, str(file.relative_to(path)), file.resolve())


def _of_table(path: Path, parameters: Mapping[str, Any]) -> Iterator[Found]:
    """A row per image: its path, from where the table lies, or its bytes."""
    rows = data.where(data.read_rows(path), path, [tuple(pair) for pair in parameters["where"]])
    images = data.find_column(path, rows, parameters["image_column"], COLUMNS, "image", "--option image_column=")
    labels = data.find_column(path, rows, parameters["label_column"], data.LABEL_COLUMNS, "label")
    for number, row in enumerate(rows, start=1):
        label, value = row[labels], row[images]
        if data.is_missing(label):
            if parameters["drop_missing"]:
                continue
            raise InputError(
                f"{path}: row {number} has no label. Fill it in, or leave such rows out with --drop-missing."
            )
        if isinstance(value, Mapping) and value.get("bytes"):
            content = bytes(value["bytes"])
            yield Found(content, data.normalize_label(label), f"row {number}", None)
        else:
            file = path.parent / str(value["path"] if isinstance(value, Mapping) else value)
            yield Found(file, data.normalize_label(label), str(value), file.resolve())


def _of_dataset(path: Path) -> Iterator[Found]:
    """A data set that `datasets` saved to disk."""
    import datasets

    table = datasets.load_from_disk(str(path))
    columns = table.features
    name = next((each for each, kind in columns.items() if isinstance(kind, datasets.Image)), None)
    label = next((each for each in columns if each.lower() in data.LABEL_COLUMNS), None)
    if name is None or label is None:
        raise InputError(f"{path} has no column of images, or none of labels; its columns are: {', '.join(columns)}.")
    names = getattr(columns[label], "names", None)
    for number, row in enumerate(table.cast_column(name, datasets.Image(decode=False)), start=1):
        value = row[label]
        said = names[value] if names else data.normalize_label(value)
        content = row[name]["bytes"] or Path(row[name]["path"]).read_bytes()
        yield Found(content, said, f"row {number}", None)


def is_idx(path: Path) -> bool:
    """Whether a file is called as the IDX files of MNIST and its kin are."""
    return "-idx" in path.name and "ubyte" in path.name


def labels_beside(path: Path) -> Path:
    """The IDX file of the labels of an IDX file of images. Raises InputError."""
    beside = path.with_name(path.name.replace("images-idx3", "labels-idx1"))
    if beside == path or not beside.is_file():
        raise InputError(f"{path}: the labels that belong to it are not there ({beside.name}).")
    return beside


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An IDX file's array. Raises InputError."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read()
    except (OSError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise InputError(f"{path} is not an IDX file of bytes.")
    count = content[3]
    shape = struct.unpack(f">{count}I", content[4 : 4 + 4 * count]) if len(content) >= 4 + 4 * count else (0,)
    array = np.frombuffer(content, dtype=np.uint8, offset=min(len(content), 4 + 4 * count))
    if array.size != int(np.prod(shape)):
        raise InputError(f"{path} is damaged: {array.size:,} values, its header describes {shape}.")
    return array.reshape(shape)


def _of_idx(path: Path) -> Iterator[Found]:
    pixels, labels = _read_idx(path), _read_idx(labels_beside(path))
    if pixels.ndim != 3 or len(pixels) != len(labels):
        raise InputError(f"{path}: an array {pixels.shape} of images, and {len(labels)} labels.")
    for number, (array, label) in enumerate(zip(pixels, labels, strict=True), start=1):
        yield Found(array, str(int(label)), f"image {number}", None)


def usable(found: Sequence[Found], skip_corrupt: bool, dropped: data.Dropped, path: Path, context: Any) -> list[Found]:
    """Images that can be decoded, each once, and none with two labels. Raises InputError for corrupt ones."""
    corrupt: list[str] = []
    first: dict[str, Found] = {}
    conflicting: set[str] = set()
    for number, each in enumerate(found):
        if number % 200 == 0:
            context.progress(number, len(found), "decoding every image once")
        try:
            pixels = image.decode(each.content)
        except InputError as error:
            corrupt.append(f"{each.name} ({str(error).removeprefix(f'{each.path} ')})")
            continue
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        if digest in first:
            dropped.counts["duplicate image"] += 1
            if first[digest].label != each.label:
                conflicting.add(digest)
            continue
        first[digest] = each
    if corrupt and not skip_corrupt:
        shown = "; ".join(corrupt[:5]) + ("; …" if len(corrupt) > 5 else "")
        raise InputError(
            f"{path}: {len(corrupt)} of {len(found)} images cannot be decoded: {shown}. Repair them, or leave them out "
            "with --option skip_corrupt=true."
        )
    if corrupt:
        dropped.counts["corrupt image"] += len(corrupt)
    if conflicting:
        dropped.counts["same image with two labels"] += len(conflicting)
    kept = [each for digest, each in first.items() if digest not in conflicting]
    if not kept:
        raise InputError(f"{path}: no usable image is left ({dropped.as_dict()}).")
    return kept


def store(each: Found, output: Path, number: int) -> str:
    """Write an image into the prepared data, which then holds whatever becomes of the user's files; its name there."""
    folder = output / STORED
    folder.mkdir(exist_ok=True)
    if each.path is not None:
        name = f"{STORED}/{number:06d}{each.path.suffix.lower()}"
        shutil.copyfile(each.path, output / name)
        return name
    content = each.content
    if isinstance(content, bytes):
        name = f"{STORED}/{number:06d}{_suffix(content)}"
        (output / name).write_bytes(content)
        return name
    from PIL import Image

    name = f"{STORED}/{number:06d}.png"
    Image.fromarray(content).save(output / name, compress_level=1)
    return name


def _suffix(content: bytes) -> str:
    """By the first bytes of an image file; PNG where they are others."""
    starts = {
        b"\xff\xd8": ".jpg",
        b"GIF8": ".gif",
        b"BM": ".bmp",
        b"RIFF": ".webp",
        b"II*\0": ".tiff",
        b"MM\0*": ".tiff",
    }
    return next((suffix for start, suffix in starts.items() if content.startswith(start)), ".png")
