"""Targets: hardware profiles as data, one YAML file each in `targets/`.

A profile holds facts about a piece of hardware and no code. The schema is strict: a key it does not know is
an error that names the file and the line. Units stand in the key names. A number that is not known is left
out; `sources` says where each group of numbers comes from and how sure it is.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from toolkit.errors import InputError

SCHEMA_VERSION = 1
HOST = "host"

Precision = Literal["fp32", "fp16", "bf16", "int8"]
EngineName = Literal["onnxruntime", "litert", "tensorrt"]
Processor = Literal["cpu", "gpu"]
Confidence = Literal["read", "measured", "derived", "recalled"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cpu(_Strict):
    """The CPU cores that a model can use."""

    model: str = Field(description="Marketing name of the CPU or its cores")
    architecture: Literal["x86_64", "aarch64"] = Field(description="Instruction set architecture")
    isa: list[str] = Field(
        description="Vector extensions that inference kernels choose by: avx2, avx512f, avx512_vnni, "
        "amx_int8, asimd, asimddp (dot product), i8mm, …"
    )
    cores: int = Field(gt=0, description="Cores that a model may use (of a mixed CPU: all of them)")
    clock_mhz: int | None = Field(None, gt=0, description="Sustained clock of the fastest cores")
    threads: int = Field(1, gt=0, description="Threads that a bundle for this target runs with")


class Gpu(_Strict):
    """The GPU, if the target has one that an engine here uses."""

    model: str
    architecture: str | None = None
    compute_capability: str | None = Field(None, description="CUDA compute capability, e.g. '8.7'")
    clock_mhz: int | None = Field(None, gt=0)


class Memory(_Strict):
    ram_gb: float | None = Field(None, gt=0, description="Memory of the device that runs the model")
    bandwidth_gb_per_s: float | None = Field(None, gt=0, description="Peak memory bandwidth")


class Peaks(_Strict):
    """Dense peak rates of one processor, all cores together, in 10^9 operations per second."""

    fp32_gops_per_s: float | None = Field(None, gt=0)
    fp16_gops_per_s: float | None = Field(None, gt=0)
    bf16_gops_per_s: float | None = Field(None, gt=0)
    int8_gops_per_s: float | None = Field(None, gt=0)

    def rate(self, precision: Precision) -> float | None:
        value: float | None = getattr(self, f"{precision}_gops_per_s")
        return value


class EngineSupport(_Strict):
    """One engine that the target can run. The order of engines in a profile is the order of preference
    when speeds are not told apart."""

    name: EngineName
    processor: Processor = "cpu"
    precisions: list[Precision] = Field(min_length=1, description="Legal precisions, float first")
    versions: str | None = Field(None, description="Version range on the device, PEP 440, e.g. '>=10.3,<11'")
    onnx_opset_max: int | None = Field(None, gt=0, description="Highest ONNX opset that the engine accepts")
    note: str | None = None


class SoftwareImage(_Strict):
    """An operating-system image of the device and the engine versions on it."""

    image: str
    versions: dict[str, str] = Field(default_factory=dict)


class Source(_Strict):
    """Where numbers come from. `covers` names the keys they stand under."""

    covers: list[str] = Field(min_length=1)
    source: str
    confidence: Confidence


class Target(_Strict):
    """A hardware profile."""

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    title: str
    aliases: list[str] = Field(default_factory=list)
    kind: Literal["x86", "board", "jetson", "phone", "gpu"]
    soc: str | None = None
    cpu: Cpu | None = None
    gpu: Gpu | None = None
    memory: Memory = Memory(ram_gb=None, bandwidth_gb_per_s=None)
    peaks: dict[Processor, Peaks] = Field(default_factory=dict)
    engines: list[EngineSupport] = Field(min_length=1)
    software: list[SoftwareImage] = Field(default_factory=list)
    power_modes_w: list[float] = Field(default_factory=list)
    known_traps: list[str] = Field(default_factory=list)
    sources: list[Source] = Field(min_length=1)

    @model_validator(mode="after")
    def _engines_have_processors(self) -> Target:
        for engine in self.engines:
            if engine.processor == "gpu" and self.gpu is None:
                raise ValueError(f"engine '{engine.name}' runs on the gpu, but the profile has no gpu")
            if engine.processor == "cpu" and self.cpu is None:
                raise ValueError(f"engine '{engine.name}' runs on the cpu, but the profile has no cpu")
        names = [engine.name for engine in self.engines]
        if len(set(names)) != len(names):
            raise ValueError("an engine is listed twice")
        return self

    @property
    def threads(self) -> int:
        """Threads that a bundle for this target runs with."""
        return self.cpu.threads if self.cpu else 1

    @property
    def vector_multiple(self) -> int:
        """What widths should be multiples of, so that the kernels of the target's CPU, or its GPU's tensor cores, work
        on whole vectors: 64 int8 values fill an AVX-512 register or an AMX row, 32 an AVX2 register, 16 a NEON one."""
        if self.cpu is None or any(engine.processor == "gpu" for engine in self.engines):
            return 64
        if "avx512f" in self.cpu.isa:
            return 64
        return 32 if "avx2" in self.cpu.isa else 16

    def engine(self, name: str) -> EngineSupport:
        """The support entry of engine `name`; KeyError if the target does not run it."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise KeyError(name)


def targets_folder() -> Path:
    """Where the profiles lie: inside the installed package, or beside it in a source checkout."""
    installed = Path(__file__).parent / "targets"
    return installed if installed.is_dir() else Path(__file__).parent.parent / "targets"


def _key_lines(node: yaml.Node, prefix: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], int]:
    """Line number (from 1) of every key and list item of a YAML document, by its path."""
    lines: dict[tuple[str | int, ...], int] = {prefix: node.start_mark.line + 1}
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


def _explain(error: ValidationError, path: Path, lines: dict[tuple[str | int, ...], int]) -> str:
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


def load_file(path: Path) -> Target:
    """Read and validate one profile. Raises InputError naming file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data: Any = yaml.safe_load(text)
    except OSError as error:
        raise InputError(f"Cannot read target profile {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a target profile is UTF-8 text; byte {error.start} is not.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        raise InputError(f"{path}:{line}: not valid YAML: {getattr(error, 'problem', error)}") from error
    except ValueError as error:  # a date that no calendar has
        raise InputError(f"{path}:1: not valid YAML: {error}") from error
    if node is None or not isinstance(data, dict):
        raise InputError(f"{path}:1: a target profile is a YAML mapping; this file holds none.")
    repeated = _repeated_key(node)
    if repeated is not None:
        raise InputError(f"{path}:{repeated.start_mark.line + 1}: {repeated.value}: this key stands here twice")
    try:
        target = Target.model_validate(data)
    except ValidationError as error:
        raise InputError(_explain(error, path, _key_lines(node))) from error
    return target


def available() -> dict[str, Path]:
    """Profile name → file of all shipped profiles."""
    return {path.stem: path for path in sorted(targets_folder().glob("*.yaml"))}


def aliases() -> dict[str, str]:
    """Alias → profile name, over all shipped profiles. Raises InputError if two profiles claim one alias."""
    found: dict[str, str] = {}
    for name, path in available().items():
        for alias in load_file(path).aliases:
            if alias in found or alias in available() or alias == HOST:
                raise InputError(f"{path}: alias '{alias}' is already taken.")
            found[alias] = name
    return found


def resolve(name: str) -> Target:
    """The target called `name`: `host`, a profile, an alias, or the path of a YAML file.

    Raises InputError for an unknown name, suggesting the nearest.
    """
    if name == HOST:
        from toolkit.devices import local

        return local.as_target()
    if name.endswith((".yaml", ".yml")):
        return load_file(Path(name))
    files = available()
    if name in files:
        return load_file(files[name])
    known_aliases = aliases()
    if name in known_aliases:
        return load_file(files[known_aliases[name]])
    candidates = [*files, *known_aliases, HOST]
    nearest = difflib.get_close_matches(name.lower(), candidates, n=1, cutoff=0.4)
    hint = f" Did you mean '{nearest[0]}'?" if nearest else ""
    raise InputError(
        f"Unknown target '{name}'.{hint} `toolkit targets` lists all of them; a profile of your own is "
        "given as the path of its .yaml file."
    )


def lint(path: Path) -> list[str]:
    """What is wrong with a profile file beyond the schema; an empty list means clean."""
    try:
        target = load_file(path)
    except InputError as error:
        return str(error).splitlines()
    problems = []
    if path.stem != target.name:
        problems.append(f"{path}:1: name '{target.name}' differs from the file name")
    covered = {key.split(".")[0] for source in target.sources for key in source.covers}
    for section in ("cpu", "gpu", "memory", "peaks", "software", "power_modes_w"):
        value = getattr(target, section)
        if isinstance(value, Memory):
            value = value.model_dump(exclude_none=True)
        if value and section not in covered:
            problems.append(f"{path}:1: no source covers '{section}'")
    for processor, peaks in target.peaks.items():
        for engine in target.engines:
            if engine.processor == processor and peaks.rate("fp32") is None and "fp32" in engine.precisions:
                problems.append(f"{path}:1: peaks.{processor} has no fp32 rate; no estimate can be made")
                break
    return problems
