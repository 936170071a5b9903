"""What was measured on a device: times of small kernels, per engine and number of threads. Estimates go by them."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from toolkit.costs.work import PRODUCTS, Work


class KernelTime(BaseModel):
    """The time of one operation, of a type (`kind`) in the engine's words, of the fastest round. It stood
    `repeats` times in a row in a file, each with weights of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    work: Work
    kind: str = Field(min_length=1)
    precision: Literal["fp32", "int8"]
    multiply_adds: NonNegativeInt
    weight_bytes: NonNegativeInt
    activation_bytes: NonNegativeInt
    repeats: PositiveInt
    time_us: PositiveFloat

    @model_validator(mode="after")
    def _has_work(self) -> KernelTime:
        if self.work in PRODUCTS and not self.multiply_adds:
            raise ValueError(f"a kernel of {self.work} needs multiply_adds")
        if self.work != "view" and not self.weight_bytes + self.activation_bytes:
            raise ValueError(f"a kernel of {self.work} needs weight_bytes or activation_bytes")
        return self


class Calibration(BaseModel):
    """One engine on the device's CPU with a number of threads. `operator_us` is what an operator costs beside its work,
    `call_us` what an inference costs beside its operators."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    engine: Literal["onnxruntime", "litert"]
    version: str
    threads: PositiveInt
    operator_us: NonNegativeFloat
    call_us: NonNegativeFloat
    kernels: list[KernelTime]

    @model_validator(mode="after")
    def _has_what_others_go_by(self) -> Calibration:
        for work in ("gemm", "elementwise"):
            if not any((kernel.work, kernel.precision) == (work, "fp32") for kernel in self.kernels):
                raise ValueError(f"calibration of '{self.engine}' has no {work} in fp32, which other classes go by")
        return self
