"""The schema of a hardware profile.

A profile holds facts about a piece of hardware and no code. The schema is strict: a key it does not know is
an error that names the file and the line. Units stand in the key names. A number that is not known is left
out; `sources` says where each number comes from and how sure it is.
"""

from __future__ import annotations

from typing import Annotated, Literal

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from toolkit import engines
from toolkit.errors import InputError
from toolkit.target import shared
from toolkit.target.calibration import Calibration
from toolkit.target.shared import Image

SCHEMA_VERSION = 1
HOST = "host"
DEFAULT_FALLBACK = 0.1  # share of the multiply-adds

Precision = Literal["fp32", "fp16", "bf16", "int8"]  # of the artifacts that this toolkit makes
NumberFormat = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int16", "int8", "int4", "int4-weights"]
Processor = Literal["cpu", "gpu", "npu", "dla"]
Confidence = Literal["read", "measured", "derived", "recalled"]
Kind = Literal["x86", "board", "jetson", "phone", "apple", "gpu", "npu", "mcu"]
Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


def _engine(name: str) -> str:
    """`name`, if it is an engine that artifacts are made for. Raises ValueError, which is what pydantic reports."""
    try:
        return engines.exported_for(name)
    except InputError as error:
        raise ValueError(str(error)) from error


EngineName = Annotated[str, AfterValidator(_engine)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cpu(_Strict):
    """The CPU cores that a model can use."""

    model: str = Field(description="Marketing name of the CPU or its cores")
    architecture: Literal["x86_64", "aarch64", "armv7e-m", "armv8.1-m"] = Field(
        description="Instruction set architecture"
    )
    isa: list[str] = Field(
        description="Vector extensions that kernels choose by, as Linux spells them (avx2, asimddp, i8mm, …)"
    )
    cores: int = Field(gt=0, description="Cores that a model may use (of a mixed CPU: all of them)")
    clock_mhz: int | None = Field(None, gt=0, description="Sustained clock of the fastest cores")
    threads: int = Field(1, gt=0, description="Threads that a bundle for this target runs with")
    precisions: list[NumberFormat] = Field(default_factory=list, description="Number formats that its kernels take")


class Gpu(_Strict):
    """The GPU."""

    model: str
    architecture: str | None = None
    compute_capability: str | None = Field(None, description="CUDA compute capability, e.g. '8.7'")
    cuda_cores: int | None = Field(None, gt=0)
    tensor_cores: int | None = Field(None, gt=0)
    clock_mhz: int | None = Field(None, gt=0)
    precisions: list[NumberFormat] = Field(default_factory=list, description="Number formats that it computes in")


class Npu(_Strict):
    """The accelerator for neural networks, inside the chip or as a module of its own."""

    model: str
    architecture: str | None = None
    cores: int | None = Field(None, gt=0)
    on_chip_memory_mb: float | None = Field(None, gt=0)
    host_link: str | None = Field(None, description="How a module is connected, e.g. PCIe Gen3 x4")
    precisions: list[NumberFormat] = Field(default_factory=list, description="Number formats that it computes in")


class Dla(_Strict):
    """The deep learning accelerators of a Jetson, beside its GPU."""

    cores: int = Field(gt=0)


class Memory(_Strict):
    ram_gb: float | None = Field(None, gt=0, description="Memory of the device that runs the model")
    ram_gb_range: Range | None = Field(None, description="Least and most, where such devices differ")
    flash_mb: float | None = Field(None, gt=0, description="Flash of a microcontroller, which holds the weights")
    flash_mb_range: Range | None = None
    bandwidth_gb_per_s: float | None = Field(None, gt=0, description="Peak memory bandwidth")
    copy_gb_per_s: float | None = Field(None, gt=0, description="Speed of a copy in memory, measured")

    @property
    def has_flash(self) -> bool:
        """Whether it is known of flash, beside the RAM."""
        return self.flash_mb is not None or self.flash_mb_range is not None

    @model_validator(mode="after")
    def _ranges_rise(self) -> Memory:
        for name in ("ram_gb", "flash_mb"):
            found = getattr(self, f"{name}_range")
            if found and found[0] >= found[1]:
                raise ValueError(f"{name}_range is the least and the most, in this order")
            if found and getattr(self, name) is not None:
                raise ValueError(f"either {name} or {name}_range")
        return self


class Peaks(_Strict):
    """Dense peak rates of one processor, all cores together, in 10^9 operations per second."""

    fp32_gops_per_s: float | None = Field(None, gt=0)
    fp16_gops_per_s: float | None = Field(None, gt=0)
    bf16_gops_per_s: float | None = Field(None, gt=0)
    fp8_gops_per_s: float | None = Field(None, gt=0)
    fp4_gops_per_s: float | None = Field(None, gt=0)
    int8_gops_per_s: float | None = Field(None, gt=0)
    int4_gops_per_s: float | None = Field(None, gt=0)

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
    rules: str | None = Field(None, description="The table of what the engine takes, in targets/rules/")
    io: Literal["integer"] | None = Field(None, description="integer: a file must hold no float, at its edges neither")
    command: str | None = Field(None, description="What turns the artifact into what the device runs")
    delegate: str | None = Field(None, description="The table of what its delegate takes: of LiteRT on a CPU, XNNPACK")
    max_fallback: float | None = Field(None, ge=0, le=1, description="Most multiply-adds that may fall back, a share")
    note: str | None = None

    @property
    def coverage_rules(self) -> str | None:
        """The table that says which operators run where they should."""
        return self.delegate or self.rules

    @property
    def fallback_limit(self) -> float | None:
        """The share of multiply-adds above which a model is refused: as the profile says, else none for TensorRT, which
        builds all of a model or nothing, a tenth for a delegate or an accelerator, and no limit for a CPU alone, where
        what falls back is only slower and its speed is measured."""
        if self.max_fallback is not None:
            return self.max_fallback
        if self.name == "tensorrt":
            return 0.0
        return DEFAULT_FALLBACK if self.delegate or self.processor != "cpu" else None

    @field_validator("versions")
    @classmethod
    def _is_a_range(cls, value: str | None) -> str | None:
        try:
            SpecifierSet(value or "")
        except InvalidSpecifier as error:
            raise ValueError(f"'{value}' is not a version range, such as '>=10.3,<11'") from error
        return value


class OtherRuntime(_Strict):
    """A vendor's runtime that this toolkit does not build for, and what it wants."""

    name: str
    processor: Processor | None = None
    precisions: list[NumberFormat] = Field(default_factory=list)
    rules: str | None = Field(None, description="The table of what it takes, in targets/rules/")
    note: str


class PowerMode(_Strict):
    """A power mode of the device, or a power that its maker states."""

    name: str
    watts: float | None = Field(None, gt=0)


class Budgets(_Strict):
    """What a conversion for this target keeps to when the user says nothing."""

    max_size_mb: float | None = Field(None, gt=0)
    max_memory_mb: float | None = Field(None, gt=0)
    max_latency_ms: float | None = Field(None, gt=0)


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
    kind: Kind
    soc: str | None = None
    cpu: Cpu | None = None
    gpu: Gpu | None = None
    npu: Npu | None = None
    dla: Dla | None = None
    memory: Memory = Memory()
    peaks: dict[Processor, Peaks] = Field(default_factory=dict)
    engines: list[EngineSupport]
    calibration: list[Calibration] = Field(default_factory=list)
    other_runtimes: list[OtherRuntime] = Field(default_factory=list)
    images: list[Annotated[Image, BeforeValidator(shared.image)]] = Field(default_factory=list)
    image: str | None = Field(None, description="The image that versions and rules are those of")
    power_modes: list[PowerMode] = Field(default_factory=list)
    power_w: Range | None = Field(None, description="What the device draws, least and most")
    budgets: Budgets = Budgets()
    known_traps: list[Annotated[str, BeforeValidator(shared.trap)]] = Field(default_factory=list)
    sources: list[Source] = Field(min_length=1)

    @model_validator(mode="after")
    def _parts_fit(self) -> Target:
        for engine in self.engines:
            if getattr(self, engine.processor) is None:
                where = engine.processor
                raise ValueError(f"engine '{engine.name}' runs on the {where}, but the profile has no {where}")
        for processor in self.peaks:
            if getattr(self, processor) is None:
                raise ValueError(f"peaks of the {processor}, but the profile has no {processor}")
        names = [engine.name for engine in self.engines]
        if len(set(names)) != len(names):
            raise ValueError("an engine is listed twice")
        for one in self.calibration:
            if one.engine not in names or self.engine(one.engine).processor != "cpu":
                raise ValueError(f"calibration of '{one.engine}', which is no engine of this target's CPU")
        if len({(one.engine, one.threads) for one in self.calibration}) != len(self.calibration):
            raise ValueError("an engine is calibrated twice for the same number of threads")
        if not self.engines and not self.other_runtimes:
            raise ValueError("neither engines nor other_runtimes: what runs a model there?")
        if self.image is not None and self.image not in [image.id for image in self.images]:
            raise ValueError(f"image '{self.image}' is not among the images")
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

    def calibrated(self, engine: str) -> Calibration | None:
        """What was measured of an engine with the threads of this target; None if nothing was."""
        return next((one for one in self.calibration if (one.engine, one.threads) == (engine, self.threads)), None)

    def engine(self, name: str) -> EngineSupport:
        """The support entry of engine `name`; KeyError if the target does not run it."""
        for engine in self.engines:
            if engine.name == name:
                return engine
        raise KeyError(name)
