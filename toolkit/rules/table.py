"""The schema of a rule table, and the verdict that it gives on an operator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import BaseModel, ConfigDict, Field, field_validator

from toolkit.rules.constraints import Constraint, Node, Shape

Confidence = Literal["read", "measured", "derived", "recalled"]
Status = Literal["supported", "unsupported", "unknown"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Provenance(_Strict):
    """Where a table, or what stands beside it, comes from."""

    source: str
    confidence: Confidence


class Limit(Provenance):
    """A rule on a whole model: what does not work, and what to do instead."""

    statement: str
    instead: str


class LimitFile(_Strict):
    """The file that holds all limits."""

    limits: dict[str, Limit]


class Kernel(_Strict):
    """What implements an operator from one version of it to another."""

    since: int = Field(ge=1, description="First version of the operator (of its operator set)")
    until: int | None = Field(None, description="Last one; absent: no end is known")
    types: dict[str, list[str]] = Field(
        default_factory=dict, description="Element types by the name of the type parameter in the operator's schema"
    )

    def covers(self, version: int) -> bool:
        return self.since <= version and (self.until is None or version <= self.until)


class OperatorRule(_Strict):
    """What a runtime takes of one operator. Everything that is left out is not known to be limited."""

    supported: bool = True
    dtypes: list[str] | None = Field(None, description="Element types of the data that it works on")
    kernels: list[Kernel] | None = Field(None, description="Kernels by version of the operator")
    versions: tuple[int, int] | None = Field(None, description="Lowest and highest version (LiteRT)")
    composed: bool = Field(False, description="Has no kernel; runs as the operators of its ONNX definition")
    qdq: list[str] | None = Field(None, description="Formats in which it runs in integers between Q/DQ pairs")
    dq: list[str] | None = Field(None, description="The same where its output is not quantized")
    shared: list[str] | None = Field(None, description="The same where it is, and other nodes read its tensors too")
    limits: list[str] = Field(default_factory=list, description="What must hold, for people")
    constraints: list[Constraint] = Field(default_factory=list, description="What must hold, to be checked")

    def types(self, version: int | None, parameter: str | None = None) -> list[str] | None:
        """Element types that it takes, for one type parameter if it is named; None if not known."""
        if self.kernels is None:
            return self.dtypes
        fitting = [kernel for kernel in self.kernels if version is None or kernel.covers(version)]
        found: list[str] = []
        for kernel in fitting:
            for own, types in kernel.types.items():
                if parameter is None or own == parameter:
                    found += [dtype for dtype in types if dtype not in found]
        return found or None

    def takes(self, dtype: str, version: int | None, parameter: str | None = None) -> bool:
        """Whether it has a kernel of its own for an element type (of a type parameter)."""
        known = self.types(version, parameter)
        return not self.composed and (known is None or dtype in known)


@dataclass(frozen=True)
class Verdict:
    """Whether a runtime takes a node. `conditions` must hold too and could not be checked with what was given."""

    status: Status
    reason: str
    conditions: tuple[str, ...] = ()


class Table(_Strict):
    """The rules of one version of one runtime."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    engine: str = Field(description="The engine of a target that the table is for: tensorrt, onnxruntime, litert, …")
    package: str = Field(description="What `version` counts: the name of a package or a product")
    version: str = Field(description="The version that was looked at")
    versions: str = Field(description="Versions that the table holds for, PEP 440")
    extends: str | None = Field(None, description="A table that this one changes")
    opset_min: int | None = Field(None, description="Lowest ONNX operator set; absent: not known, or no ONNX")
    opset_max: int | None = Field(None, description="Highest ONNX operator set")
    opset_of_version: dict[str, int] = Field(default_factory=dict, description="Highest opset of other versions")
    ir_version: int | None = Field(None, description="Highest ONNX IR version")
    unlisted: Literal["unsupported", "unknown"] = Field(
        description="What an operator is that the table does not name: a table that was made by asking for every "
        "operator is complete"
    )
    casts: dict[str, str] = Field(
        default_factory=dict, description="Element types that are turned into another one where an operator lacks them"
    )
    exchanged: dict[str, str] = Field(
        default_factory=dict,
        description="Formats between Q/DQ pairs that become another one where a single node reads the tensor",
    )
    refused_domains: list[str] = Field(default_factory=list, description="Domains of which no operator is taken")
    constraints: list[Constraint] = Field(default_factory=list, description="What every node must keep to")
    limits: list[str] = Field(default_factory=list, description="Names of rules in shared/limits.yaml")
    accepts: list[str] = Field(default_factory=list, description="Forms of quantization that were tried and taken")
    operators: dict[str, OperatorRule] = Field(
        description="By name; those of other domains as DOMAIN:NAME, e.g. com.microsoft:FusedGemm"
    )
    sources: list[Provenance] = Field(min_length=1)
    statements: dict[str, Limit] = Field(default_factory=dict, description="The limits; filled in on loading")

    @field_validator("versions")
    @classmethod
    def _is_a_range(cls, value: str) -> str:
        try:
            SpecifierSet(value)
        except InvalidSpecifier as error:
            raise ValueError(f"'{value}' is not a version range, such as '>=10.3,<10.4'") from error
        return value

    def holds_for(self, version: str) -> bool:
        """Whether the table speaks of a version of its package."""
        return SpecifierSet(self.versions).contains(version)

    @property
    def opsets(self) -> str:
        """The opsets that it takes, in words; empty if it reads no ONNX."""
        if self.opset_max is None:
            return ""
        return f"opsets {self.opset_min} to {self.opset_max}" if self.opset_min else f"opsets up to {self.opset_max}"

    def with_limits(self, known: Mapping[str, Limit]) -> Table:
        """The table with the text of its limits."""
        return self.model_copy(update={"statements": {name: known[name] for name in self.limits}})

    def on_top_of(self, base: Table) -> Table:
        """The table with everything of `base` that it does not say itself."""
        own = self.model_fields_set
        inherited = set(type(self).model_fields) - own
        changed: dict[str, Any] = {name: getattr(base, name) for name in inherited}
        changed["operators"] = dict(sorted({**base.operators, **self.operators}.items()))
        changed["statements"] = {**base.statements, **self.statements}
        changed["limits"] = list(changed["statements"])
        changed["sources"] = [*self.sources, *base.sources]
        return self.model_copy(update=changed)

    def verdict(
        self,
        op_type: str,
        *,
        domain: str = "",
        version: int | None = None,
        dtypes: Sequence[str] | Mapping[str, str] = (),
        shapes: Sequence[Shape] | None = None,
        inputs: Mapping[str, Any] | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Verdict:
        """Whether the runtime takes a node.

        `version` is the model's opset for the node's domain (ONNX) or the operator's version (LiteRT). `dtypes` are
        the element types of the data (`fp32`, `int8`, …; leave out those of indices and shapes), best by the names of
        the schema's type parameters. `inputs` are the values of constant inputs by the schema's names, or
        `constraints.NOT_CONSTANT`. What is not given is not checked, and comes back as a condition.
        """
        domain = "" if domain == "ai.onnx" else domain
        name = f"{domain}:{op_type}" if domain else op_type
        if domain in self.refused_domains:
            return Verdict("unsupported", f"{self.title} takes no operator of {domain}")
        if not domain and version is not None and not (self.opset_min or 0) <= version <= (self.opset_max or version):
            return Verdict("unsupported", f"{self.title} takes {self.opsets}; this is {version}")
        rule = self.operators.get(name)
        if rule is None:
            return Verdict(self.unlisted, f"{self.title} does not list {name}")
        if not rule.supported:
            return Verdict("unsupported", "; ".join([f"{self.title} does not have {name}", *rule.limits]))
        refused = self._wrong_version(name, rule, version) or self._wrong_types(name, rule, version, dtypes)
        if refused:
            return Verdict("unsupported", refused)
        node = Node(shapes, inputs or {}, attributes)
        conditions = list(rule.limits)
        for constraint in [*self.constraints, *rule.constraints]:
            kept, instead = constraint.check(node)
            if kept is False:
                return Verdict("unsupported", f"{constraint}; {instead}")
            if kept is None:
                conditions.append(str(constraint))
        reason = f"{self.title} has {name}"
        if rule.composed:
            reason = f"{self.title} has no kernel for {name} and runs the operators that define it"
        return Verdict("supported", reason, tuple(conditions))

    def _wrong_version(self, name: str, rule: OperatorRule, version: int | None) -> str | None:
        if version is None:
            return None
        if rule.versions and not rule.versions[0] <= version <= rule.versions[1]:
            low, high = rule.versions
            return f"{self.title} has {name} in versions {low} to {high}; this is version {version}"
        if rule.kernels is not None and not any(kernel.covers(version) for kernel in rule.kernels):
            return f"{self.title} has no kernel for {name} in opset {version}"
        return None

    def _wrong_types(
        self, name: str, rule: OperatorRule, version: int | None, dtypes: Sequence[str] | Mapping[str, str]
    ) -> str | None:
        given = dict(dtypes) if isinstance(dtypes, Mapping) else {str(i): dtype for i, dtype in enumerate(dtypes)}
        for parameter, asked in given.items():
            known = rule.types(version, parameter if isinstance(dtypes, Mapping) else None)
            if known is not None and not {asked, self.casts.get(asked)} & set(known):
                return f"{self.title} has {name} for {', '.join(known)}, not for {asked}"
        return None
