"""Image to the tensor of a model: decode, resize, crop, scale, normalize. numpy + Pillow only.

The steps and their arithmetic are those of the processors that transformers ships for PyTorch's image models, so that
weights trained with these see what they are used to.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.engines import Arrays
from toolkit.errors import InputError, MissingDependencyError
from toolkit.runtime.encoder import Encoder

NAME = "pixel_values"
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers, in its order
# What `Image.open` may try: not the formats that call other programs or that nobody photographs with.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MOST_PIXELS = 200_000_000  # of an image: a few kilobytes can claim to be much larger
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


def _pillow() -> Any:
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingDependencyError(
            "Reading images needs the package 'pillow', which is not installed. Install it with: pip install pillow"
        ) from error
    return Image, ImageOps


def settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A checked preprocessing spec, with what it leaves out filled in:

    - `channels`: 3 for RGB, 1 for grey;
    - `resize`: `{"height", "width"}`, or `{"shortest_edge"}` which keeps the proportions; None: not at all;
    - `resample`: one of `RESAMPLING`;
    - `crop`: `{"height", "width"}` around the middle, filled up with zeros if need be; None: not at all;
    - `scale`: what the values from 0 to 255 are multiplied by; `mean`, `std`: then subtracted and divided by, per
      channel.

    Raises InputError.
    """
    known = {"channels", "resize", "resample", "crop", "scale", "mean", "std"}
    unknown = sorted(set(spec) - known)
    if unknown:
        raise InputError(f"The image preprocessing has no setting '{unknown[0]}'; it has: {', '.join(sorted(known))}.")
    channels = spec.get("channels", 3)
    if channels not in (1, 3):
        raise InputError(f"The image preprocessing gives 1 or 3 channels, not {channels}.")
    full = {
        "channels": channels,
        "resize": spec.get("resize"),
        "resample": spec.get("resample", "bilinear"),
        "crop": spec.get("crop"),
        "scale": float(spec.get("scale", 1 / 255)),
        "mean": _per_channel(spec.get("mean", 0.0), channels, "mean"),
        "std": _per_channel(spec.get("std", 1.0), channels, "std"),
    }
    if full["resample"] not in RESAMPLING:
        raise InputError(f"There is no resampling '{full['resample']}'; known: {', '.join(RESAMPLING)}.")
    for name, shapes in (("resize", ({"height", "width"}, {"shortest_edge"})), ("crop", ({"height", "width"},))):
        sizes = full[name]
        if sizes is not None and (
            not isinstance(sizes, Mapping)
            or set(sizes) not in shapes
            or not all(isinstance(size, int) and 0 < size <= 16384 for size in sizes.values())
        ):
            raise InputError(f"The image preprocessing's '{name}' is not understood: {sizes}.")
    if 0 in full["std"]:
        raise InputError("The image preprocessing divides by a std of 0.")
    if full["crop"] is None and (full["resize"] is None or "shortest_edge" in full["resize"]):
        raise InputError("The image preprocessing must end in one size: give `crop`, or `resize` by height and width.")
    return full


def _per_channel(value: Any, channels: int, name: str) -> list[float]:
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * channels
    if len(values) != channels or not all(isinstance(each, (int, float)) and math.isfinite(each) for each in values):
        raise InputError(f"The image preprocessing's '{name}' must be {channels} numbers, not {value}.")
    return [float(each) for each in values]


def decode(example: Any, channels: int = 3) -> NDArray[np.uint8]:
    """An image as uint8[height, width, channels], turned upright: a path, a file's bytes, a Pillow image, or an array
    [height, width] or [height, width, 1, 3 or 4].

    Transparent parts are laid on white; 16 bits are scaled to 8. Raises InputError for what is no image.
    """
    if isinstance(example, np.ndarray):
        return _from_array(example, channels)
    image_module, operations = _pillow()
    what = "the image"
    try:
        if isinstance(example, (str, Path)):
            what = str(example)
            with image_module.open(example, formats=_FORMATS) as opened:
                return _pixels(opened, channels, image_module, operations, what)
        if isinstance(example, (bytes, bytearray)):
            with image_module.open(io.BytesIO(example), formats=_FORMATS) as opened:
                return _pixels(opened, channels, image_module, operations, what)
        if isinstance(example, image_module.Image):
            return _pixels(example, channels, image_module, operations, what)
    except FileNotFoundError as error:
        raise InputError(f"Image {what} does not exist.") from error
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        raise InputError(f"{what} cannot be read as an image: {str(error).splitlines()[0]}") from error
    raise InputError(f"An image is a path, bytes, a Pillow image or an array; got {type(example).__name__}.")


def _pixels(image: Any, channels: int, image_module: Any, operations: Any, what: str) -> NDArray[np.uint8]:
    if image.width * image.height > _MOST_PIXELS:
        raise InputError(f"{what} has {image.width} x {image.height} pixels; more than {_MOST_PIXELS:,} are refused.")
    image.load()
    image = operations.exif_transpose(image)
    if image.mode in _SIXTEEN_BITS:
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = image_module.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise InputError(f"{what} holds floating-point values, whose range nobody knows; convert it to 8 bits.")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = image_module.new("RGBA", image.size, (255, 255, 255, 255))
        image = image_module.alpha_composite(white, image).convert("RGB")
    array = np.asarray(image.convert("RGB" if channels == 3 else "L"))
    return array if channels == 3 else array[:, :, None]


def _from_array(array: NDArray[Any], channels: int) -> NDArray[np.uint8]:
    if array.dtype != np.uint8:
        raise InputError(f"An array of pixels is uint8; got {array.dtype}.")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(f"An array of pixels is [height, width] or [height, width, 1, 3 or 4]; got {array.shape}.")
    if array.shape[2] == channels:
        return np.ascontiguousarray(array)
    image_module, operations = _pillow()
    image = image_module.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    return _pixels(image, channels, image_module, operations, "the array")


def resized(pixels: NDArray[np.uint8], size: Mapping[str, int] | None, resample: str) -> NDArray[np.uint8]:
    """Pixels [height, width, channels] at another size, by Pillow's resampling."""
    if size is None:
        return pixels
    height, width = pixels.shape[:2]
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        # The longer edge is cut to whole pixels, not rounded, and never below one.
        new = (short, max(1, int(short * width / height))) if height <= width else (
            max(1, int(short * height / width)), short
        )  # fmt: skip
    else:
        new = (size["height"], size["width"])
    if new == (height, width):
        return pixels
    image_module, _ = _pillow()
    image = image_module.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    made = np.asarray(image.resize((new[1], new[0]), resample=RESAMPLING.index(resample)))
    return made[:, :, None] if made.ndim == 2 else made


def cropped(pixels: NDArray[np.uint8], size: Mapping[str, int] | None) -> NDArray[np.uint8]:
    """The middle of pixels [height, width, channels]; zeros around it where there is not enough."""
    if size is None:
        return pixels
    height, width = size["height"], size["width"]
    more = [max(0, wanted - have) for wanted, have in ((height, pixels.shape[0]), (width, pixels.shape[1]))]
    if any(more):
        before = [-(-extra // 2) for extra in more]
        pixels = np.pad(pixels, [(b, extra - b) for b, extra in zip(before, more, strict=True)] + [(0, 0)])
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return pixels[top : top + height, left : left + width]


class ImageEncoder(Encoder):
    """The preprocessing that `settings` describes: an image → float32[1, channels, height, width]."""

    def __init__(self, spec: Mapping[str, Any], name: str = NAME) -> None:
        self.spec = settings(spec)
        self.name = name
        scaled = (np.arange(256, dtype=np.float64) * self.spec["scale"]).astype(np.float32)
        mean = np.asarray(self.spec["mean"], dtype=np.float32)[:, None]
        std = np.asarray(self.spec["std"], dtype=np.float32)[:, None]
        self._values = (scaled[None] - mean) / std  # of each channel's 256 levels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what the model sees."""
        last = self.spec["crop"] or self.spec["resize"]
        return last["height"], last["width"]

    @property
    def step(self) -> float:
        """The largest difference that one level of 256 makes in a channel."""
        return float(np.abs(np.diff(self._values, axis=1)).max())

    def seen(self, example: Any) -> NDArray[np.uint8]:
        """What the model sees of an image, uint8[height, width, channels]."""
        pixels = decode(example, self.spec["channels"])
        return cropped(resized(pixels, self.spec["resize"], self.spec["resample"]), self.spec["crop"])

    def steps(self, example: Any) -> dict[str, Any]:
        decoded = decode(example, self.spec["channels"])
        scaled = resized(decoded, self.spec["resize"], self.spec["resample"])
        return {"decode": decoded, "resize": scaled, "crop": cropped(scaled, self.spec["crop"])}

    def normalized(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels as the model's values, float32[channels, height, width]."""
        channels = [self._values[channel][pixels[:, :, channel]] for channel in range(self.spec["channels"])]
        return np.stack(channels)

    def __call__(self, example: Any) -> Arrays:
        return {self.name: self.normalized(self.seen(example))[None]}

    def sample(self, rows: int, length: int | None = None) -> Arrays:
        return {self.name: np.zeros((rows, self.spec["channels"], *self.size), dtype=np.float32)}

    def axes(self) -> dict[str, list[str | int]]:
        return {self.name: ["batch", self.spec["channels"], *self.size]}

    def record(self, arrays: Mapping[str, Any], folder: Path, name: str) -> dict[str, Any]:
        """The mean of every channel over an 8 x 8 grid: a file for each example would outweigh a small model."""
        return {self.name: _grid(arrays[self.name][0]).round(5).tolist()}

    def same(self, arrays: Mapping[str, Any], recorded: Mapping[str, Any], folder: Path) -> bool:
        """To one level of 256 in each cell of the grid: other versions of Pillow round otherwise."""
        wanted = np.asarray(recorded[self.name])
        found = _grid(arrays[self.name][0])
        return found.shape == wanted.shape and bool(np.abs(found - wanted).max() <= self.step + 1e-5)


def _grid(values: NDArray[np.float32], cells: int = 8) -> NDArray[np.float64]:
    """Means of [channels, height, width] over a grid, float64[channels, cells, cells]; of fewer where there are fewer
    pixels."""
    rows = np.array_split(np.arange(values.shape[1]), min(cells, values.shape[1]))
    columns = np.array_split(np.arange(values.shape[2]), min(cells, values.shape[2]))
    wide = values.astype(np.float64)
    return np.asarray(
        [[[channel[np.ix_(r, c)].mean() for c in columns] for r in rows] for channel in wide], dtype=np.float64
    )
