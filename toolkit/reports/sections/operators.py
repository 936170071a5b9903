"""Where the time goes inside the model: operators as the runtime ran them, in the modules that they came from."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from toolkit.bench.record import Operator, Record
from toolkit.reports import charts, text
from toolkit.reports.blocks import NARROW, Block, Figure, Folded, Table
from toolkit.reports.data import Report

TITLE = "Where the time goes"
WANTS = ("a profile of the operators", "toolkit bench BUNDLE --operators -o record.json")
_MOST = 25  # operators of the table
_BARS = 14  # on a phone


def blocks(report: Report) -> list[Block]:
    """For each profile: the parts of the model, its kinds of operators, the operators that take longest."""
    made: list[Block] = []
    for record, label in zip(report.records, report.labels(), strict=True):
        operators = [each for each in record.operators or () if each.ms > 0]
        if operators:
            made += _of(record, label, operators)
    return made


def _of(record: Record, label: str, operators: Sequence[Operator]) -> list[Block]:
    whole = sum(each.ms for each in operators)
    known = sum(each.ms for each in operators if each.module)
    if known:
        said = f"{100 * known / whole:.0f} % of the time is in operators whose module the file tells."
        root = tree(operators)
    else:
        said = "The file does not tell which modules its operators came from: they are grouped by their kind."
        root = by_kind(operators)
    source = f" From {record.operators_from}." if record.operators_from else ""
    kind = "" if record.kind == "measured" else f" These are {record.kind} ({record.clock})."
    kinds: dict[str, tuple[float, int]] = {}
    for each in operators:
        ms, count = kinds.get(each.kind, (0.0, 0))
        kinds[each.kind] = ms + each.ms, count + 1
    by_kinds = [
        (name, count, text.number(ms), f"{100 * ms / whole:.1f} %")
        for name, (ms, count) in sorted(kinds.items(), key=lambda item: -item[1][0])
    ]
    longest = sorted(operators, key=lambda each: -each.ms)[:_MOST]
    rows = [
        (
            each.name,
            each.kind,
            each.module or "-",
            each.where or "-",
            text.number(each.ms),
            f"{100 * each.ms / whole:.1f} %",
        )
        for each in longest
    ]
    merged = alike(root)
    made: list[Block] = [
        Figure(
            f"{label}: {text.milliseconds(whole)} in {len(operators)} operators",
            f"Every part lies below the one that holds it, as wide as its share of the time. {said}{source}{kind}",
            partial(_draw, f"{label}: time by part of the model", merged),
            Table(("kind of operator", "operators", "ms", "share"), by_kinds),
        ),
        Folded(
            f"The {len(rows)} operators that take longest",
            [Table(("operator", "kind", "module", "runs on", "ms", "share"), rows)],
        ),
    ]
    if merged is not root:
        every = Figure(
            f"{label}: every layer",
            "The same with the numbered layers apart.",
            partial(_draw, f"{label}: time by part of the model, every layer", root),
            Table(("layer", "ms", "share"), _layers(root)),
        )
        made.append(Folded("Every layer", [every]))
    return made


def _draw(name: str, root: charts.Node, width: int) -> str:
    """An icicle; on a phone, where its names have no room, bars of the parts that take longest."""
    if width > NARROW:
        return charts.icicle(name, root, width)
    parts = sorted(_deep(root), key=lambda node: -node.value)[:_BARS]
    bars = [
        charts.Bar(node.path, [(0, node.value)], f"{text.number(node.value)} ms, {100 * node.value / root.value:.0f} %")
        for node in parts
    ]
    return charts.bars(name, bars, width)


def _deep(node: charts.Node) -> list[charts.Node]:
    """The lowest parts that hold operators alone, and nothing twice."""
    inner = [part for part in node.parts.values() if part.parts]
    if not inner:
        return [node] if node.path else list(node.parts.values())
    found = [below for part in inner for below in _deep(part)]
    rest = node.value - sum(part.value for part in inner)
    own = charts.Node(node.name, f"{node.path or 'model'} itself", rest)
    return [*found, own] if rest > 0 else found


def tree(operators: Sequence[Operator]) -> charts.Node:
    """Modules within modules, operators in the lowest ones. Those that come from no module are at the top."""
    root = charts.Node("model", "")
    for each in operators:
        path = [*each.module.split("."), each.kind] if each.module else ["no module", each.kind]
        _add(root, path, each.ms)
    return root


def alike(node: charts.Node) -> charts.Node:
    """A tree in which numbered parts (`layer.0`, `layer.1`, …) are one; the tree itself if there are none."""
    parts = {name: alike(part) for name, part in node.parts.items()}
    numbered = [part for name, part in parts.items() if name.isdigit()]
    if len(numbered) < 2:
        same = all(parts[name] is part for name, part in node.parts.items())
        return node if same else charts.Node(node.name, node.path, node.value, parts)
    rest = {name: part for name, part in parts.items() if not name.isdigit()}
    name = f"{numbered[0].name} to {numbered[-1].name}" if rest else f"{node.name}, all {len(numbered)}"
    whole = charts.Node(name, f"{node.path}.*")
    for part in numbered:
        _merge(whole, part, whole.path)
    if not rest:
        return whole
    return charts.Node(node.name, node.path, node.value, {whole.name: whole, **rest})


def _merge(into: charts.Node, part: charts.Node, path: str) -> None:
    into.value += part.value
    for name, each in part.parts.items():
        below = f"{path}.{name}"
        _merge(into.parts.setdefault(name, charts.Node(name, below)), each, below)


def _layers(root: charts.Node) -> list[tuple[str, str, str]]:
    """Every numbered part."""
    found = []
    waiting = [root]
    while waiting:
        node = waiting.pop(0)
        if node.name.isdigit():
            found.append((node.path, text.number(node.value), f"{100 * node.value / root.value:.1f} %"))
        else:
            waiting += node.parts.values()
    return found


def by_kind(operators: Sequence[Operator]) -> charts.Node:
    """Kinds of operators, then their names."""
    root = charts.Node("model", "")
    for each in operators:
        _add(root, [each.kind, each.name], each.ms)
    return root


def _add(root: charts.Node, path: Sequence[str], value: float) -> None:
    root.value += value
    node = root
    for place, name in enumerate(path):
        node = node.parts.setdefault(name, charts.Node(name, ".".join(path[: place + 1])))
        node.value += value
