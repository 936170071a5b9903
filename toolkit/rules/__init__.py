"""Rule tables: which operators a version of a runtime takes, in which number formats and within which limits.

    table = rules.load("tensorrt-10.3")
    verdict = table.verdict("TopK", dtypes=["fp32"], inputs={"K": 5000})
    verdict.status, verdict.reason        # "unsupported", "K must be below 3840; here it is 5000"

Tables are data, one file per runtime and version in `targets/rules/`. They are made by
`python -m toolkit.rules.observe` from the runtimes that run here, or read from what the vendor publishes; each
says which. They hold what a runtime accepts, not how fast it is.
"""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

from toolkit import shipped, strict_yaml
from toolkit.errors import InputError
from toolkit.rules.constraints import Constraint
from toolkit.rules.table import Limit, LimitFile, OperatorRule, Table, Verdict

__all__ = ["TAKE_FILES_OF", "Constraint", "Limit", "OperatorRule", "Table", "Verdict", "fitting", "load", "names"]

# Engines of this toolkit → other runtimes and compilers that take their files, each with tables of its own.
TAKE_FILES_OF = {"litert": ("tflite-runtime", "edgetpu")}


def folder() -> Path:
    """Where the tables lie."""
    return shipped.targets_folder() / "rules"


def names() -> list[str]:
    """Names of all tables."""
    return sorted(path.stem for path in folder().glob("*.yaml"))


def load(name: str) -> Table:
    """The table called `name`, with what it extends. Raises InputError for an unknown name or a faulty file."""
    if name not in names():
        nearest = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
        raise InputError(f"Unknown rule table '{name}'.{hint} `toolkit targets rules` lists all of them.")
    return _load(folder() / f"{name}.yaml")


def fitting(engine: str, version: str) -> Table | None:
    """The table that holds for `version` of the engine's runtime; None if there is none."""
    tables = (load(name) for name in names())
    return next((t for t in tables if t.engine == engine and t.holds_for(version)), None)


@cache
def _load(path: Path) -> Table:
    table = strict_yaml.load(Table, path, "rule table")
    if table.name != path.stem:
        raise InputError(f"{path}:1: name '{table.name}' differs from the file name")
    known = _limits(path.parent.parent / "shared" / "limits.yaml")
    for name in table.limits:
        if name not in known:
            raise InputError(f"{path}:1: limits: there is no '{name}' in shared/limits.yaml")
    table = table.with_limits(known)
    return table.on_top_of(_load(path.with_stem(table.extends))) if table.extends else table


@cache
def _limits(path: Path) -> dict[str, Limit]:
    return strict_yaml.load(LimitFile, path, "list of limits").limits
