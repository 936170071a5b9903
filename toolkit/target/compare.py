"""What differs between two targets, key by key."""

from __future__ import annotations

from typing import Any

from toolkit.target.schema import Target

_ABOUT_THE_PROFILE = ("schema_version", "name", "aliases", "sources")
_APART = ("images", "known_traps")  # an image is known by its id; traps are compared one by one
Difference = tuple[str, str, str]


def differences(a: Target, b: Target) -> list[Difference]:
    """Key, value in `a`, value in `b`, for every key in which they differ; `-` where there is none.

    Names, aliases and sources are left out: they say nothing of the hardware.
    """
    first, second = _values(a), _values(b)
    keys = [*first, *(key for key in second if key not in first)]
    found = [(key, first.get(key, "-"), second.get(key, "-")) for key in keys if first.get(key) != second.get(key)]
    found += [("known_traps", text, "-") for text in a.known_traps if text not in b.known_traps]
    return found + [("known_traps", "-", text) for text in b.known_traps if text not in a.known_traps]


def _values(target: Target) -> dict[str, str]:
    data = target.model_dump(mode="json", exclude_none=True, exclude={*_ABOUT_THE_PROFILE, *_APART})
    found = {"images": ", ".join(image.id for image in target.images)} if target.images else {}
    _collect(data, "", found)
    return found


def _collect(value: Any, key: str, found: dict[str, str]) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            _collect(item, f"{key}.{name}" if key else name, found)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for item in value:
            rest = {name: each for name, each in item.items() if name != "name"}
            _collect(rest or "there", f"{key}.{item['name']}", found)
    elif value not in ([], ""):
        found[key] = ", ".join(map(_text, value)) if isinstance(value, list) else _text(value)


def _text(value: Any) -> str:
    return str(value).removesuffix(".0") if isinstance(value, float) else str(value)
