"""Coverage: how much of a candidate's work falls back, by the rule table of its engine or delegate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from toolkit.gates import Verdict

NAME = "coverage"


def check(found: Mapping[str, Any] | None, limit: float | None) -> Verdict:
    """Refuse a candidate of whose multiply-adds more than the share `limit` falls back; None: there is no limit.
    `found` is the report of the stage `coverage`; None: the target's profile names no table.

    What the table does not know, and costs that could not be counted, refuse nothing; the reason says so.
    """
    if found is None:
        return Verdict(NAME, True, "the target's profile names no rule table for it")
    return Verdict(NAME, not exceeds(found, limit), f"{sentence(found)}{_limit(found, limit)}{_worst(found)}")


def exceeds(found: Mapping[str, Any], limit: float | None) -> bool:
    """Whether more than `limit` of the multiply-adds falls back; with a limit of 0 no operator may, for what costs no
    multiply-add keeps an engine from being built as well."""
    fallen = found["fallback"]
    if limit == 0:
        return bool(fallen["operators"])
    share = fallen["multiply_adds"]
    return limit is not None and share is not None and share > limit


def sentence(found: Mapping[str, Any]) -> str:
    """How much falls back, in words."""
    fallen, unknown = found["fallback"], found["unknown"]
    if not fallen["operators"]:
        said = f"{found['title']} takes all {found['operators']} operators"
        if unknown["operators"]:
            said = f"{found['title']} refuses none of {found['operators']} operators"
    else:
        said = f"{fallen['operators']} of {found['operators']} operators fall back"
        if fallen["multiply_adds"] is not None:
            said += f", {percent(fallen['multiply_adds'])} of the multiply-adds"
            said += f", {percent(fallen['bytes'])} of the bytes"
    if unknown["operators"]:
        share = "" if unknown["multiply_adds"] is None else f" ({percent(unknown['multiply_adds'])})"
        said += f"; {unknown['operators']} are not in the table{share}"
    return f"{said} ({found['table']})"


def percent(share: float) -> str:
    """A share as people read it; what is not nothing is not shown as nothing."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    return f"{100 * share:.3g} %"


def _limit(found: Mapping[str, Any], limit: float | None) -> str:
    if limit is None:
        return ""
    said = f"; {allowed(limit)}"
    return said if found["counted"] else f"{said}; {found['note']}"


def allowed(limit: float) -> str:
    """A limit in words."""
    return f"at most {percent(limit)} may" if limit else "none may"


def _worst(found: Mapping[str, Any]) -> str:
    """The operators that fall back with most multiply-adds."""
    worst = next((each for each in found["offenders"] if each["known"]), None)
    if worst is None:
        return ""
    share = "" if worst["multiply_adds"] is None else f", {percent(worst['multiply_adds'])}"
    where = worst["module"] or "the model itself"
    more = sum(each["known"] for each in found["offenders"]) - 1
    instead = f"; instead: {worst['instead']}" if worst["instead"] else ""
    said = f". {worst['count']} {worst['operator']} in {where}{share}: rule {worst['rule']}: {worst['reason']}{instead}"
    return said + (f"; and {more} more" if more else "")
