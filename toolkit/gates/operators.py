"""Operators: a graph against the rule table of the runtime that is to take it (validation rung L0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.gates import Verdict

NAME = "operators"


def check(found: Mapping[str, Any] | None) -> Verdict:
    """Refuse a graph with a node that the table refuses. `found` is the report of the stage `preflight`, its `rules`;
    None: the target's profile names no table.

    An operator that the table does not know is no refusal; the reason names it.
    """
    if found is None:
        return Verdict(NAME, True, "the target's profile names no rule table for it")
    if found["refused"]:
        first = found["refused"][0]
        where = f"{first['operator']} {first['node']}".strip() or "the model"
        more = f" and {len(found['refused']) - 1} more nodes" if len(found["refused"]) > 1 else ""
        instead = f"; instead: {first['instead']}" if first["instead"] else ""
        reason = f"rule {first['rule']} of {found['table']}: {where}{more}: {first['reason']}{instead}"
        return Verdict(NAME, False, reason)
    unknown = f"; not in the table: {', '.join(found['unknown'])}" if found["unknown"] else ""
    return Verdict(NAME, True, f"{found['title']} takes all {found['nodes']} nodes{unknown} ({found['table']})")
