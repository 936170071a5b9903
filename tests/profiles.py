"""A small valid profile, of which tests break one line at a time, and what the reader says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from toolkit import target
from toolkit.errors import InputError

BOARD = """\
schema_version: 1
name: my-board
title: My board
kind: board
cpu:
  model: 4x Cortex-A55
  architecture: aarch64
  isa: [asimd]
  cores: 4
peaks:
  cpu: {fp32_gops_per_s: 50}
engines:
  - name: litert
    precisions: [fp32, int8]
sources:
  - {covers: [cpu, peaks], source: data sheet, confidence: read}
"""


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        target.load_file(path)
    return str(caught.value)
