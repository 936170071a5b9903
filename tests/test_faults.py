"""The catalogue of `benchmarks/faults.py` on small models: every fault is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import faults
from tests import artifacts
from tests.networks import CLASSES, checkpoint, pattern
from toolkit import builds, steps

SPEC = {
    "resize": {"height": 24, "width": 24}, "channels": 3, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]
}  # fmt: skip
TEXT = [fault.name for fault in faults.text_faults(1)]
IMAGE = 19


@pytest.fixture(scope="module")
def text_case(tuned: Path, sentences: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> faults.Case:
    work = tmp_path_factory.mktemp("texts")
    folder = artifacts.export(tuned, work, "tensorrt")
    examples = [text.title() if number % 2 else text for number, (text, _) in enumerate(sentences[:6])]
    return faults.Case(builds.open_build(tuned), folder, examples, work)


@pytest.fixture(scope="module")
def image_case(tmp_path_factory: pytest.TempPathFactory) -> tuple[faults.Case, list[faults.Fault]]:
    """A network whose norms have seen something, and its faults."""
    work = tmp_path_factory.mktemp("images")
    model = checkpoint(work, SPEC)
    steps.export(str(model), str(work / "onnx"), engine="tensorrt", lengths=[1], allow_code=True)
    first = builds.open_build(model, allow_code=True)
    generator = np.random.default_rng(0)
    grey = [pattern(kind, generator, 40).astype(np.float64) for kind in CLASSES]
    examples: list[Any] = [np.stack([each, 255 - each, each / 2], axis=-1).astype(np.uint8) for each in grey]
    found = faults.image_faults(first, "net.blocks.0.norm", "net.head", faults.pictures_in(work))
    return faults.Case(first, work / "onnx", examples, work), found


@pytest.mark.parametrize("name", TEXT)
def test_a_fault_of_texts_is_named(name: str, text_case: faults.Case) -> None:
    fault = next(each for each in faults.text_faults(1) if each.name == name)
    outcome = faults.look(text_case, fault)
    assert outcome.caught, outcome


@pytest.mark.parametrize("number", range(IMAGE))
def test_a_fault_of_images_is_named(number: int, image_case: tuple[faults.Case, list[faults.Fault]]) -> None:
    case, found = image_case
    assert len(found) == IMAGE
    outcome = faults.look(case, found[number])
    assert outcome.caught, outcome


def test_sound_builds_raise_no_alarm(text_case: faults.Case) -> None:
    assert faults.alarms(text_case, {"onnx": text_case.folder}) == {"onnx": None}
