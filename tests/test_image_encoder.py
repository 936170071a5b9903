"""Images on the device: the tensors are those of the processors that models are trained with, to one level of 256."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.errors import InputError
from toolkit.runtime.image import ImageEncoder, decode, settings
from toolkit.tasks.image_classification import TASK, smoothness

SPEC = {"resize": {"height": 8, "width": 8}}
# What transformers writes for three families of models: a square, the shorter edge and a crop, other filters.
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("ViTImageProcessor", {
        "size": {"height": 48, "width": 48}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
    }),
    "mobilenet": ("MobileNetV2ImageProcessor", {
        "size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_center_crop": True,
    }),
    "levit": ("MobileNetV1ImageProcessor", {
        "size": {"shortest_edge": 33}, "crop_size": {"height": 37, "width": 29}, "do_center_crop": True, "resample": 3,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }),
}  # fmt: skip


def photographs() -> list[Any]:
    """Real photographs, cut into parts."""
    from PIL import Image
    from skimage import data

    parts = []
    for pixels in (data.astronaut(), data.chelsea(), data.coffee()):
        for top in range(0, pixels.shape[0] - 100, 101):
            for left in range(0, pixels.shape[1] - 170, 97):
                parts.append(Image.fromarray(pixels[top : top + 100, left : left + 97 + top // 7]))
    return parts


def as_file(image: Any, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def kinds() -> Iterator[tuple[str, bytes]]:
    """The photographs in everything that cameras and scanners write."""
    from PIL import Image

    for number, photo in enumerate(photographs()):
        yield "rgb", as_file(photo, "PNG")
        yield "jpeg", as_file(photo, "JPEG", quality=90)
        yield "grey", as_file(photo.convert("L"), "PNG")
        yield "palette", as_file(photo.quantize(64), "PNG")
        yield "gif", as_file(photo, "GIF")
        yield "cmyk", as_file(photo.convert("CMYK"), "JPEG")
        yield "bits", as_file(photo.convert("1"), "PNG")
        yield "webp", as_file(photo, "WEBP", lossless=True)
        alpha = photo.copy()
        alpha.putalpha(photo.convert("L").rotate(90).resize(photo.size))
        yield "alpha", as_file(alpha, "PNG")
        yield "grey alpha", as_file(alpha.convert("LA"), "PNG")
        see_through = photo.quantize(32)
        yield "transparent palette", as_file(see_through, "PNG", transparency=number % 32)
        exif = Image.Exif()
        exif[0x0112] = number % 8 + 1
        yield "turned", as_file(photo, "JPEG", exif=exif)
        wide = np.asarray(photo.convert("L")).astype(np.uint16) * 257 + number
        yield "16 bits", as_file(Image.fromarray(wide), "PNG")
    for size in ((1, 1), (1, 300), (300, 1), (2, 3), (8192, 8192)):
        yield f"{size[0]} x {size[1]}", as_file(photographs()[0].resize(size), "PNG", compress_level=1)


def by_transformers(content: bytes, processor: Any) -> Any:
    """What the processor gives: of 16 bits it keeps the lower ones, so it gets the upper ones as 8."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    return processor(image, do_convert_rgb=True, return_tensors="np")["pixel_values"][0]


@pytest.mark.parametrize("name", PROCESSORS)
def test_tensors_are_the_processors(name: str, tmp_path: Path) -> None:
    import transformers

    kind, options = PROCESSORS[name]
    processor = getattr(transformers, f"{kind}Pil")(**options)
    processor.save_pretrained(tmp_path)
    encoder = TASK.encoder(tmp_path, {})
    assert isinstance(encoder, ImageEncoder)
    seen: dict[str, int] = {}
    with warnings.catch_warnings(action="ignore"):
        for what, content in kinds():
            if what == "1 x 300" or what == "300 x 1":  # transformers fails where an edge becomes shorter than a pixel
                assert np.isfinite(encoder(content)["pixel_values"]).all()
                continue
            ours, theirs = encoder(content)["pixel_values"][0], by_transformers(content, processor)
            assert ours.shape == theirs.shape, what
            assert np.abs(ours - theirs).max() <= encoder.step + 1e-5, what
            seen[what] = seen.get(what, 0) + 1
    assert sum(seen.values()) >= 500
    assert len(seen) == 16


def test_a_path_bytes_an_image_and_an_array_are_the_same(tmp_path: Path) -> None:
    photo = photographs()[3]
    path = tmp_path / "ein Bild ü 🙂.png"
    photo.save(path)
    encoder = ImageEncoder({"resize": {"height": 20, "width": 30}})
    wanted = encoder(path)["pixel_values"]
    assert wanted.shape == (1, 3, 20, 30) and wanted.dtype == np.float32
    for example in (str(path), path.read_bytes(), photo, np.asarray(photo)):
        assert np.array_equal(encoder(example)["pixel_values"], wanted)
    grey = ImageEncoder({"resize": {"height": 20, "width": 30}, "channels": 1})
    assert np.array_equal(grey(photo)["pixel_values"], grey(np.asarray(photo))["pixel_values"])
    flat = photo.convert("L")
    assert np.array_equal(grey(flat)["pixel_values"], grey(np.asarray(flat))["pixel_values"])


def test_grey_becomes_three_equal_channels_and_colour_becomes_grey() -> None:
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colour = ImageEncoder(SPEC)(pixels)["pixel_values"][0]
    assert np.array_equal(colour[0], colour[1]) and np.array_equal(colour[1], colour[2])
    assert colour[0] == pytest.approx(pixels / 255)


@pytest.mark.parametrize("example", [None, 3, ["a.png"], np.zeros((4, 4)), np.zeros((4, 4, 2), np.uint8), b"no image"])
def test_what_is_no_image_is_refused(example: Any) -> None:
    with pytest.raises(InputError):
        ImageEncoder(SPEC)(example)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = as_file(photographs()[0], "PNG")
    for name, content in (("cut.png", whole[: len(whole) // 2]), ("empty.png", b""), ("text.png", b"hello" * 100)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name):
            decode(tmp_path / name)
    with pytest.raises(InputError, match=r"away\.png does not exist"):
        decode(tmp_path / "away.png")


def test_a_file_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    """A few bytes that ask for gigabytes."""
    import struct
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with warnings.catch_warnings(action="ignore"), pytest.raises(InputError, match=r"bomb|refused"):
        decode(bomb)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"resize": {"height": 8, "width": 8}, "colour": 1}, "has no setting 'colour'"),
        ({"resize": {"shortest_edge": 8}}, "must end in one size"),
        ({"resize": {"height": 0, "width": 8}}, "'resize' is not understood"),
        ({"crop": {"shortest_edge": 8}}, "'crop' is not understood"),
        ({**SPEC, "channels": 2}, "1 or 3 channels, not 2"),
        ({**SPEC, "mean": [0.5, 0.5]}, "'mean' must be 3 numbers"),
        ({**SPEC, "std": 0}, "divides by a std of 0"),
        ({**SPEC, "resample": "best"}, "no resampling 'best'"),
    ],
)
def test_a_spec_that_cannot_be_carried_out_is_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        settings(spec)


def test_a_processor_with_unknown_steps_is_refused(tmp_path: Path) -> None:
    config = {"image_processor_type": "X", "size": {"height": 8, "width": 8}, "do_pan_and_scan": True}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"does something that is not known here \(do_pan_and_scan\)"):
        TASK.encoder(tmp_path, {})


def test_golden_tensors_tell_a_fault_from_rounding(tmp_path: Path) -> None:
    encoder = ImageEncoder({"resize": {"height": 32, "width": 32}})
    arrays = encoder(photographs()[0])
    recorded = json.loads(json.dumps(encoder.record(arrays, tmp_path, "01")))
    assert encoder.same(arrays, recorded, tmp_path)
    nearly = {"pixel_values": arrays["pixel_values"] + np.float32(0.9 / 255)}
    assert encoder.same(nearly, recorded, tmp_path)
    swapped = {"pixel_values": arrays["pixel_values"][:, ::-1]}
    shifted = {"pixel_values": np.roll(arrays["pixel_values"], 2, axis=3)}
    assert not encoder.same(swapped, recorded, tmp_path)
    assert not encoder.same(shifted, recorded, tmp_path)


def test_noise_is_told_from_photographs() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert abs(smoothness(noise)) < 0.1
    assert min(smoothness(np.asarray(photo)) for photo in photographs()) > 0.5
    assert smoothness(np.full((8, 8, 3), 7, np.uint8)) == 1.0
