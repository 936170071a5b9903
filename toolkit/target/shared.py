"""What several profiles refer to by id and what stands once: images of operating systems, and traps.

A profile may also write such a thing out itself, as `toolkit targets show` does.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from toolkit import shipped, strict_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Stated(_Strict):
    source: str
    confidence: Literal["read", "measured", "derived", "recalled"]


class Image(_Stated):
    """An operating-system image of a device and the versions of engines and libraries on it."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    versions: dict[str, str] = Field(default_factory=dict, description="By the name of the engine or library")


class Trap(_Stated):
    """Something that goes wrong on several devices."""

    text: str


class _ImageEntry(_Stated):
    title: str
    versions: dict[str, str] = Field(default_factory=dict)


class _Images(_Strict):
    images: dict[str, _ImageEntry]


class _Traps(_Strict):
    traps: dict[str, Trap]


def images() -> dict[str, Image]:
    """All images by id."""
    entries = _images(shipped.targets_folder() / "shared" / "images.yaml").images
    return {key: Image(id=key, **entry.model_dump()) for key, entry in entries.items()}


def traps() -> dict[str, Trap]:
    """All shared traps by id."""
    return _traps(shipped.targets_folder() / "shared" / "traps.yaml").traps


def image(value: Any) -> Any:
    """The image that an id stands for; anything else as it is. ValueError for an unknown id."""
    if not isinstance(value, str):
        return value
    if value not in images():
        raise ValueError(f"there is no image '{value}'; known: {', '.join(images())}")
    return images()[value]


def trap(value: Any) -> Any:
    """The text that an id stands for; a text as it is. ValueError for an unknown id."""
    if not isinstance(value, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)+", value):
        return value
    if value not in traps():
        raise ValueError(f"there is no trap '{value}'; known: {', '.join(traps())}")
    return traps()[value].text


@cache
def _images(path: Path) -> _Images:
    return strict_yaml.load(_Images, path, "list of images")


@cache
def _traps(path: Path) -> _Traps:
    return strict_yaml.load(_Traps, path, "list of traps")
