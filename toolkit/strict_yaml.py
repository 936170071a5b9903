"""YAML files that people write: read whole, checked by a schema, and every fault told with file, line and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from toolkit.errors import InputError

M = TypeVar("M", bound=BaseModel)
Lines = dict[tuple[str | int, ...], int]
# libyaml's loader where PyYAML has it: rule tables have a thousand lines.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: Path, what: str) -> tuple[dict[str, Any], Lines]:
    """A file's mapping, and the line of each of its keys. `what` names the kind of file in messages.

    Raises InputError if the file cannot be read, is no YAML mapping, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        data: Any = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except OSError as error:
        raise InputError(f"Cannot read {what} {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a {what} is UTF-8 text; byte {error.start} is not.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise InputError(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except ValueError as error:  # a date that no calendar has
        raise InputError(f"{path}:1: not valid YAML: {error}") from error
    if node is None or not isinstance(data, dict):
        raise InputError(f"{path}:1: a {what} is a YAML mapping; this file holds none.")
    repeated = _repeated_key(node)
    if repeated is not None:
        raise InputError(f"{path}:{repeated.start_mark.line + 1}: {repeated.value}: this key stands here twice")
    return data, _key_lines(node)


def validate(model: type[M], data: Any, path: Path, lines: Lines) -> M:
    """`data` as a `model`. Raises InputError with one line for each fault."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, path, lines)) from error


def load(model: type[M], path: Path, what: str) -> M:
    """A file as a `model`. Raises InputError naming file, line and key."""
    data, lines = read(path, what)
    return validate(model, data, path, lines)


def dump(data: Any, width: int = 110) -> str:
    """Data as YAML for people: keys in their order, plain lists on one line, whole numbers without a point."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def dump_line(data: dict[str, Any]) -> str:
    """A mapping as YAML on one line, without its end."""
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6, default_flow_style=True
    )
    return text.rstrip("\n")


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True  # equal parts are written out each time


def _list(dumper: _Dumper, values: list[Any]) -> yaml.Node:
    plain = all(isinstance(value, int | float) or (isinstance(value, str) and len(value) < 30) for value in values)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=plain)


def _float(dumper: _Dumper, value: float) -> yaml.Node:
    return dumper.represent_int(int(value)) if value.is_integer() else dumper.represent_float(value)


_Dumper.add_representer(list, _list)
_Dumper.add_representer(float, _float)


def _key_lines(node: yaml.Node, prefix: tuple[str | int, ...] = ()) -> Lines:
    """Line number (from 1) of every key and list item of a YAML document, by its path."""
    lines: Lines = {prefix: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, str(key.value))
            lines.update(_key_lines(value, path))
            lines[path] = key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines.update(_key_lines(item, (*prefix, index)))
    return lines


def _repeated_key(node: yaml.Node) -> yaml.Node | None:
    """The first key that stands twice in one mapping (YAML itself would silently keep the last), or None."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if str(key.value) in seen:
                repeated: yaml.Node = key
                return repeated
            seen.add(str(key.value))
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    return next((found for child in children if (found := _repeated_key(child)) is not None), None)


def _explain(error: ValidationError, path: Path, lines: Lines) -> str:
    messages = []
    for detail in error.errors():
        location = tuple(detail["loc"])
        known = location
        while known not in lines and known:
            known = known[:-1]
        key = ".".join(str(part) for part in location) or "profile"
        text = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            text = "unknown key"
        elif detail["type"] == "missing":
            text = "required key is missing"
        messages.append(f"{path}:{lines.get(known, 1)}: {key}: {text}")
    return "\n".join(messages)
