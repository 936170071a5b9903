"""Targets: hardware profiles as data, one YAML file each in `targets/`.

`schema.py` says what stands in one, `files.py` finds and reads them, `shared.py` holds what several refer to, `lint.py`
finds what a schema cannot see, `compare.py` and `draft.py` are behind `toolkit targets diff` and `new`.
"""

from toolkit.shipped import targets_folder
from toolkit.target.calibration import Calibration, KernelTime
from toolkit.target.files import aliases, available, families, load_file, narrowed, resolve, split_image
from toolkit.target.lint import lint, lint_shared
from toolkit.target.schema import (
    HOST,
    SCHEMA_VERSION,
    Budgets,
    Confidence,
    Cpu,
    Dla,
    EngineName,
    EngineSupport,
    Gpu,
    Kind,
    Memory,
    Npu,
    OtherRuntime,
    Peaks,
    PowerMode,
    Precision,
    Processor,
    Source,
    Target,
)
from toolkit.target.shared import Image

__all__ = [
    "HOST",
    "SCHEMA_VERSION",
    "Budgets",
    "Calibration",
    "Confidence",
    "Cpu",
    "Dla",
    "EngineName",
    "EngineSupport",
    "Gpu",
    "Image",
    "KernelTime",
    "Kind",
    "Memory",
    "Npu",
    "OtherRuntime",
    "Peaks",
    "PowerMode",
    "Precision",
    "Processor",
    "Source",
    "Target",
    "aliases",
    "available",
    "families",
    "lint",
    "lint_shared",
    "load_file",
    "narrowed",
    "resolve",
    "split_image",
    "targets_folder",
]
