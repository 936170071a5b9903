"""Augmentation of images: mirrored, cropped, mixed.

Single images are changed as the model sees them, uint8 behind the encoder's resize and crop and before it normalizes: a
setting then means the same for an image of any size, and what is filled up is black, as where the encoder crops.
Enlarging a part of it shows no detail that the resized image has not.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from toolkit.engines import Arrays
from toolkit.runtime import image
from toolkit.tasks.augmentation import Augmentation, Soft, mixed_labels, mixup

Pixels = NDArray[np.uint8]  # [height, width, channels]
_ASPECT = 4 / 3  # the most that a resized crop is stretched in one direction


class ImageAugmentation(Augmentation):
    """`flip`: the chance of being mirrored left to right; `crop`: the most by which an image is moved, as a share of
    its size (He et al., 2016); `resized_crop`: the least share of the area that is cut out and enlarged (Szegedy et
    al., 2015); `mixup` (Zhang et al., 2018), `cutmix` (Yun et al., 2019): alpha of the Beta distribution of the shares.
    With both, each batch takes one."""

    flip: float = Field(0.0, ge=0, le=1)
    crop: float = Field(0.0, ge=0, le=0.5)
    resized_crop: float | None = Field(None, gt=0, lt=1)
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)


def changed(pixels: Pixels, settings: ImageAugmentation, resample: str, generator: np.random.Generator) -> Pixels:
    """One image, of the same size, after what the settings ask for."""
    if settings.resized_crop is not None:
        pixels = resized_crop(pixels, settings.resized_crop, resample, generator)
    if settings.crop:
        pixels = moved(pixels, settings.crop, generator)
    if generator.random() < settings.flip:
        pixels = flipped(pixels)
    return pixels


def flipped(pixels: Pixels) -> Pixels:
    """Left is right."""
    return pixels[:, ::-1]


def moved(pixels: Pixels, most: float, generator: np.random.Generator) -> Pixels:
    """Moved in both directions by up to the share `most` of the size; black where nothing is left."""
    height, width = pixels.shape[:2]
    down, right = round(most * height), round(most * width)
    padded = np.pad(pixels, ((down, down), (right, right), (0, 0)))
    top, left = generator.integers(0, 2 * down + 1), generator.integers(0, 2 * right + 1)
    return padded[top : top + height, left : left + width]


def resized_crop(pixels: Pixels, least: float, resample: str, generator: np.random.Generator) -> Pixels:
    """A part of at least the share `least` of the area, stretched by at most a third, at the size of the whole."""
    height, width = pixels.shape[:2]
    rows, columns = part(height, width, least, generator)
    return image.resized(np.ascontiguousarray(pixels[rows, columns]), {"height": height, "width": width}, resample)


def part(height: int, width: int, least: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """The rows and columns of a part of an image that has the share `least` of its area or more."""
    area = generator.uniform(least, 1)
    most = min(math.log(_ASPECT), -math.log(area))  # what is stretched further lies outside
    aspect = math.exp(generator.uniform(-most, most))
    high, wide = (
        max(1, round(math.sqrt(share) * size)) for share, size in ((area / aspect, height), (area * aspect, width))
    )
    top, left = (int(generator.integers(size - own + 1)) for size, own in ((height, high), (width, wide)))
    return slice(top, top + high), slice(left, left + wide)


def mixed(
    arrays: Arrays, labels: NDArray[np.int64], settings: ImageAugmentation, generator: np.random.Generator, classes: int
) -> tuple[Arrays, NDArray[np.int64] | Soft]:
    """A batch float32[rows, channels, height, width] after mixup or cutmix, with soft labels; as it is if the settings
    have neither."""
    ways = [(way, alpha) for way, alpha in ((mixup, settings.mixup), (cutmix, settings.cutmix)) if alpha]
    if not ways:
        return arrays, labels
    way, alpha = ways[generator.integers(len(ways))]
    return way(arrays, labels, alpha, generator, classes)


def cutmix(
    arrays: Arrays, labels: NDArray[np.int64], alpha: float, generator: np.random.Generator, classes: int
) -> tuple[Arrays, Soft]:
    """A batch of whose images a rectangle comes from another of it; the labels count by area. The rectangle's area is
    drawn from Beta(alpha, alpha), its middle anywhere: a part of it may lie outside (Yun et al., 2019)."""
    partners = generator.permutation(len(labels))
    (images,) = arrays.values()
    height, width = images.shape[2:]
    made, own = images.copy(), np.ones(len(labels), dtype=np.float32)
    for row, partner in enumerate(partners):
        side = math.sqrt(1 - generator.beta(alpha, alpha))
        top, bottom = _span(height, side, generator)
        left, right = _span(width, side, generator)
        made[row, :, top:bottom, left:right] = images[partner, :, top:bottom, left:right]
        own[row] -= (bottom - top) * (right - left) / (height * width)
    return dict.fromkeys(arrays, made), mixed_labels(labels, partners, own, classes)


def _span(size: int, share: float, generator: np.random.Generator) -> tuple[int, int]:
    """Where a stretch of this share of `size` begins and ends, its middle anywhere."""
    middle, length = int(generator.integers(size)), round(share * size)
    return max(0, middle - length // 2), min(size, middle - length // 2 + length)
